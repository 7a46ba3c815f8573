package coordinator

import (
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

const (
	// silence is how long a chunkserver may say nothing, while it is
	// connected, before nothing is asked of it. It gives a sign of life
	// every 500 ms.
	silence = 2 * time.Second
	// halt is a time without a look at the chunkservers that shows that this
	// process stood still, or waited, and may have heard nothing because of
	// that.
	halt = time.Second
)

// look tells how every known chunkserver is.
func (t *term) look() map[chunk.NodeID]sighting {
	nodes := make(map[chunk.NodeID]sighting)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if now.Sub(t.looked) > halt {
		t.awake = now
	}
	t.looked = now
	for id := range t.addresses {
		silent := now.Sub(t.heard[id])
		session := t.chunkservers[id]
		switch {
		case min(silent, now.Sub(t.awake)) > t.patience:
			nodes[id] = sighting{standing: failed}
		case session != nil && silent <= silence:
			nodes[id] = sighting{present, session.node.Incarnation}
		}
	}
	return nodes
}
