package chunk

import (
	"encoding/binary"
	"fmt"
)

// MaxDepth bounds how many volumes a view may reach through: itself and the
// ancestors that it has not been flattened from.
const MaxDepth = 64

// maxRanges bounds the ranges of one lineage on the wire.
const maxRanges = 4096

// View is what somebody can read of a volume: its head or a snapshot. A
// block of the view comes from the youngest layer in its lineage that has
// it; if none has it, from the parent; without a parent it is zeros.
//
// A View is immutable once made; two views with equal keys are equal.
type View struct {
	volume  VolumeID
	lineage Lineage
	parent  *View
	key     string
}

// NewView returns the view of a volume through a lineage on top of parent,
// which is nil for a volume that is not, or no longer, a clone.
func NewView(volume VolumeID, lineage Lineage, parent *View) *View {
	v := &View{volume: volume, lineage: lineage, parent: parent}
	v.key = string(v.encode(nil))
	return v
}

// Volume is the volume whose layers the view sees.
func (v *View) Volume() VolumeID { return v.volume }

// Lineage tells which of the volume's layers the view sees.
func (v *View) Lineage() Lineage { return v.lineage }

// Parent is the view below, or nil.
func (v *View) Parent() *View { return v.parent }

// Key identifies the view; it is also its encoding, as [ParseView] reads it.
func (v *View) Key() string { return v.key }

// Depth is the number of volumes that the view reaches through.
func (v *View) Depth() int {
	depth := 0
	for ; v != nil; v = v.parent {
		depth++
	}
	return depth
}

// validate tells whether v is a view of volume that ParseView would accept.
func (v *View) validate(volume VolumeID) error {
	if v.volume != volume {
		return fmt.Errorf("%w: view of volume %d, not of %d", ErrInvalid, v.volume, volume)
	}
	if depth := v.Depth(); depth > MaxDepth {
		return fmt.Errorf("%w: view of %d volumes", ErrInvalid, depth)
	}
	for ; v != nil; v = v.parent {
		if !v.lineage.valid() || len(v.lineage) > maxRanges {
			return fmt.Errorf("%w: lineage %v", ErrInvalid, v.lineage)
		}
	}
	return nil
}

// The encoding of a view, little-endian:
//
//	u64 volume | u16 number of ranges | (u64 from, u64 to) each | u8 1 if the parent's encoding follows, else 0
func (v *View) encode(b []byte) []byte {
	b = binary.LittleEndian.AppendUint64(b, uint64(v.volume))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(v.lineage)))
	for _, r := range v.lineage {
		b = binary.LittleEndian.AppendUint64(b, uint64(r.From))
		b = binary.LittleEndian.AppendUint64(b, uint64(r.To))
	}
	if v.parent == nil {
		return append(b, 0)
	}
	return append(append(b, 1), v.parent.key...)
}

// ParseView decodes a view from the front of b and returns what follows it.
func ParseView(b []byte) (v *View, rest []byte, err error) {
	return parseView(b, MaxDepth)
}

func parseView(b []byte, depth int) (*View, []byte, error) {
	if depth == 0 {
		return nil, nil, fmt.Errorf("%w: view deeper than %d volumes", ErrInvalid, MaxDepth)
	}
	const fixed = 10
	if len(b) < fixed {
		return nil, nil, fmt.Errorf("%w: view cut short", ErrInvalid)
	}
	volume := VolumeID(binary.LittleEndian.Uint64(b))
	n := int(binary.LittleEndian.Uint16(b[8:]))
	b = b[fixed:]
	if n > maxRanges || len(b) < 16*n+1 {
		return nil, nil, fmt.Errorf("%w: view with %d ranges in %d bytes", ErrInvalid, n, len(b))
	}
	lineage := make(Lineage, n)
	for i := range lineage {
		lineage[i] = Range{Seq(binary.LittleEndian.Uint64(b[16*i:])), Seq(binary.LittleEndian.Uint64(b[16*i+8:]))}
	}
	if !lineage.valid() {
		return nil, nil, fmt.Errorf("%w: lineage %v", ErrInvalid, lineage)
	}
	hasParent, b := b[16*n], b[16*n+1:]
	switch hasParent {
	case 0:
		return NewView(volume, lineage, nil), b, nil
	case 1:
		parent, rest, err := parseView(b, depth-1)
		if err != nil {
			return nil, nil, err
		}
		return NewView(volume, lineage, parent), rest, nil
	}
	return nil, nil, fmt.Errorf("%w: view with parent mark %d", ErrInvalid, hasParent)
}
