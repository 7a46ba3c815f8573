package coordinator

import (
	"context"
	"errors"
	"maps"
	"slices"
	"syscall"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

const (
	// silence is how long a chunkserver may say nothing, while it is
	// connected, before nothing is asked of it. It gives a sign of life
	// every 500 ms.
	silence = 1500 * time.Millisecond
	// halt is a time without a sign of life of this process that shows that it
	// stood still, and may have heard nothing because of that.
	halt = time.Second
	// rest is how long a member that could not keep up is left alone before
	// it is brought up to date again.
	rest = 5 * time.Second
	// probeTimeout bounds how long it is tried to reach a chunkserver that may
	// be gone.
	probeTimeout = time.Second
)

// stayAwake notes, again and again, that this process runs.
func (t *term) stayAwake(context.Context) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.silent(time.Now())
	return nil
}

// silent tells how long nothing was heard of somebody who was heard of at some
// time. The time in which this process did not run does not count, nor does what
// was before it. mu must be held.
func (t *term) silent(since time.Time) time.Duration {
	now := time.Now()
	if now.Sub(t.running) > halt {
		t.awake = now
	}
	t.running = now
	return min(now.Sub(since), now.Sub(t.awake))
}

// look tells how every known chunkserver is.
func (t *term) look() map[chunk.NodeID]sighting {
	nodes := make(map[chunk.NodeID]sighting)
	t.mu.Lock()
	defer t.mu.Unlock()
	for id := range t.addresses {
		session := t.chunkservers[id]
		seen := sighting{resting: time.Since(t.lagged[id]) < rest, draining: t.draining[id]}
		switch {
		case t.gone[id], t.silent(t.heard[id]) > t.patience:
			seen.standing = failed
			seen.away = min(time.Since(t.heard[id]), time.Since(t.began)) > t.replace
		case session != nil && time.Since(t.heard[id]) <= silence:
			seen.standing, seen.incarnation, seen.full = present, session.node.Incarnation, session.sign.Full
			seen.roomy = session.sign.Free > (session.sign.Used+session.sign.Free)/8
		}
		nodes[id] = seen
	}
	return nodes
}

// reports collects what primaries have told about the members of their copysets,
// and notes who lags.
func (t *term) reports() map[chunk.CopysetID]wire.Report {
	reports := make(map[chunk.CopysetID]wire.Report)
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, s := range t.chunkservers {
		for _, r := range s.sign.Reports {
			if int(r.Copyset) >= len(t.copysets) || t.copysets[r.Copyset].Primary != id {
				continue
			}
			reports[r.Copyset] = r
			for _, node := range r.Lagging {
				t.lagged[node] = time.Now()
			}
		}
	}
	return reports
}

// probeLost finds out which of the chunkservers whose sessions have ended are
// gone, for certain, as their port refuses connections: then nobody has to wait
// until their silence is long enough.
func (t *term) probeLost(ctx context.Context) error {
	lost := make(map[chunk.NodeID]string)
	t.mu.Lock()
	for id, address := range t.addresses {
		if t.chunkservers[id] == nil && !t.gone[id] && !t.heard[id].IsZero() {
			lost[id] = address
		}
	}
	t.mu.Unlock()
	ids := slices.Collect(maps.Keys(lost))
	return parallel(ctx, len(ids), len(ids), func(ctx context.Context, i int) error {
		if refuses(ctx, lost[ids[i]]) {
			t.lose(ids[i])
		}
		return nil
	})
}

// refuses reports whether nobody listens at an address.
func refuses(ctx context.Context, address string) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	conn, err := wire.DialTCP(ctx, address)
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}

// lose notes that the process of a chunkserver is gone, unless there is another
// one by now.
func (t *term) lose(id chunk.NodeID) {
	t.mu.Lock()
	gone := t.chunkservers[id] == nil
	if gone {
		t.gone[id] = true
	}
	t.mu.Unlock()
	if gone {
		t.log.Info("chunkserver is gone: nobody listens there", "node", id)
		t.ring()
	}
}
