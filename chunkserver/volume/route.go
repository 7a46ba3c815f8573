package volume

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// route carries a request about a chunk to the primary of its copyset, again
// and again until it is answered for good, ctx ends, or the attachment does.
// If ctx ended, unknown reports that a request was sent whose answer is not
// known.
func (v *Volume) route(ctx context.Context, kind wire.Kind, index uint32, data []byte,
	head func(chunk.CopysetID, chunk.Epoch) []byte) (reply []byte, unknown bool, err error) {
	pause := backoff{least: 5 * time.Millisecond, most: 500 * time.Millisecond}
	patience := v.session.patience
	var full time.Time // when the primary was first said to be full
	for {
		if err := v.attachment.err(); err != nil {
			return nil, false, err
		}
		m := v.session.atlas.newest.Load()
		id := chunk.Locate(v.volume.Root, index, len(m.Copysets))
		conn, err := v.session.primary(ctx, m, id)
		if err == nil {
			epoch := m.Copysets[id].Epoch
			try, cancel := context.WithTimeout(ctx, patience.next())
			reply, err = conn.Call(try, kind, head(id, epoch), data)
			cancel()
			unknown = unknown || errors.Is(err, wire.ErrUnavailable)
		}
		switch {
		case err == nil:
			return reply, false, nil
		case errors.Is(err, chunk.ErrFenced):
			v.attachment.end(err)
			return nil, false, v.attachment.err()
		case errors.Is(err, chunk.ErrNoSpace) && full.IsZero():
			full = time.Now()
		case errors.Is(err, chunk.ErrNoSpace) && time.Since(full) < v.session.full:
		case !transient(err):
			return nil, false, err
		}
		v.session.awaitMap(ctx, v.attachment, m, id, pause.next())
		if ctx.Err() != nil {
			return nil, unknown, fmt.Errorf("chunk %d/%d: %w: %w", v.volume.ID, index, ctx.Err(), err)
		}
	}
}

// transient reports whether a refusal by a copyset's primary, or a failure to
// reach it, calls for another try.
func transient(err error) bool {
	for _, t := range []error{wire.ErrUnavailable, chunk.ErrStaleEpoch, chunk.ErrNotReady, chunk.ErrStopped} {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

// primary returns a connection to the primary of a copyset.
func (s *Session) primary(ctx context.Context, m *wire.Map, id chunk.CopysetID) (*wire.Conn, error) {
	address := m.Peers[m.Copysets[id].Primary]
	if address == "" {
		return nil, fmt.Errorf("%w: copyset %d has no primary", chunk.ErrNotReady, id)
	}
	return s.targets.connect(ctx, m.Cluster, address)
}

// awaitMap waits, at most for d, until the map says something else about a
// copyset than m does.
func (s *Session) awaitMap(ctx context.Context, a *attachment, m *wire.Map, id chunk.CopysetID, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	s.atlas.reread(s.ctx, &s.run)
	for {
		changed := s.atlas.changed()
		if s.atlas.newest.Load().Copysets[id].Epoch != m.Copysets[id].Epoch {
			return
		}
		select {
		case <-changed:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		case <-a.life.Done():
			return
		}
	}
}

// learn takes in a map that the leader sends when it has changed, and gives up
// the connections to chunkservers that are the primary of nothing any more.
// What they have not answered, as they have failed, is tried again elsewhere.
func (s *Session) learn(next wire.Map) error {
	m, err := s.atlas.take(next)
	if err != nil {
		return fmt.Errorf("take in the map of copysets: %w", err)
	}
	primaries := make(map[string]bool)
	for _, c := range m.Copysets {
		primaries[m.Peers[c.Primary]] = true
	}
	s.targets.retain(primaries)
	return nil
}
