package chunk

import "fmt"

// MaxStripes bounds Layout.Count.
const MaxStripes = 64

// Layout says how the bytes of a volume are dealt out to its chunks. The zero
// Layout puts them one chunk after the other. Otherwise Count chunks are
// filled side by side, Unit bytes of each in turn; then the next Count.
type Layout struct {
	Unit  uint64 // bytes, a multiple of BlockSize that divides Size
	Count uint64 // chunks, 1 to MaxStripes
}

// Validate tells what is wrong with a layout.
func (l Layout) Validate() error {
	switch {
	case l == Layout{}:
		return nil
	case l.Unit == 0 || l.Count == 0:
		return fmt.Errorf("stripe unit %d and stripe count %d: both must be 0 or both set", l.Unit, l.Count)
	case l.Unit%BlockSize != 0 || l.Unit > Size || Size%l.Unit != 0:
		return fmt.Errorf("stripe unit %d: must be a multiple of %d that divides %d", l.Unit, BlockSize, Size)
	case l.Count > MaxStripes:
		return fmt.Errorf("stripe count %d: must be 1 to %d", l.Count, MaxStripes)
	}
	return nil
}

// Locate returns where the byte at off lies, and for how many bytes from
// there on volume and chunk run in parallel.
func (l Layout) Locate(off uint64) (index uint32, in uint32, run uint32) {
	if l.Count <= 1 {
		in = uint32(off % Size)
		return uint32(off / Size), in, Size - in
	}
	stripe, within := off/l.Unit, off%l.Unit
	row, column := stripe/l.Count, stripe%l.Count
	rows := Size / l.Unit // rows of stripes in one set of chunks
	index = uint32(row/rows*l.Count + column)
	in = uint32(row%rows*l.Unit + within)
	return index, in, uint32(l.Unit - within)
}

// Chunks returns how many chunks a volume of size bytes may have; with
// stripes, the last set of chunks is counted whole.
func (l Layout) Chunks(size uint64) uint32 {
	n := (size + Size - 1) / Size
	if l.Count > 1 {
		n = (n + l.Count - 1) / l.Count * l.Count
	}
	return uint32(n)
}
