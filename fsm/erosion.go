package fsm

import (
	"encoding/binary"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// What a volume's head reads in layers older than the one that it is written
// to becomes garbage when it is written over, unless the snapshot that the head
// went on from keeps it. If that snapshot is gone, a volume that has a writer
// erodes: garbage comes about of which no command tells. It is purged when the
// erosion ends, and by a [Sweep] at times.
//
// A volume that was never cloned, and no snapshot of which was deleted, does
// not erode.

// Sweep has those volumes purged that are eroding. Its value is their number,
// an int.
type Sweep struct {
	Time uint64 // microseconds since the epoch
}

var keySwept = []byte("swept")

// Swept returns when the last Sweep was, 0 for never, and whether any volume is
// eroding, for which another may be worth while.
func (s *State) Swept() (time uint64, eroding bool) {
	if data := s.bucket(bucketMeta).Get(keySwept); data != nil {
		time = binary.BigEndian.Uint64(data)
	}
	return time, s.count(byErosion, "") > 0
}

// erode brings Eroding up to date after a command that may have changed what
// it depends on: the writer, the snapshots, the flattening.
func (s *State) erode(id chunk.VolumeID) {
	v := s.volume(id)
	_, written := s.Writer(id)
	eroding := written && s.erodible(v)
	if eroding == v.Eroding {
		return
	}
	if v.Eroding {
		v.Garbage = s.index
	}
	v.Eroding = eroding
	put(s, v)
}

// erodible reports whether the head may read older layers that no snapshot is
// to keep as the head sees them.
func (s *State) erodible(v Volume) bool {
	if v.Seq == 1 { // then only flattening makes an older layer
		return v.Origin != nil && (v.Flattening || v.Parent == uuid.Nil)
	}
	before := v.Lineage.Freeze(v.Seq - 1)
	from := number(before[len(before)-1].To) // which only the snapshot froze that the head went on from
	id := s.find(bySeq, visible(v.ID), from)
	if id == nil {
		id = s.find(bySeq, hidden(v.ID), from)
	}
	return id == nil || s.snapshot(uuid.UUID(id)).Status != SnapshotDone
}

func (c Sweep) apply(s *State) (any, error) {
	volumes := s.ids(byErosion, "")
	for _, id := range volumes {
		v := s.volume(id)
		v.Garbage = s.index
		put(s, v)
	}
	must(s.bucket(bucketMeta).Put(keySwept, []byte(number(c.Time))))
	return len(volumes), nil
}
