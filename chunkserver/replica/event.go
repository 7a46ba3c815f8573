package replica

import "github.com/localsnap/localsnap/chunkserver/chunk"

// Ticket names a request that waits for a [Reply]. The shell chooses them; a
// ticket may be used again once it is answered. Every request is answered once;
// one that waits for members that don't answer is answered when they do, or
// when a larger epoch is promised.
type Ticket uint64

// Event is something that happened to a copyset at a chunkserver: one of
// [Configure], [Seal], [Submit], [Read], [Hold], [Release], [Need], [Receive],
// [Durable], [PeerUp] and [Tick].
type Event interface{ event() }

// Configure tells of a configuration that the metadata servers committed. One
// that is not new is ignored. The core keeps Config's members, which nobody
// may change any more.
type Configure struct {
	Config chunk.Copyset
}

// Seal asks the copyset to refuse, for good, everything of epochs smaller
// than Epoch. The [Reply] tells the end of the history here; it is
// [chunk.ErrStaleEpoch] if Epoch is promised to a later configuration, or is
// configured already.
type Seal struct {
	Ticket Ticket
	Epoch  chunk.Epoch
}

// Submit asks the primary to order an operation, which is well-formed and
// whose data nobody changes any more. The [Reply] comes when it is committed,
// or with one of
//
//   - [chunk.ErrStaleEpoch]: this is not the primary of Epoch, or no longer;
//   - [chunk.ErrNotReady]: not yet, or too few members are in sync;
//   - [chunk.ErrFenced]: a larger token of the volume is known.
//
// An operation refused with ErrStaleEpoch may have been ordered, and may be
// committed under a later epoch; the others were not ordered.
type Submit struct {
	Ticket Ticket
	Epoch  chunk.Epoch
	Op     chunk.Op
}

// Read asks whether what the shell has just read from the store, of whatever
// view of the chunk, may be answered. The shell read it after [Core.Serving]
// was Epoch. The [Reply] comes as soon as all operations that the data may
// show are committed, or with [chunk.ErrStaleEpoch] or [chunk.ErrNotReady] as
// for [Submit]: then the data must be thrown away.
type Read struct {
	Ticket Ticket
	Epoch  chunk.Epoch
	Ref    chunk.Ref
	Off    uint32 // bytes
	Len    uint32 // bytes
}

// Hold asks the primary to order nothing that writes to a range of a chunk,
// for a member that is syncing and pulls it. The [Reply] comes when all that
// was ordered before is durable here, and visible to readers. It is
// [chunk.ErrStaleEpoch] as for [Submit], or [chunk.ErrNotReady] if the member
// is not on the stream of Round. Otherwise [Release] must follow.
type Hold struct {
	Ticket Ticket
	Epoch  chunk.Epoch
	Node   chunk.NodeID
	Round  uint64
	Ref    chunk.Ref
	Off    uint32 // bytes
	Len    uint32 // bytes
}

// Release ends the Hold of Ticket and sends what was read to the member, who
// thereby gets it after all that it contains and before all that it doesn't.
type Release struct {
	Ticket Ticket
	Copy   *chunk.Copy // nil: there is nothing to be sent
}

// Need tells the primary that a member that is syncing has, durably, all that
// it had to pull on the stream of Round. From now on nothing is committed
// without it. The [Reply] comes at once, with the errors of [Hold].
type Need struct {
	Ticket Ticket
	Epoch  chunk.Epoch
	Node   chunk.NodeID
	Round  uint64
}

// Receive is a message of another member.
type Receive struct {
	From    chunk.NodeID
	Message Message
}

// Durable says that the entries handed out in [Effects].Journal are durable,
// and visible to readers, up to LSN.
type Durable struct {
	LSN chunk.LSN
}

// PeerUp says that messages to Node go over a new connection. Whatever was
// sent before may be lost.
type PeerUp struct {
	Node chunk.NodeID
}

// Tick says that a while has passed. The shell sends it a few times a second:
// members that hear nothing else are told the commit point then.
type Tick struct{}

func (Configure) event() {}
func (Seal) event()      {}
func (Submit) event()    {}
func (Read) event()      {}
func (Hold) event()      {}
func (Release) event()   {}
func (Need) event()      {}
func (Receive) event()   {}
func (Durable) event()   {}
func (PeerUp) event()    {}
func (Tick) event()      {}
