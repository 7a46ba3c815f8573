package replica

import "github.com/localsnap/localsnap/chunkserver/chunk"

// Effects is what the shell does after a [Core.Step], in the order of the
// fields. Its slices are reused by the next Step: the shell copies what it
// keeps. The operations' data is shared and never changed.
type Effects struct {
	// Promise, unless 0, is an epoch to promise: to be recorded durably
	// before any other effect is carried out. The entries handed out
	// earlier must be durable then, too.
	Promise chunk.Epoch

	// Reset, unless nil, says that the history goes on elsewhere. It, and all
	// that was handed out earlier, is to be durable before any later effect
	// is carried out; no [Durable] of what was handed out before may follow.
	Reset *History

	// Journal is to be appended to the history, whose end it continues.
	// [Durable] reports when it is durable; nobody waits for that before
	// the effects below, as journaling and sending go on in parallel. It
	// can't be declined: a shell that fails here stops for good, as others
	// may have the entries already.
	Journal []chunk.Entry

	// Copies are to be stored, in order with what is journaled.
	Copies []chunk.Copy

	// Trust says that this member is in sync: the content of the store is
	// what the history says.
	Trust bool

	// Send is to be sent, in this order for each receiver. What can't be
	// sent, as there is no connection, is dropped.
	Send []Envelope

	// Reply answers requests.
	Reply []Reply

	// Commit, unless 0, is the new commit point: entries up to it need not
	// be kept for other members any more.
	Commit chunk.LSN

	// Suspects are members whose word contradicts what they acknowledged
	// or what the configuration says of them: their disks can't be what
	// they were. The copyset waits until they are out of the
	// configuration; the metadata leader is to be told.
	Suspects []chunk.NodeID
}

// History is where a history goes on: behind LSN, which is of LastEpoch, with
// these tokens and no others.
type History struct {
	LastEpoch chunk.Epoch
	LSN       chunk.LSN
	Tokens    map[chunk.VolumeID]chunk.Token
}

// Envelope is a message with its receiver.
type Envelope struct {
	To      chunk.NodeID
	Message Message
}

// Reply answers the request with a ticket.
type Reply struct {
	Ticket Ticket
	Err    error // nil, or a bare chunk.ErrX

	// The end of the history, as [Seal] asked: the last LSN, and the epoch
	// of the entry there.
	LastEpoch chunk.Epoch
	Last      chunk.LSN
}

// clear empties the effects and keeps their room, but nothing in it.
func (e *Effects) clear() {
	clear(e.Journal)
	clear(e.Copies)
	clear(e.Send)
	*e = Effects{
		Journal:  e.Journal[:0],
		Copies:   e.Copies[:0],
		Send:     e.Send[:0],
		Reply:    e.Reply[:0],
		Suspects: e.Suspects[:0],
	}
}
