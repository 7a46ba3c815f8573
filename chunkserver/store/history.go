package store

import (
	"cmp"
	"slices"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// histories is what is known of each copyset, as of what has been applied.
type histories struct {
	mu   sync.Mutex
	byID map[chunk.CopysetID]*history
}

// A history is one copyset's.
type history struct {
	promised chunk.Epoch
	epoch    chunk.Epoch // of the entry at last
	last     chunk.LSN
	commit   chunk.LSN
	tokens   map[chunk.VolumeID]chunk.Token
	changed  map[chunk.VolumeID]struct{} // tokens that the database lacks
	replaced bool                        // the database has tokens that are gone

	whole   bool      // what is here is what the history says, as far as it is here
	trusted chunk.LSN // what no later operation has changed, here or elsewhere, is too

	// tail is where the entries above commit are, in order. Invariant: the
	// journal keeps their segments.
	tail []keptEntry
}

type keptEntry struct {
	epoch chunk.Epoch
	lsn   chunk.LSN
	at    position
}

func newHistories() *histories {
	return &histories{byID: make(map[chunk.CopysetID]*history)}
}

// of returns the history of a copyset. mu must be held.
func (hs *histories) of(id chunk.CopysetID) *history {
	h := hs.byID[id]
	if h == nil {
		h = &history{tokens: make(map[chunk.VolumeID]chunk.Token), changed: make(map[chunk.VolumeID]struct{})}
		hs.byID[id] = h
	}
	return h
}

// record takes in what a journal record at a place says about its copyset.
func (hs *histories) record(r *record, b *body, at position) {
	if r.kind == recordMark {
		return
	}
	hs.mu.Lock()
	defer hs.mu.Unlock()
	h := hs.of(r.copyset)
	switch {
	case r.kind == recordPromise:
		h.promised = max(h.promised, r.epoch)
	case r.kind == recordReset:
		h.leave()
		h.epoch, h.last, h.commit = r.epoch, r.lsn, r.lsn
		for volume, token := range b.tokens {
			h.take(volume, token)
		}
	case r.kind == recordTrust:
		h.whole = true
	case r.kind == recordDrop:
		h.leave()
		h.epoch, h.last, h.commit, h.trusted = 0, 0, 0, 0
	case r.kind == recordEntry && r.flags&flagKept == 0:
		h.epoch, h.last = r.epoch, r.lsn
		h.take(b.op.Ref.Volume, b.op.Token)
	}
	h.retain(r, at)
	h.committed(r.commit)
}

// retained takes in a record of before the state that a checkpoint saved:
// only the tail is not in there. When all are, trim must follow.
func (hs *histories) retained(r *record, at position) {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if r.kind == recordEntry || r.kind == recordReset || r.kind == recordDrop {
		hs.of(r.copyset).retain(r, at)
	}
}

// trim drops what is committed from the tails.
func (hs *histories) trim() {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, h := range hs.byID {
		h.committed(h.commit)
	}
}

// retain brings the tail up to date with a record.
func (h *history) retain(r *record, at position) {
	switch {
	case r.kind == recordReset, r.kind == recordDrop:
		h.tail = nil
	case r.kind != recordEntry:
	case r.flags&flagKept == 0:
		i, _ := h.search(r.lsn)
		h.tail = append(h.tail[:i], keptEntry{r.epoch, r.lsn, at})
	default:
		// The copy may be of an entry that a reset has made void since.
		i, found := h.search(r.lsn)
		if !found && r.lsn <= h.last {
			h.tail = slices.Insert(h.tail, i, keptEntry{r.epoch, r.lsn, at})
		} else if found && h.tail[i].epoch == r.epoch {
			h.tail[i].at = at
		}
	}
}

func (h *history) search(lsn chunk.LSN) (int, bool) {
	if n := len(h.tail); n == 0 || h.tail[n-1].lsn < lsn {
		return n, false // as nearly always
	}
	return slices.BinarySearchFunc(h.tail, lsn, func(k keptEntry, lsn chunk.LSN) int { return cmp.Compare(k.lsn, lsn) })
}

// committed raises the commit LSN and lets go of the tail up to there.
func (h *history) committed(lsn chunk.LSN) {
	h.commit = max(h.commit, min(lsn, h.last))
	i, found := h.search(h.commit)
	if found {
		i++
	}
	h.tail = h.tail[i:]
}

// leave ends the history as it was. What was committed of it remains true of
// the content, unless that was being brought up to date.
func (h *history) leave() {
	if h.whole {
		h.whole, h.trusted = false, h.commit
	}
	h.tokens, h.replaced = make(map[chunk.VolumeID]chunk.Token), true
	clear(h.changed)
}

// end returns where the history of a copyset ends.
func (hs *histories) end(id chunk.CopysetID) chunk.LSN {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	return hs.of(id).last
}

func (h *history) take(volume chunk.VolumeID, token chunk.Token) {
	if token.Compare(h.tokens[volume]) > 0 {
		h.tokens[volume] = token
		h.changed[volume] = struct{}{}
	}
}

// oldest returns the place of the oldest entry that is kept, or end if that
// comes before.
func (hs *histories) oldest(end position) position {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	for _, h := range hs.byID {
		for _, k := range h.tail {
			if k.at.before(end) {
				end = k.at
			}
		}
	}
	return end
}

// before returns the places, in order, of the kept entries that lie before
// segment.
func (hs *histories) before(segment uint64) []position {
	hs.mu.Lock()
	defer hs.mu.Unlock()
	var places []position
	for _, h := range hs.byID {
		for _, k := range h.tail {
			if k.at.segment < segment {
				places = append(places, k.at)
			}
		}
	}
	slices.SortFunc(places, func(a, b position) int {
		return cmp.Or(cmp.Compare(a.segment, b.segment), cmp.Compare(a.off, b.off))
	})
	return places
}
