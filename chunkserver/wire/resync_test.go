package wire

import (
	"errors"
	"reflect"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func TestPullIsWhatWasEncoded(t *testing.T) {
	want := Pull{
		Stream: Stream{Copyset: 3, Epoch: 4, Round: 5},
		Part:   chunk.Part{Ref: chunk.Ref{Volume: 6, Index: 7}, Seq: 8, Part: 9},
		Has:    chunk.Outline{Data: 0b101, Zero: 0b010, Hashes: []chunk.Hash{{1}, {2}}},
	}
	b := want.Append(nil)
	got, err := ParsePull(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParsePull: %+v, %v, want %+v", got, err, want)
	}
	for name, spoil := range map[string]func(b []byte) []byte{
		"cut short":       func(b []byte) []byte { return b[:pullLen-1] },
		"a hash too few":  func(b []byte) []byte { return b[:len(b)-16] },
		"no such part":    func(b []byte) []byte { b[32] = chunk.Parts; return b },
		"data and zeros":  func(b []byte) []byte { b[52] |= 1; return b },
		"volume 0":        func(b []byte) []byte { b[20] = 0; return b },
		"a hash too many": func(b []byte) []byte { return append(b, make([]byte, 16)...) },
	} {
		if _, err := ParsePull(spoil(want.Append(nil))); !errors.Is(err, chunk.ErrInvalid) {
			t.Errorf("%s: ParsePull: %v", name, err)
		}
	}
}
