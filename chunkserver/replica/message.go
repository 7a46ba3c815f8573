package replica

import (
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// MessageKind tells what a message says. The numbers are part of the wire
// format.
type MessageKind uint8

const (
	// Probe, from the primary: adopt Config if it is new; what do you have?
	Probe MessageKind = 1
	// Status answers the Probe of the same Round.
	Status MessageKind = 2
	// Append, from the primary: Entry is next in the history.
	Append MessageKind = 3
	// Ack, to the primary: the history is durable here up to LSN.
	Ack MessageKind = 4
	// Commit, from the primary: all in-sync members are durable up to LSN.
	Commit MessageKind = 5
	// Reset, from the primary to a member that is syncing: as of Round, your
	// history goes on behind LSN, of LastEpoch, with the tokens told before.
	Reset MessageKind = 6
	// Copy, from the primary to a member that is syncing: a part of a layer
	// is to be like this now.
	Copy MessageKind = 7
	// Tokens, from the primary to a member that is syncing, before Reset:
	// the largest tokens of some volumes.
	Tokens MessageKind = 8
)

func (k MessageKind) String() string {
	switch k {
	case Probe:
		return "probe"
	case Status:
		return "status"
	case Append:
		return "append"
	case Ack:
		return "ack"
	case Commit:
		return "commit"
	case Reset:
		return "reset"
	case Copy:
		return "copy"
	case Tokens:
		return "tokens"
	}
	return fmt.Sprintf("MessageKind(%d)", uint8(k))
}

// Message is what members of a copyset say to each other. A member ignores
// messages of any epoch but its own, except that a Probe brings it to a
// larger one.
type Message struct {
	Kind    MessageKind
	Copyset chunk.CopysetID
	Epoch   chunk.Epoch // of the configuration under which it was sent

	Round     uint64                         // Probe, Status: counts the probes of one member in one epoch; Reset, Copy, Tokens: the last one
	LSN       chunk.LSN                      // Status, Ack: durable up to here; Commit: the commit point; Reset, Copy: the end of the history
	Last      chunk.LSN                      // Status: the end of the history, durable or not
	LastEpoch chunk.Epoch                    // Status: the epoch of the entry at Last; Reset: of that at LSN
	Config    *chunk.Copyset                 // Probe; its Epoch and ID are the message's
	Entry     chunk.Entry                    // Append; its Commit is the commit point as of now
	Copy      *chunk.Copy                    // Copy
	Tokens    map[chunk.VolumeID]chunk.Token // Tokens; at most maxTokens
}

// maxTokens bounds the tokens of one message.
const maxTokens = 4096
