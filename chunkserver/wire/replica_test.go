package wire

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/replica"
)

func anyMessage(t *rapid.T) replica.Message {
	number := func(name string) uint64 { return rapid.Uint64().Draw(t, name) }
	m := replica.Message{
		Kind:    replica.MessageKind(rapid.Uint8Range(1, 5).Draw(t, "kind")),
		Copyset: chunk.CopysetID(rapid.Uint32().Draw(t, "copyset")),
		Epoch:   chunk.Epoch(number("epoch")),
	}
	switch m.Kind {
	case replica.Probe:
		m.Round = number("round")
		m.Config = &chunk.Copyset{ID: m.Copyset, Epoch: m.Epoch, Primary: chunk.NodeID(rapid.Uint32().Draw(t, "primary"))}
		for range rapid.IntRange(0, 5).Draw(t, "members") {
			m.Config.Members = append(m.Config.Members, chunk.Member{
				Node:        chunk.NodeID(rapid.Uint32().Draw(t, "node")),
				Incarnation: chunk.Incarnation(number("incarnation")),
				State:       chunk.MemberState(rapid.Uint8Range(1, 3).Draw(t, "state")),
			})
		}
	case replica.Status:
		m.Round, m.LSN = number("round"), chunk.LSN(number("lsn"))
		m.Last, m.LastEpoch = chunk.LSN(number("last")), chunk.Epoch(number("last epoch"))
	case replica.Append:
		m.Entry = chunk.Entry{
			Copyset: m.Copyset,
			Epoch:   chunk.Epoch(number("entry epoch")),
			LSN:     chunk.LSN(number("entry lsn")),
			Commit:  chunk.LSN(number("entry commit")),
			Op:      anyOp(t),
		}
	default:
		m.LSN = chunk.LSN(number("lsn"))
	}
	return m
}

func encodeMessage(m *replica.Message) []byte {
	return append(AppendMessage(nil, m), m.Entry.Op.Data...)
}

func TestMessageRoundTrip(t *testing.T) {
	t.Parallel()
	equal := cmp.Comparer(func(v, w *chunk.View) bool { return v.Key() == w.Key() })
	rapid.Check(t, func(t *rapid.T) {
		want := anyMessage(t)
		b := encodeMessage(&want)
		got, err := ParseMessage(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if _, err := ParseMessage(b[:len(b)-1]); !errors.Is(err, chunk.ErrInvalid) {
			t.Fatalf("without its last byte: %v", err)
		}
	})
}

// Whoever accepts an operation can also pass it on.
func TestWhatIsSubmittedFitsIntoAMessage(t *testing.T) {
	t.Parallel()
	submit, message := Submit{}, replica.Message{Kind: replica.Append}
	more := len(AppendMessage(nil, &message)) - len(submit.AppendHead(nil))
	if longest := maxSubmit + more; longest > MaxPayload {
		t.Fatalf("an accepted operation makes a message of %d bytes, %d are allowed", longest, MaxPayload)
	}
	if _, err := ParseSubmit(make([]byte, maxSubmit+1)); !errors.Is(err, chunk.ErrInvalid) {
		t.Fatalf("a submit that is too long: %v", err)
	}
}

func FuzzParseMessage(f *testing.F) {
	probe := replica.Message{Kind: replica.Probe, Epoch: 2, Config: &chunk.Copyset{Epoch: 2, Primary: 1, Members: []chunk.Member{{Node: 1, Incarnation: 7, State: chunk.InSync}}}}
	ack := replica.Message{Kind: replica.Ack, Epoch: 2, LSN: 9}
	write := replica.Message{Kind: replica.Append, Entry: chunk.Entry{LSN: 1, Op: chunk.Op{Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: 1}, Token: chunk.Token{Seq: 1}, Len: chunk.BlockSize, Data: make([]byte, chunk.BlockSize)}}}
	write.Entry.Op.Sums = chunk.Checksums(nil, write.Entry.Op.Data)
	for _, m := range []*replica.Message{&probe, &ack, &write} {
		f.Add(encodeMessage(m))
	}
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := ParseMessage(b)
		if err != nil {
			if !errors.Is(err, chunk.ErrInvalid) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if again := encodeMessage(&m); !cmp.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
