package store

import (
	"context"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// scrubber looks at every block, over and over, so that damage is found while
// another member still has what is lost: a pass through all chunks in a fixed
// order, at a bounded rate, and a pause until the next is due. Checkpoints save
// where it is, so that a restart does not begin again.
type scrubber struct {
	rate    int64         // bytes per second
	period  time.Duration // from the start of one pass to that of the next
	damaged func(Finding)

	mu    sync.Mutex
	state Scrub
}

// Scrub tells how far the search for damage has come.
type Scrub struct {
	Began time.Time // the present pass, or else the last one; zero before the first
	Next  chunk.Ref // where the present pass goes on; of volume 0 if none is under way

	Blocks  uint64 // looked at since the store was opened
	Damaged uint64 // of them
}

// Scrub tells how far the search for damage has come.
func (s *Store) Scrub() Scrub {
	s.scrubber.mu.Lock()
	defer s.scrubber.mu.Unlock()
	return s.scrubber.state
}

// runScrub makes one pass after the other until the store stops.
func (s *Store) runScrub() {
	ctx, cancel := context.WithCancel(context.Background())
	s.helpers.Go(func() {
		<-s.stop
		cancel()
	})
	for {
		if at := s.Scrub(); at.Next.Volume == 0 {
			if pause(ctx, time.Until(at.Began.Add(s.scrubber.period))) != nil {
				return
			}
			s.scrubber.note(func(at *Scrub) { at.Began, at.Next = time.Now(), chunk.Ref{Volume: 1} })
		}
		if err := s.scrub(ctx); err != nil {
			if ctx.Err() == nil {
				s.log.Error("the search for damage has ended", "err", err)
			}
			return
		}
		s.log.Info("searched all blocks for damage", "blocks", s.Scrub().Blocks, "damaged", s.Scrub().Damaged)
	}
}

// scrub goes on with the present pass until its end. Volumes that are new
// since it went on wait for the next pass.
func (s *Store) scrub(ctx context.Context) error {
	volumes, err := s.Volumes()
	if err != nil {
		return err
	}
	next := s.Scrub().Next
	for _, volume := range volumes {
		if volume < next.Volume {
			continue
		}
		indices, err := s.Chunks([]chunk.VolumeID{volume})
		if err != nil {
			return err
		}
		for _, index := range indices {
			ref := chunk.Ref{Volume: volume, Index: index}
			if volume == next.Volume && index < next.Index {
				continue
			}
			s.scrubber.note(func(at *Scrub) { at.Next = ref })
			if err := s.checkChunk(ctx, ref, s.damage, s.scrubber.pace); err != nil {
				return err
			}
		}
	}
	s.scrubber.note(func(at *Scrub) { at.Next = chunk.Ref{} })
	return nil
}

// damage passes on what was found.
func (s *Store) damage(f Finding) {
	s.log.Error("damage found", "where", f)
	s.scrubber.note(func(at *Scrub) { at.Damaged++ })
	if s.scrubber.damaged != nil {
		s.scrubber.damaged(f)
	}
}

func (s *scrubber) note(change func(*Scrub)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.state)
}

// pace waits as long as looking at some blocks may take.
func (s *scrubber) pace(ctx context.Context, blocks int) error {
	s.note(func(at *Scrub) { at.Blocks += uint64(blocks) })
	return pause(ctx, time.Duration(float64(blocks)*chunk.BlockSize/float64(s.rate)*float64(time.Second)))
}

// pause waits, or fails when ctx ends before.
func pause(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
