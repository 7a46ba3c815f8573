package replica

import (
	"fmt"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// shownOp prints an operation as scripts write it.
type shownOp chunk.Op

func (o shownOp) String() string {
	s := fmt.Sprintf("%v %v by %v", o.Kind, o.Ref, o.Token)
	if o.Len > 0 {
		s += fmt.Sprintf(" at %d+%d", o.Off/chunk.BlockSize, o.Len/chunk.BlockSize)
	}
	return s
}

// shownMessage prints a message.
type shownMessage Message

func (m shownMessage) String() string {
	s := fmt.Sprintf("%v of epoch %d", m.Kind, m.Epoch)
	switch m.Kind {
	case Probe:
		s += fmt.Sprintf(", round %d", m.Round)
	case Status:
		s += fmt.Sprintf(", round %d: ends at %d.%d, durable up to %d", m.Round, m.LastEpoch, m.Last, m.LSN)
	case Append:
		s += fmt.Sprintf(": %v, committed up to %d", shownEntry(m.Entry), m.Entry.Commit)
	case Reset:
		s += fmt.Sprintf(", round %d: behind %d.%d", m.Round, m.LastEpoch, m.LSN)
	case Copy:
		s += fmt.Sprintf(", round %d: behind %d", m.Round, m.LSN)
	case Tokens:
		s += fmt.Sprintf(", round %d: of %d volumes", m.Round, len(m.Tokens))
	case Ack, Commit:
		s += fmt.Sprintf(": %d", m.LSN)
	}
	return s
}

// shownEntry prints an entry.
type shownEntry chunk.Entry

func (e shownEntry) String() string {
	return fmt.Sprintf("%d.%d %v", e.Epoch, e.LSN, shownOp(e.Op))
}
