package chunk

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var compareViews = cmp.Comparer(func(a, b *View) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Key() == b.Key()
})

func anyLineage(t *rapid.T) Lineage {
	l := NewLineage()
	seq := Seq(1)
	for range rapid.IntRange(0, 6).Draw(t, "rollbacks") {
		to := l.Freeze(seq)
		seq += Seq(rapid.Uint64Range(1, 9).Draw(t, "seq"))
		l = to.Rollback(seq + 1)
		seq++
	}
	if rapid.Bool().Draw(t, "frozen") {
		l = l.Freeze(seq)
	}
	return l
}

func anyView(t *rapid.T, volume VolumeID) *View {
	var v *View
	for i := rapid.IntRange(0, 4).Draw(t, "parents"); i > 0; i-- {
		v = NewView(volume+VolumeID(i), anyLineage(t), v)
	}
	return NewView(volume, anyLineage(t), v)
}

func anyOp(t *rapid.T) Op {
	o := Op{
		Kind: OpKind(rapid.IntRange(int(OpWrite), int(OpFence)).Draw(t, "kind")),
		Ref:  Ref{VolumeID(rapid.Uint64Range(1, 1<<60).Draw(t, "volume")), rapid.Uint32().Draw(t, "index")},
	}
	blocks := uint32(rapid.IntRange(1, 5).Draw(t, "blocks"))
	ranged := func() {
		o.Off = BlockSize * rapid.Uint32Range(0, Blocks-blocks).Draw(t, "off")
		o.Len = BlockSize * blocks
	}
	switch o.Kind {
	case OpWrite, OpZero:
		o.Token = Token{rapid.Uint64().Draw(t, "attachment"), Seq(rapid.Uint64Range(1, 1<<40).Draw(t, "seq"))}
		ranged()
		if o.Kind == OpWrite {
			o.Data = bytes.Repeat(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "data"), int(o.Len)/16)
			o.Sums = Checksums(nil, o.Data)
		}
	case OpPurge:
		o.UpTo = Seq(rapid.Uint64().Draw(t, "up to"))
	case OpFlatten:
		ranged()
	case OpFence:
		o.Token = Token{rapid.Uint64().Draw(t, "attachment"), 3}
	}
	if o.Kind == OpPurge || o.Kind == OpFlatten {
		for range rapid.IntRange(0, 4).Draw(t, "views") {
			o.Views = append(o.Views, anyView(t, o.Ref.Volume))
		}
	}
	return o
}

func encode(o *Op) []byte { return append(o.AppendHeader(nil), o.Data...) }

func TestOpRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := anyOp(t)
		if err := o.Validate(); err != nil {
			t.Fatal(err)
		}
		b := encode(&o)
		if len(b) != o.EncodedLen() {
			t.Fatalf("%d bytes, EncodedLen says %d", len(b), o.EncodedLen())
		}
		got, err := ParseOp(b)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(o, got, compareViews); diff != "" {
			t.Fatal(diff)
		}
		if err := got.Verify(); err != nil {
			t.Fatal(err)
		}
		if _, err := ParseOp(b[:rapid.IntRange(0, len(b)-1).Draw(t, "cut")]); !errors.Is(err, ErrInvalid) {
			t.Fatalf("cut short: error %v", err)
		}
		if _, err := ParseOp(append(b, 0)); !errors.Is(err, ErrInvalid) {
			t.Fatalf("a byte too much: error %v", err)
		}
	})
}

func TestVerifyFindsAnyChange(t *testing.T) {
	data := bytes.Repeat([]byte{7}, 3*BlockSize)
	o := Op{Kind: OpWrite, Ref: Ref{1, 0}, Token: Token{1, 1}, Len: 3 * BlockSize, Data: data, Sums: Checksums(nil, data)}
	if err := o.Verify(); err != nil {
		t.Fatal(err)
	}
	data[2*BlockSize+5] ^= 4
	if err := o.Verify(); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "block 2") {
		t.Errorf("error %v, want one about block 2", err)
	}
}

