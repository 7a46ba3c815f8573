package nbd

import (
	"encoding/binary"
	"net"
	"runtime"
	"sync"
)

// request is a request from when it is read until its reply has been sent.
type request struct {
	flags   uint16
	command uint16
	cookie  uint64
	offset  uint64
	length  uint32

	refusal error   // why the device must not see it
	cost    int64   // what it takes from the budget
	buffer  *buffer // for the data of READ and WRITE
	status  []byte  // answer to BLOCK_STATUS

	header  []byte // of the reply, in scratch
	payload []byte // of the reply: in buffer, status or the text of an error
	scratch [replySize]byte
}

var requestPool = sync.Pool{New: func() any { return new(request) }}

// newRequest decodes the fixed part of a request.
func newRequest(raw []byte) *request {
	r := requestPool.Get().(*request)
	*r = request{
		flags:   binary.BigEndian.Uint16(raw[4:]),
		command: binary.BigEndian.Uint16(raw[6:]),
		cookie:  binary.BigEndian.Uint64(raw[8:]),
		offset:  binary.BigEndian.Uint64(raw[16:]),
		length:  binary.BigEndian.Uint32(raw[24:]),
	}
	return r
}

// data is the buffer's part that the request is about.
func (r *request) data() []byte { return r.buffer.bytes[:r.length] }

// free gives the request and its buffer to those that come next.
func (r *request) free() {
	if r.buffer != nil {
		r.buffer.free()
	}
	*r = request{}
	requestPool.Put(r)
}

// encodeReply makes header and payload from the outcome of the request. When
// structured replies have been negotiated all replies are, of one chunk each.
func (r *request) encodeReply(structured bool, err error) {
	var errno uint32
	switch {
	case err != nil:
		errno = judge(err).errno
	case r.command == cmdRead:
		r.payload = r.data()
	case r.command == cmdBlockStatus:
		r.payload = r.status
	}
	if !structured {
		h := binary.BigEndian.AppendUint32(r.scratch[:0], magicSimple)
		h = binary.BigEndian.AppendUint32(h, errno)
		r.header = binary.BigEndian.AppendUint64(h, r.cookie)
		return
	}

	kind, extra := chunkNone, 0 // bytes of the chunk that go with the header
	switch {
	case err != nil:
		kind, extra = chunkError, 6
		r.payload = []byte(message(err))
	case r.command == cmdRead:
		kind, extra = chunkOffsetData, 8
	case r.command == cmdBlockStatus:
		kind = chunkBlockStatus
	}
	h := binary.BigEndian.AppendUint32(r.scratch[:0], magicStructured)
	h = binary.BigEndian.AppendUint16(h, chunkDone)
	h = binary.BigEndian.AppendUint16(h, kind)
	h = binary.BigEndian.AppendUint64(h, r.cookie)
	h = binary.BigEndian.AppendUint32(h, uint32(extra+len(r.payload)))
	switch kind {
	case chunkError:
		h = binary.BigEndian.AppendUint32(h, errno)
		h = binary.BigEndian.AppendUint16(h, uint16(len(r.payload)))
	case chunkOffsetData:
		h = binary.BigEndian.AppendUint64(h, r.offset)
	}
	r.header = h
}

// appendStatus encodes the descriptors of the only context that there is.
func appendStatus(b []byte, extents []Extent) []byte {
	b = binary.BigEndian.AppendUint32(b, allocationID)
	for _, e := range extents {
		var flags uint32
		if e.Hole {
			flags |= allocationHole
		}
		if e.Zero {
			flags |= allocationZero
		}
		b = binary.BigEndian.AppendUint32(b, uint32(e.Length))
		b = binary.BigEndian.AppendUint32(b, flags)
	}
	return b
}

// replies is the queue of a connection's replies. It is bounded by the budget,
// which a request leaves only when its reply has been sent.
type replies struct {
	conn net.Conn
	sent func(*request) // told of every reply that is out or dropped

	mu      sync.Mutex
	queue   []*request
	sending bool  // somebody sends; the fields below are theirs
	err     error // the first failure; all later replies are dropped

	batch   []*request
	vectors net.Buffers
}

// send queues a reply. If nobody is sending, the caller sends until the queue
// is empty.
func (q *replies) send(r *request) {
	q.mu.Lock()
	q.queue = append(q.queue, r)
	if q.sending {
		q.mu.Unlock()
		return
	}
	q.sending = true
	q.mu.Unlock()

	runtime.Gosched() // others that are ready get into the first batch

	q.mu.Lock()
	for len(q.queue) > 0 {
		q.batch, q.queue = q.queue, q.batch[:0]
		q.mu.Unlock()
		q.write()
		q.mu.Lock()
	}
	q.sending = false
	q.mu.Unlock()
}

// write sends the batch.
func (q *replies) write() {
	if q.err == nil {
		all := q.vectors[:0]
		for _, r := range q.batch {
			all = append(all, r.header)
			if len(r.payload) > 0 {
				all = append(all, r.payload)
			}
		}
		q.vectors = all
		if _, q.err = q.vectors.WriteTo(q.conn); q.err != nil {
			q.conn.Close() // ends the reading, too
		}
		clear(all)
		q.vectors = all
	}
	for i, r := range q.batch {
		q.sent(r)
		q.batch[i] = nil
	}
}
