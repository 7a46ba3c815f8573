package store

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// State is what a store knows of one copyset when it is opened.
type State struct {
	Copyset   chunk.CopysetID
	Promised  chunk.Epoch                    // smaller epochs are refused
	LastEpoch chunk.Epoch                    // of the entry at Last
	Last      chunk.LSN                      // the end of the history that this store holds
	Commit    chunk.LSN                      // the largest that it was told of
	Tail      []chunk.Entry                  // every entry above Commit, in order, with its data
	Tokens    map[chunk.VolumeID]chunk.Token // the largest seen of each volume, writes included
}

// Copysets tells, for every copyset that the store has heard of, what was
// found when it was opened, in the order of their ids. The caller owns the
// result; later calls return nothing, as the tails are not kept in memory.
func (s *Store) Copysets() []State {
	s.foundMu.Lock()
	defer s.foundMu.Unlock()
	found := s.found
	s.found = nil
	return found
}

// states returns the state of every copyset, without tails, in the order of
// their ids.
func (hs *histories) states() []State {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	states := make([]State, 0, len(hs.byID))
	for id, h := range hs.byID {
		states = append(states, State{
			Copyset: id, Promised: h.promised, LastEpoch: h.epoch, Last: h.last, Commit: h.commit,
			Tokens: maps.Clone(h.tokens),
		})
	}
	slices.SortFunc(states, func(a, b State) int { return cmp.Compare(a.Copyset, b.Copyset) })
	return states
}

// readTail completes a state with its tail. Nothing may be applied meanwhile.
func (s *Store) readTail(state *State) error {
	h := s.histories.byID[state.Copyset]
	next := h.commit + 1
	for _, k := range h.tail {
		if k.lsn != next {
			break
		}
		e, err := s.journal.entry(k.at)
		if err != nil {
			return err
		}
		state.Tail = append(state.Tail, e)
		next++
	}
	if next != h.last+1 {
		return fmt.Errorf("%w: journal lacks entry %d of copyset %d", ErrDamaged, next, state.Copyset)
	}
	return nil
}

// entry reads the entry at a place.
func (j *journal) entry(at position) (chunk.Entry, error) {
	r, payload, err := j.read(at)
	if err != nil {
		return chunk.Entry{}, err
	}
	return r.entry(payload)
}

// maxKept is the number of segments that entries may hold up that nobody
// commits. Beyond that, the entries are copied to the end of the journal.
const maxKept = 4

// keepTails copies the entries that hold up the oldest segments, if there are
// too many of those, and waits until the copies are durable.
func (s *Store) keepTails() error {
	places := s.histories.before(s.journal.last() - min(maxKept, s.journal.last()))
	if len(places) == 0 {
		return nil
	}
	written := make(chan error, len(places))
	for _, at := range places {
		r, payload, err := s.journal.read(at)
		if err != nil {
			return err
		}
		r.flags = flagKept
		it := newItem(r, append(make([]byte, recordHeader), payload...), nil)
		it.done = func(err error) { written <- err }
		if err := s.journal.queue.insist(it); err != nil {
			return err
		}
	}
	for range places {
		if err := <-written; err != nil {
			return err
		}
	}
	return nil
}

// last returns the number of the newest segment in use.
func (j *journal) last() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.live[len(j.live)-1]
}
