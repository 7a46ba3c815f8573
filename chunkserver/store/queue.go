package store

import (
	"context"
	"fmt"
	"hash/crc32"
	"sync"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// An item is a record on its way into the journal.
type item struct {
	record
	body
	head []byte      // room for the record's header, then the payload but for data
	data []byte      // the rest of the payload
	at   position    // where the writer has put it
	done func(error) // nil unless the item is the last of its request
}

// body is what a record's payload says.
type body struct {
	op     *chunk.Op                      // of recordEntry, unless it is kept
	tokens map[chunk.VolumeID]chunk.Token // of recordReset
	copied *chunk.Copy                    // of recordCopy
}

// newItem lays out a record whose payload is what head holds behind the
// record's header, then data.
func newItem(r record, head, data []byte) *item {
	payload := head[recordHeader:]
	r.payloadLen = uint32(len(payload) + len(data))
	r.payloadCRC = crc32.Update(crc32.Checksum(payload, castagnoli), castagnoli, data)
	return &item{record: r, head: head, data: data}
}

func entryItem(e *chunk.Entry) *item {
	head := make([]byte, recordHeader, recordHeader+e.Op.EncodedLen()-len(e.Op.Data))
	head = e.Op.AppendHeader(head)
	r := record{kind: recordEntry, copyset: e.Copyset, epoch: e.Epoch, lsn: e.LSN, commit: e.Commit}
	it := newItem(r, head, e.Op.Data)
	it.op = &e.Op
	return it
}

func copyItem(copyset chunk.CopysetID, c *chunk.Copy) *item {
	head := make([]byte, recordHeader, recordHeader+c.EncodedLen()-len(c.Content))
	it := newItem(record{kind: recordCopy, copyset: copyset}, c.AppendHeader(head), c.Content)
	it.copied = c
	return it
}

func resetItem(r record, tokens map[chunk.VolumeID]chunk.Token) *item {
	it := newItem(r, appendTokens(make([]byte, recordHeader, recordHeader+tokenLen*len(tokens)), tokens), nil)
	it.tokens = tokens
	return it
}

func wordItem(r record) *item { return newItem(r, make([]byte, recordHeader), nil) }

// queue holds what was accepted and not yet journaled, and decides what is.
type queue struct {
	limit   int64 // of bytes
	longest int64 // record that fits into a segment

	mu      sync.Mutex
	waiting []*item
	bytes   int64                         // accepted and not yet released
	held    bool                          // nothing is accepted for the time being
	ends    map[chunk.CopysetID]chunk.LSN // Invariant: of each copyset, the last LSN accepted
	err     error                         // why nothing is accepted any more
	wake    chan struct{}                 // one token: there is something to take, or err is set
	room    chan struct{}                 // closed when it may be worth asking again
}

func newQueue(limit, longest int64) *queue {
	return &queue{
		limit:   limit,
		longest: longest,
		ends:    make(map[chunk.CopysetID]chunk.LSN),
		wake:    make(chan struct{}, 1),
		room:    make(chan struct{}),
	}
}

// accept takes items, which become one piece of the order, and blocks while
// there is no room. check is called with mu held when there is.
func (q *queue) accept(ctx context.Context, items []*item, done func(error), check func() error) error {
	var bytes int64
	for _, it := range items {
		if it.size() > q.longest {
			return fmt.Errorf("%w: entry of %d bytes", chunk.ErrInvalid, it.payloadLen)
		}
		bytes += it.size()
	}
	items[len(items)-1].done = done
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.err == nil && (q.held || q.bytes > 0 && q.bytes+bytes > q.limit) {
		room := q.room
		q.mu.Unlock()
		select {
		case <-room:
		case <-ctx.Done():
		}
		q.mu.Lock()
		if ctx.Err() != nil {
			return fmt.Errorf("journal queue is full: %w", ctx.Err())
		}
	}
	if q.err != nil {
		return q.err
	}
	if err := check(); err != nil {
		return err
	}
	q.bytes += bytes
	q.push(items)
	return nil
}

// insist takes an item of the store's own, whatever the room.
func (q *queue) insist(it *item) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return q.err
	}
	q.bytes += it.size()
	q.push([]*item{it})
	return nil
}

func (q *queue) push(items []*item) {
	q.waiting = append(q.waiting, items...)
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// extend checks that entries go on where their copysets ended, and moves the
// ends. mu must be held.
func (q *queue) extend(entries []chunk.Entry) error {
	for i := range entries {
		e := &entries[i]
		if last := q.ends[e.Copyset]; e.LSN != last+1 {
			for j := range i {
				q.ends[entries[j].Copyset]--
			}
			return fmt.Errorf("%w: entry %d of copyset %d after %d", chunk.ErrInvalid, e.LSN, e.Copyset, last)
		}
		q.ends[e.Copyset] = e.LSN
	}
	return nil
}

// take waits for items and returns as many of them, in order, as fit into
// limit bytes, but at least one. It reports false when there will be no more.
func (q *queue) take(limit int64) ([]*item, bool) {
	for {
		q.mu.Lock()
		if len(q.waiting) > 0 {
			break
		}
		err := q.err
		q.mu.Unlock()
		if err != nil {
			return nil, false
		}
		<-q.wake
	}
	defer q.mu.Unlock()
	n, bytes := 0, int64(0)
	for n < len(q.waiting) && (n == 0 || bytes+q.waiting[n].size() <= limit) {
		bytes += q.waiting[n].size()
		n++
	}
	items := q.waiting[:n:n]
	q.waiting = q.waiting[n:]
	if len(q.waiting) == 0 {
		q.waiting = nil
	}
	return items, true
}

// release gives back the room of n bytes.
func (q *queue) release(n int64) {
	q.mu.Lock()
	q.bytes -= n
	q.stir()
	q.mu.Unlock()
}

// hold stops and starts accepting.
func (q *queue) hold(held bool) {
	q.mu.Lock()
	q.held = held
	q.stir()
	q.mu.Unlock()
}

// close refuses, with err, what comes from now on. The first call counts.
func (q *queue) close(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.err != nil {
		return
	}
	q.err = err
	q.stir()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// stir makes those who wait for room look again. mu must be held.
func (q *queue) stir() {
	close(q.room)
	q.room = make(chan struct{})
}
