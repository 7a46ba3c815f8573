package wire

import (
	"bytes"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

func anyView(t *rapid.T, volume chunk.VolumeID) *chunk.View {
	var parent *chunk.View
	if rapid.Bool().Draw(t, "clone") {
		parent = anyView(t, volume+1)
	}
	lineage := chunk.NewLineage()
	if frozen := chunk.Seq(rapid.Uint64Range(0, 100).Draw(t, "frozen")); frozen > 0 {
		lineage = lineage.Freeze(frozen)
	}
	return chunk.NewView(volume, lineage, parent)
}

// anyRange is a run of blocks of at most limit bytes.
func anyRange(t *rapid.T, limit uint32) (off, n uint32) {
	n = chunk.BlockSize * rapid.Uint32Range(1, min(limit, 8*chunk.BlockSize)/chunk.BlockSize).Draw(t, "blocks")
	return chunk.BlockSize * rapid.Uint32Range(0, (chunk.Size-n)/chunk.BlockSize).Draw(t, "at"), n
}

func anyOp(t *rapid.T) chunk.Op {
	op := chunk.Op{
		Kind: rapid.SampledFrom([]chunk.OpKind{chunk.OpWrite, chunk.OpZero, chunk.OpPurge, chunk.OpFlatten, chunk.OpFence}).Draw(t, "kind"),
		Ref: chunk.Ref{
			Volume: chunk.VolumeID(rapid.Uint64Range(1, 1<<63).Draw(t, "volume")),
			Index:  rapid.Uint32().Draw(t, "index"),
		},
	}
	switch op.Kind {
	case chunk.OpWrite, chunk.OpZero, chunk.OpFence:
		op.Token = chunk.Token{
			Attachment: rapid.Uint64().Draw(t, "attachment"),
			Seq:        chunk.Seq(rapid.Uint64Range(1, 1<<63).Draw(t, "seq")),
		}
	case chunk.OpPurge:
		op.UpTo = chunk.Seq(rapid.Uint64().Draw(t, "up to"))
		fallthrough
	case chunk.OpFlatten:
		for range rapid.IntRange(1, 3).Draw(t, "views") {
			op.Views = append(op.Views, anyView(t, op.Ref.Volume))
		}
	}
	if op.Kind != chunk.OpPurge && op.Kind != chunk.OpFence {
		op.Off, op.Len = anyRange(t, chunk.MaxOp)
	}
	if op.Kind == chunk.OpWrite {
		op.Data = bytes.Repeat([]byte{rapid.Byte().Draw(t, "data")}, int(op.Len))
		op.Sums = chunk.Checksums(nil, op.Data)
	}
	return op
}

func encode(s *Submit) []byte { return append(s.AppendHead(nil), s.Op.Data...) }

func TestSubmitRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		want := Submit{
			Copyset: chunk.CopysetID(rapid.Uint32().Draw(t, "copyset")),
			Epoch:   chunk.Epoch(rapid.Uint64().Draw(t, "epoch")),
			Op:      anyOp(t),
		}
		got, err := ParseSubmit(encode(&want))
		if err != nil {
			t.Fatal(err)
		}
		equal := cmp.Comparer(func(v, w *chunk.View) bool { return v.Key() == w.Key() })
		if diff := cmp.Diff(want, got, equal); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
	})
}

// Data that was damaged on the way is refused, wherever it was hit.
func TestSubmitWithDamagedDataIsRefused(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		s := Submit{Op: chunk.Op{Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: 1}, Token: chunk.Token{Seq: 1}}}
		s.Op.Off, s.Op.Len = anyRange(t, chunk.MaxOp)
		s.Op.Data = make([]byte, s.Op.Len)
		s.Op.Sums = chunk.Checksums(nil, s.Op.Data)
		b := encode(&s)
		hit := rapid.IntRange(len(b)-len(s.Op.Data)-4*len(s.Op.Sums), len(b)-1).Draw(t, "hit")
		b[hit] ^= 1 << rapid.IntRange(0, 7).Draw(t, "bit")
		if _, err := ParseSubmit(b); !errors.Is(err, chunk.ErrInvalid) {
			t.Fatalf("byte %d of %d: %v", hit, len(b), err)
		}
	})
}

func TestReadRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.SampledFrom([]uint32{chunk.BlockSize, chunk.MaxOp, chunk.Size}).Draw(t, "limit")
		want := Read{
			Copyset: chunk.CopysetID(rapid.Uint32().Draw(t, "copyset")),
			Epoch:   chunk.Epoch(rapid.Uint64().Draw(t, "epoch")),
			Index:   rapid.Uint32().Draw(t, "index"),
			View:    []byte(anyView(t, 1).Key()),
		}
		want.Off, want.Len = anyRange(t, limit)
		got, err := ParseRead(want.Append(nil), limit)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("(-want +got):\n%s", diff)
		}
		if _, err := ParseRead(want.Append(nil), want.Len-chunk.BlockSize); !errors.Is(err, chunk.ErrInvalid) {
			t.Fatalf("beyond the limit: %v", err)
		}
	})
}

func TestExtentsRoundTrip(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var want []Extent
		total := uint32(0)
		for range rapid.IntRange(0, 20).Draw(t, "count") {
			e := Extent{chunk.BlockSize * rapid.Uint32Range(1, 100).Draw(t, "blocks"), rapid.Bool().Draw(t, "data")}
			want = append(want, e)
			total += e.Len
		}
		b := AppendExtents(nil, want)
		got, err := ParseExtents(b, total)
		if err != nil {
			t.Fatal(err)
		}
		if len(got)+len(want) > 0 && !cmp.Equal(want, got) {
			t.Fatalf("%v became %v", want, got)
		}
		for _, wrong := range []uint32{total - chunk.BlockSize, total + chunk.BlockSize} {
			if _, err := ParseExtents(b, wrong); !errors.Is(err, chunk.ErrInvalid) {
				t.Fatalf("extents of %d bytes for %d: %v", total, wrong, err)
			}
		}
		if _, err := ParseExtents(append(b, 0), total); !errors.Is(err, chunk.ErrInvalid) {
			t.Fatalf("extents with a byte too many: %v", err)
		}
	})
}

// What is parsed is what its encoding parses to again, and every cut of a
// message is refused.
func FuzzParseSubmit(f *testing.F) {
	write := Submit{Copyset: 3, Epoch: 9, Op: chunk.Op{Kind: chunk.OpWrite, Ref: chunk.Ref{Volume: 1}, Token: chunk.Token{Attachment: 1, Seq: 1}, Len: chunk.BlockSize, Data: make([]byte, chunk.BlockSize)}}
	write.Op.Sums = chunk.Checksums(nil, write.Op.Data)
	purge := Submit{Op: chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: 1}, Views: []*chunk.View{chunk.NewView(1, chunk.NewLineage(), nil)}}}
	f.Add(encode(&write))
	f.Add(encode(&purge))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseSubmit(b)
		if err != nil {
			if !errors.Is(err, chunk.ErrInvalid) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		again, err := ParseSubmit(encode(&s))
		if err != nil {
			t.Fatalf("the encoding of %+v is refused: %v", s, err)
		}
		if !bytes.Equal(encode(&s), encode(&again)) {
			t.Fatalf("%+v became %+v", s, again)
		}
		if _, err := ParseSubmit(b[:len(b)-1]); err == nil {
			t.Fatal("the same without its last byte is accepted")
		}
	})
}

func FuzzParseRead(f *testing.F) {
	r := Read{Copyset: 3, Epoch: 9, Index: 1, Len: chunk.BlockSize, View: []byte{1, 2, 3}}
	f.Add(r.Append(nil), uint32(chunk.MaxOp))
	f.Add([]byte(nil), uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, limit uint32) {
		r, err := ParseRead(b, limit)
		if err != nil {
			if !errors.Is(err, chunk.ErrInvalid) {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if r.Len > limit || r.Len == 0 || uint64(r.Off)+uint64(r.Len) > chunk.Size {
			t.Fatalf("accepted %+v", r)
		}
		if !bytes.Equal(r.Append(nil), b) {
			t.Fatalf("%x became %x", b, r.Append(nil))
		}
	})
}