func TestInvalidOps(t *testing.T) {
	ref, token := Ref{1, 0}, Token{1, 1}
	view := NewView(1, NewLineage(), nil)
	for name, o := range map[string]Op{
		"kind 0":                   {Ref: ref},
		"unknown kind":             {Kind: 77, Ref: ref},
		"volume 0":                 {Kind: OpFence, Token: token},
		"write of nothing":         {Kind: OpWrite, Ref: ref, Token: token},
		"zero, not aligned":        {Kind: OpZero, Ref: ref, Token: token, Off: 7, Len: BlockSize},
		"zero, length not aligned": {Kind: OpZero, Ref: ref, Token: token, Len: 100},
		"zero beyond the chunk":    {Kind: OpZero, Ref: ref, Token: token, Off: Size - BlockSize, Len: 2 * BlockSize},
		"zero at the base":         {Kind: OpZero, Ref: ref, Len: BlockSize},
		"zero at the end":          {Kind: OpZero, Ref: ref, Token: Token{1, MaxSeq}, Len: BlockSize},
		"flatten too much":         {Kind: OpFlatten, Ref: ref, Len: MaxOp + BlockSize},
		"purge with a range":       {Kind: OpPurge, Ref: ref, Len: BlockSize},
		"zero with views":          {Kind: OpZero, Ref: ref, Token: token, Len: BlockSize, Views: []*View{view}},
		"fence up to":              {Kind: OpFence, Ref: ref, UpTo: 3},
		"view of another volume":   {Kind: OpPurge, Ref: Ref{2, 0}, Views: []*View{view}},
	} {
		if err := o.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Validate: %v", name, err)
		}
		if _, err := ParseOp(encode(&o)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: ParseOp: %v", name, err)
		}
	}
	data := make([]byte, 2*BlockSize)
	for name, o := range map[string]Op{
		"sum missing":       {Kind: OpWrite, Ref: ref, Token: token, Len: 2 * BlockSize, Data: data, Sums: make([]uint32, 1)},
		"data missing":      {Kind: OpWrite, Ref: ref, Token: token, Len: 2 * BlockSize, Data: data[:BlockSize], Sums: make([]uint32, 2)},
		"data of a zero":    {Kind: OpZero, Ref: ref, Token: token, Len: BlockSize, Data: data[:BlockSize]},
		"view, bad lineage": {Kind: OpPurge, Ref: ref, Views: []*View{NewView(1, Lineage{{3, 4}}, nil)}},
	} {
		if err := o.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Validate: %v", name, err)
		}
	}
	whole := Op{Kind: OpZero, Ref: ref, Token: token, Len: Size}
	if err := whole.Validate(); err != nil {
		t.Errorf("zero of the whole chunk: %v", err)
	}
}

func FuzzParseOp(f *testing.F) {
	data := make([]byte, BlockSize)
	view := NewView(1, NewLineage().Freeze(3).Rollback(9), NewView(2, NewLineage(), nil))
	for _, o := range []Op{
		{Kind: OpWrite, Ref: Ref{1, 2}, Token: Token{1, 1}, Len: BlockSize, Data: data, Sums: Checksums(nil, data)},
		{Kind: OpZero, Ref: Ref{1, 2}, Token: Token{1, 1}, Len: BlockSize},
		{Kind: OpPurge, Ref: Ref{1, 2}, Views: []*View{view}, UpTo: 4},
	} {
		f.Add(encode(&o))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := ParseOp(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v is not ErrInvalid", err)
			}
			return
		}
		if err := o.Validate(); err != nil {
			t.Errorf("parsed, but not valid: %v", err)
		}
		again, err := ParseOp(encode(&o))
		if err != nil {
			t.Fatalf("own encoding: %v", err)
		}
		if diff := cmp.Diff(o, again, compareViews); diff != "" {
			t.Error(diff)
		}
	})
}

func FuzzParseView(f *testing.F) {
	f.Add([]byte(NewView(1, NewLineage().Freeze(3).Rollback(9), NewView(2, NewLineage(), nil)).Key()))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, rest, err := ParseView(b)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Errorf("error %v is not ErrInvalid", err)
			}
			return
		}
		if got := v.Key() + string(rest); got != string(b) {
			t.Error("the view's key and what follows are not what was parsed")
		}
		if v.Depth() > MaxDepth || !v.Lineage().valid() {
			t.Errorf("accepted a view of depth %d with lineage %v", v.Depth(), v.Lineage())
		}
	})
}

func TestViewsTooDeepAreRefused(t *testing.T) {
	var v *View
	for i := range MaxDepth {
		v = NewView(VolumeID(i+1), NewLineage(), v)
	}
	if _, _, err := ParseView([]byte(v.Key())); err != nil {
		t.Errorf("depth %d: %v", v.Depth(), err)
	}
	v = NewView(99, NewLineage(), v)
	if _, _, err := ParseView([]byte(v.Key())); !errors.Is(err, ErrInvalid) {
		t.Errorf("depth %d: %v", v.Depth(), err)
	}
	op := Op{Kind: OpPurge, Ref: Ref{99, 0}, Views: []*View{v}}
	if err := op.Validate(); !errors.Is(err, ErrInvalid) {
		t.Errorf("operation with a view of depth %d: %v", v.Depth(), err)
	}
}

// Tokens order by attachment first.
func TestTokens(t *testing.T) {
	ascending := []Token{{}, {0, 5}, {1, 0}, {1, 1}, {2, 0}, {2, MaxSeq}, {3, 1}}
	for i, a := range ascending {
		for j, b := range ascending {
			want := 0
			if i < j {
				want = -1
			} else if i > j {
				want = 1
			}
			if got := a.Compare(b); got != want {
				t.Errorf("%v compared with %v: %d", a, b, got)
			}
		}
	}
}
