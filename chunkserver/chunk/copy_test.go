package chunk

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

func someCopy() Copy {
	content := bytes.Repeat([]byte{7}, 2*BlockSize)
	return Copy{
		Part:    Part{Ref: Ref{Volume: 3, Index: 9}, Seq: 4, Part: 63},
		Data:    0b1011,
		Zero:    0b0100,
		Sent:    0b1010,
		Sums:    Checksums(nil, content),
		Content: content,
	}
}

func TestCopyIsWhatWasEncoded(t *testing.T) {
	want := someCopy()
	b := append(want.AppendHeader(nil), want.Content...)
	if len(b) != want.EncodedLen() {
		t.Errorf("encoded in %d bytes, EncodedLen is %d", len(b), want.EncodedLen())
	}
	got, err := ParseCopy(b)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ParseCopy: %+v, %v, want %+v", got, err, want)
	}
	if err := got.Verify(); err != nil {
		t.Error(err)
	}
	got.Content[5]++
	if err := got.Verify(); !errors.Is(err, ErrInvalid) {
		t.Errorf("Verify of another content: %v", err)
	}
}

func TestMalformedCopiesAreRefused(t *testing.T) {
	for name, spoil := range map[string]func(*Copy){
		"volume 0":           func(c *Copy) { c.Ref.Volume = 0 },
		"the live layer":     func(c *Copy) { c.Seq = MaxSeq },
		"part out of range":  func(c *Copy) { c.Part.Part = Parts },
		"data that is zeros": func(c *Copy) { c.Zero |= 1 },
		"sent without data":  func(c *Copy) { c.Data &^= 2 },
		"too few blocks":     func(c *Copy) { c.Content = c.Content[BlockSize:] },
		"too few sums":       func(c *Copy) { c.Sums = c.Sums[1:] },
	} {
		c := someCopy()
		spoil(&c)
		if err := c.Validate(); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: Validate: %v", name, err)
		}
		if _, err := ParseCopy(append(c.AppendHeader(nil), c.Content...)); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: ParseCopy: %v", name, err)
		}
	}
	if _, err := ParseCopy(make([]byte, copyFixed-1)); !errors.Is(err, ErrInvalid) {
		t.Error("a copy that is too short was parsed")
	}
}
