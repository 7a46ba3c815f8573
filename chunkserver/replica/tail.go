package replica

import "github.com/localsnap/localsnap/chunkserver/chunk"

// A tail is the end of a history, from the commit point on, in a ring. Every
// member keeps it, as each may become the primary that has to send it on.
type tail struct {
	ring []slot // its length is a power of two

	// Invariant: the ring holds the entries first to next-1 and is zero
	// elsewhere, so that the data of dropped entries can be collected.
	first, next chunk.LSN
}

// A slot is an entry and who waits for it to be committed.
type slot struct {
	entry  chunk.Entry
	asked  bool // by the client with ticket
	ticket Ticket
}

// newTail returns the tail of a history that ends at last.
func newTail(last chunk.LSN, entries []chunk.Entry) tail {
	t := tail{ring: make([]slot, 16)}
	t.first = last + 1 - chunk.LSN(len(entries))
	t.next = t.first
	for _, e := range entries {
		t.push(slot{entry: e})
	}
	return t
}

// last is the end of the history.
func (t *tail) last() chunk.LSN { return t.next - 1 }

// at returns the slot of an entry that the tail holds.
func (t *tail) at(lsn chunk.LSN) *slot { return &t.ring[uint64(lsn)&uint64(len(t.ring)-1)] }

func (t *tail) push(s slot) {
	if int(t.next-t.first) == len(t.ring) {
		t.grow()
	}
	*t.at(t.next) = s
	t.next++
}

func (t *tail) grow() {
	old := *t
	t.ring = make([]slot, 2*len(old.ring))
	for lsn := t.first; lsn < t.next; lsn++ {
		*t.at(lsn) = *old.at(lsn)
	}
}

// drop lets go of the oldest entry.
func (t *tail) drop() {
	*t.at(t.first) = slot{}
	t.first++
}

// changes returns the LSN of the last entry that changes what is read in a
// range of a chunk, or 0. Purging and flattening change nothing that any view
// shows.
func (t *tail) changes(ref chunk.Ref, off, n uint32) chunk.LSN {
	for lsn := t.next; lsn > t.first; {
		lsn--
		op := &t.at(lsn).entry.Op
		if op.Kind != chunk.OpWrite && op.Kind != chunk.OpZero {
			continue
		}
		if op.Ref == ref && overlap(op.Off, op.Len, off, n) {
			return lsn
		}
	}
	return 0
}
