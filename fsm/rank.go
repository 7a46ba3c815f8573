package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"slices"
)

// The page of a list at an offset is found without passing over all that comes
// before it, as entries are counted in spans. Some keys of a group are fences,
// of a level from 1 up, which makes them fences of the levels below too. A span
// begins at a fence, or at the beginning of the group, and ends before the next
// fence of its level; on the highest level there is one span, the whole group.
// Who looks for an offset passes over spans, level by level, and in the end
// over entries: over some 1<<fenceSpacing of each.
//
//	counts: u8 level | u8 index | group | first key -> u64 number of entries, if not 0
//
// The first key is left out of the span at the beginning of a group. Which keys
// are fences follows from the keys alone, so the counts do not depend on the
// order in which entries came and went, and Check can make them anew.
const (
	fenceLevels  = 3
	fenceSpacing = 5 // binary logarithm of the number of spans, on average, that a span of the next level consists of
	wholeGroup   = fenceLevels + 1
)

// ranked are the indexes of which pages are asked for. Of the others only the
// whole groups are counted.
var ranked = [256]bool{
	byName: true, bySeq: true, byOwner: true, byVolume: true, byNumber: true, byUser: true, byDestination: true,
}

// fence is the highest level on which the entry's key is a fence, 0 for none.
func (e entry) fence() int {
	if !ranked[e.index] {
		return 0
	}
	hash := sha256.Sum256([]byte(e.key)) // spreads keys of every kind
	return min(bits.TrailingZeros64(binary.BigEndian.Uint64(hash[:]))/fenceSpacing, fenceLevels)
}

// lowest is the lowest level on which the index of an entry is counted.
func (e entry) lowest() int {
	if ranked[e.index] {
		return 1
	}
	return wholeGroup
}

// span is the key in counts of the span of a level that begins at first.
func span(level int, i index, group, first string) []byte {
	return slices.Concat([]byte{byte(level), byte(i)}, []byte(group), []byte(first))
}

// count is the number of entries of a group.
func (s *State) count(i index, group string) int {
	return s.spanned(span(wholeGroup, i, group, ""))
}

// spanned is the number of entries in a span.
func (s *State) spanned(span []byte) int {
	data := s.bucket(bucketCounts).Get(span)
	if data == nil {
		return 0
	}
	return int(binary.BigEndian.Uint64(data))
}

// add adds n entries to a span.
func (s *State) add(span []byte, n int) {
	counts := s.bucket(bucketCounts)
	if n += s.spanned(span); n == 0 {
		must(counts.Delete(span))
		return
	}
	must(counts.Put(span, binary.BigEndian.AppendUint64(nil, uint64(n))))
}

// countIn counts an entry that the index has now.
func (s *State) countIn(e entry) {
	fence := e.fence()
	for level := e.lowest(); level <= wholeGroup; level++ {
		around, n := s.around(level, e), 1
		if level <= fence { // the span is cut in two
			behind := s.behind(level, e)
			s.add(span(level, e.index, e.group, e.key), behind)
			n -= behind
		}
		s.add(around, n)
	}
}

// countOut is the inverse of countIn, when the index has the entry no more.
func (s *State) countOut(e entry) {
	fence := e.fence()
	for level := e.lowest(); level <= wholeGroup; level++ {
		n := -1
		if level <= fence { // what it began joins the span before
			own := span(level, e.index, e.group, e.key)
			behind := s.spanned(own)
			s.add(own, -behind)
			n += behind
		}
		s.add(s.around(level, e), n)
	}
}

// around is the span of a level that an entry lies in, not counting one that
// begins with it.
func (s *State) around(level int, e entry) []byte {
	whole := span(level, e.index, e.group, "")
	if level == wholeGroup {
		return whole
	}
	c := s.bucket(bucketCounts).Cursor()
	if k, _ := c.Seek(span(level, e.index, e.group, e.key)); k == nil {
		return whole // as there is not even a whole group, of whatever index: these come last
	}
	if before, _ := c.Prev(); bytes.HasPrefix(before, whole) {
		return slices.Clone(before)
	}
	return whole
}

// behind is the number of entries from e on up to the next fence of a level, of
// which e is to become one.
func (s *State) behind(level int, e entry) (n int) {
	var end []byte
	s.spans(level, e.index, e.group, e.key, func(first []byte, _ int) bool {
		end = first
		return false
	})
	s.spans(level-1, e.index, e.group, e.key, func(first []byte, entries int) bool {
		if end != nil && bytes.Compare(first, end) >= 0 {
			return false
		}
		n += entries
		return true
	})
	return n
}

// spans calls fn with the spans of a level that begin at a key or behind it, in
// order, until fn returns false. On level 0, each entry is a span.
func (s *State) spans(level int, i index, group, from string, fn func(first []byte, n int) bool) {
	bucket, prefix := s.bucket(bucketCounts), span(level, i, group, "")
	if level == 0 {
		bucket, prefix = s.bucket(bucketIndex), prefix[1:]
	}
	c := bucket.Cursor()
	for k, v := c.Seek(append(prefix, from...)); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		n := 1
		if level > 0 {
			n = int(binary.BigEndian.Uint64(v))
		}
		if !fn(k[len(prefix):], n) {
			return
		}
	}
}

// seek returns the key of the entry at an offset in a ranked group, which must
// have so many.
func (s *State) seek(i index, group string, offset int) (key string) {
	for level := fenceLevels; level >= 0; level-- {
		s.spans(level, i, group, key, func(first []byte, n int) bool {
			if offset < n {
				key = string(first)
				return false
			}
			offset -= n
			return true
		})
	}
	return key
}
