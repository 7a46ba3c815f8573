package replica

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// TestTailModel compares a tail with a slice of all that was ever pushed.
func TestTailModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		op := rapid.Custom(func(t *rapid.T) chunk.Op {
			return chunk.Op{
				Kind: rapid.SampledFrom([]chunk.OpKind{chunk.OpWrite, chunk.OpZero, chunk.OpPurge, chunk.OpFlatten, chunk.OpFence}).Draw(t, "kind"),
				Ref:  chunk.Ref{Volume: chunk.VolumeID(rapid.Uint64Range(1, 2).Draw(t, "volume")), Index: rapid.Uint32Range(0, 1).Draw(t, "index")},
				Off:  rapid.Uint32Range(0, 6).Draw(t, "off") * chunk.BlockSize,
				Len:  rapid.Uint32Range(1, 3).Draw(t, "len") * chunk.BlockSize,
			}
		})
		var model []chunk.Entry
		committed := rapid.IntRange(0, 40).Draw(t, "committed")
		for lsn := range chunk.LSN(committed + rapid.IntRange(0, 40).Draw(t, "tail")) {
			model = append(model, chunk.Entry{LSN: lsn + 1, Op: op.Draw(t, "op")})
		}
		got := newTail(chunk.LSN(len(model)), model[committed:])
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				e := chunk.Entry{LSN: chunk.LSN(len(model) + 1), Op: op.Draw(t, "op")}
				model = append(model, e)
				got.push(slot{entry: e, asked: true, ticket: Ticket(e.LSN)})
			},
			"drop": func(t *rapid.T) {
				if committed < len(model) {
					got.drop()
					committed++
				}
			},
			"changes": func(t *rapid.T) {
				read := op.Draw(t, "read")
				want := chunk.LSN(0)
				for _, e := range model[committed:] {
					if shows(&e.Op, &read) {
						want = e.LSN
					}
				}
				if lsn := got.changes(read.Ref, read.Off, read.Len); lsn != want {
					t.Fatalf("%v is changed by %d, not by %d", shownOp(read), lsn, want)
				}
			},
			"": func(t *rapid.T) { checkTail(t, &got, model, committed) },
		})
	})
}

// shows reports whether a block of the read is one of the operation's.
func shows(op, read *chunk.Op) bool {
	if op.Kind != chunk.OpWrite && op.Kind != chunk.OpZero {
		return false
	}
	for _, a := range blocksOf(op) {
		for _, b := range blocksOf(read) {
			if a == b {
				return true
			}
		}
	}
	return false
}

func checkTail(t *rapid.T, got *tail, model []chunk.Entry, committed int) {
	if got.last() != chunk.LSN(len(model)) || got.first != chunk.LSN(committed+1) {
		t.Fatalf("from %d to %d, not from %d to %d", got.first, got.last(), committed+1, len(model))
	}
	used := 0
	for i := range got.ring {
		if got.ring[i].entry.LSN != 0 {
			used++
		}
	}
	if used != len(model)-committed {
		t.Fatalf("%d slots are used for %d entries", used, len(model)-committed)
	}
	for _, e := range model[committed:] {
		if s := got.at(e.LSN); !same(&s.entry, &e) || s.asked != (s.ticket != 0) {
			t.Fatalf("entry %d is %+v", e.LSN, s)
		}
	}
}
