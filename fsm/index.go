package fsm

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"go.etcd.io/bbolt"
)

// The file holds, in one bucket per type, the records: JSON under a key that
// never changes. What is needed to find and count them is not in the records
// but follows from them: each tells its index entries, and put and remove keep
// the index in step. An entry belongs to a group, and groups are counted. So
// "the volumes in this directory" or "the clones of this snapshot" is a scan
// and a count, and there is no reference count that could be wrong.
//
//	index: u8 index | group | key -> value
//
// Groups of one index are of equal length or end in a zero byte, which names
// don't contain, so that no group is the beginning of another. Numbers are
// big-endian, in which their order is that of their bytes.

// record is one of the things that the state is made of.
type record interface {
	table() string // the bucket
	key() []byte
	entries() []entry
}

// entry is a record's entry in an index.
type entry struct {
	index      index
	group, key string
	value      string // what leads to the record
}

type index byte

const (
	byName        index = 'n' // directories and volumes; group: path of the directory; key: name; value: a fileRef
	byParent      index = 'c' // clones that read through; group: snapshot, live or trashed; key: id
	byFlattening  index = 'f' // clones being flattened; key: id
	byTrash       index = 'x' // volumes in the recycle bin; key: time, id
	byGarbage     index = 'g' // volumes with garbage; key: id
	byErosion     index = 'e' // volumes that are eroding; key: id
	bySeq         index = 's' // snapshots; group: visible or hidden, volume; key: sequence number; value: UUID
	bySnapshot    index = 'm' // visible snapshots; group: volume; key: name; value: UUID
	byOwner       index = 'u' // visible snapshots; group: user; key: volume, sequence number; value: UUID
	byVolume      index = 'v' // visible snapshots; key: volume, sequence number; value: UUID
	byDeletion    index = 'd' // snapshots being deleted; group: volume; key: sequence number; value: UUID
	byNumber      index = 't' // tasks; key: number; value: UUID
	byUser        index = 'o' // tasks; group: user; key: number; value: UUID
	byDestination index = 'w' // tasks; group: path; key: number; value: UUID
	byHead        index = 'h' // attachments of heads; group: volume, writer or reader; key: id
	byReader      index = 'r' // attachments of snapshots; group: UUID; key: id
	byStore       index = 'N' // chunkservers; key: UUID of the store; value: id
)

const (
	bucketIndex  = "index"
	bucketCounts = "counts"
	bucketMeta   = "meta"
)

// buckets are all there are.
var buckets = []string{
	bucketMeta, bucketIndex, bucketCounts,
	Volume{}.table(), Directory{}.table(), Snapshot{}.table(), Task{}.table(),
	Attachment{}.table(), Node{}.table(), pool{}.table(), copyset{}.table(),
}

// number is the key form of a number.
func number[N ~uint64 | ~uint32](n N) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(n)))
}

// fromNumber is the inverse of number.
func fromNumber(key []byte) uint64 { return binary.BigEndian.Uint64(key) }

// text is the key form of a string that begins a longer key.
func text(s string) string { return s + "\x00" }

func (s *State) bucket(name string) *bbolt.Bucket { return s.tx.Bucket([]byte(name)) }

// must turns a failure that only damage or a mistake can cause into a panic:
// whoever continued would diverge from the other servers.
func must(err error) {
	if err != nil {
		panic(fmt.Errorf("fsm: the state is damaged: %w", err))
	}
}

// load returns the record under a key.
func load[R record](s *State, key []byte) (r R, ok bool) {
	data := s.bucket(r.table()).Get(key)
	if data == nil {
		return r, false
	}
	must(json.Unmarshal(data, &r))
	return r, true
}

// all returns all records of a type, in the order of their keys.
func all[R record](s *State) []R {
	records := []R{}
	var r R
	must(s.bucket(r.table()).ForEach(func(_, data []byte) error {
		var r R
		records = append(records, r)
		return json.Unmarshal(data, &records[len(records)-1])
	}))
	return records
}

// put stores a record in place of the one that has its key.
func put[R record](s *State, r R) {
	var before []entry
	if old, ok := load[R](s, r.key()); ok {
		before = old.entries()
	}
	if after := r.entries(); !slices.Equal(before, after) {
		s.unlist(before)
		s.enlist(after)
	}
	data, err := json.Marshal(r)
	must(err)
	must(s.bucket(r.table()).Put(r.key(), data))
}

// remove deletes the record that has the key of r.
func remove[R record](s *State, r R) {
	old, ok := load[R](s, r.key())
	if !ok {
		return
	}
	s.unlist(old.entries())
	must(s.bucket(r.table()).Delete(r.key()))
}

// place is the entry's key in the index.
func (e entry) place() []byte { return place(e.index, e.group, e.key) }

func place(i index, group, key string) []byte {
	return slices.Concat([]byte{byte(i)}, []byte(group), []byte(key))
}

func (s *State) enlist(entries []entry) {
	for _, e := range entries {
		must(s.bucket(bucketIndex).Put(e.place(), []byte(e.value)))
		s.countIn(e)
	}
}

func (s *State) unlist(entries []entry) {
	for _, e := range entries {
		must(s.bucket(bucketIndex).Delete(e.place()))
		s.countOut(e)
	}
}

// find returns the value of the entry of a key, nil if there is none.
func (s *State) find(i index, group, key string) []byte {
	return s.bucket(bucketIndex).Get(place(i, group, key))
}

// scan calls fn with the keys and values of a group, in order, from a key on or
// from the beginning, until fn returns false. It may also be given what several
// groups begin with; then keys include the rest of their groups. fn must not
// change the state.
func (s *State) scan(i index, group, from string, fn func(key, value []byte) bool) {
	prefix := place(i, group, "")
	c := s.bucket(bucketIndex).Cursor()
	for k, v := c.Seek(append(prefix, from...)); bytes.HasPrefix(k, prefix); k, v = c.Next() {
		if !fn(k[len(prefix):], v) {
			return
		}
	}
}

// ids returns the volumes whose ids are the keys of a group.
func (s *State) ids(i index, group string) []chunk.VolumeID {
	ids := []chunk.VolumeID{}
	s.scan(i, group, "", func(key, _ []byte) bool {
		ids = append(ids, chunk.VolumeID(fromNumber(key)))
		return true
	})
	return ids
}

// uuids returns the values of a group.
func (s *State) uuids(i index, group string) []uuid.UUID {
	ids := []uuid.UUID{}
	s.scan(i, group, "", func(_, value []byte) bool {
		ids = append(ids, uuid.UUID(value))
		return true
	})
	return ids
}

// page returns a part of the entries of a group of a ranked index, each made into a T, and their
// total number. With a match, only what it accepts is counted and returned, and
// the whole group is looked at.
func page[T any](s *State, i index, group string, p Page, get func(value []byte) T, match func(*T) bool) ([]T, int) {
	found, total := []T{}, 0
	if match == nil {
		if total = s.count(i, group); p.Limit > 0 && p.Offset < total {
			s.scan(i, group, s.seek(i, group, p.Offset), func(_, value []byte) bool {
				found = append(found, get(value))
				return len(found) < p.Limit
			})
		}
		return found, total
	}
	s.scan(i, group, "", func(_, value []byte) bool {
		if t := get(value); match(&t) {
			if total >= p.Offset && len(found) < p.Limit {
				found = append(found, t)
			}
			total++
		}
		return true
	})
	return found, total
}

// single returns a part of a list of one.
func single[T any](t T, p Page) []T {
	if p.Offset > 0 || p.Limit <= 0 {
		return []T{}
	}
	return []T{t}
}

// counter names a sequence of numbers, of which none is handed out twice.
type counter string

const (
	counterFile       counter = "files"
	counterTask       counter = "tasks"
	counterAttachment counter = "attachments"
	counterNode       counter = "nodes"
)

// last returns the number that was handed out last, 0 for none.
func (s *State) last(c counter) uint64 {
	data := s.bucket(bucketMeta).Get([]byte(c))
	if data == nil {
		return 0
	}
	return binary.BigEndian.Uint64(data)
}

// next hands out a number.
func (s *State) next(c counter) uint64 {
	n := s.last(c) + 1
	must(s.bucket(bucketMeta).Put([]byte(c), binary.BigEndian.AppendUint64(nil, n)))
	return n
}
