package fsm

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
	"go.etcd.io/bbolt"
)

// changed stores a record that has been changed past all commands.
func changed[R record](s *State, r R, change func(*R)) {
	change(&r)
	put(s, r)
}

// Check must see what it promises to see: each of these breaks one thing.
func TestCheckSeesDamage(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		breakIt func(*State)
		want    string // in what it says
	}{
		"index entry lost":    {func(s *State) { s.bucket(bucketIndex).Delete([]byte("n/\x00a")) }, "is missing"},
		"index entry made up": {func(s *State) { s.bucket(bucketIndex).Put([]byte("n/\x00z"), []byte("v12345678")) }, "index entry"},
		"count wrong":         {func(s *State) { s.add(span(wholeGroup, byName, "/\x00", ""), 1) }, "count of"},
		"count lost":          {func(s *State) { s.bucket(bucketCounts).Delete(span(wholeGroup, byName, "/\x00", "")) }, "is missing"},
		"span wrong":          {func(s *State) { s.add(span(1, byName, "/\x00", ""), -1) }, "count of"},
		"span made up":        {func(s *State) { s.add(span(2, byName, "/\x00", "a"), 1) }, "count of"},
		"record not JSON":     {func(s *State) { s.bucket("volumes").Put(Volume{ID: 3}.key(), []byte("{")) }, "unexpected end"},
		"record under another key": {func(s *State) {
			s.bucket("volumes").Put(Volume{ID: 90}.key(), s.bucket("volumes").Get(Volume{ID: 3}.key()))
			s.bucket("volumes").Delete(Volume{ID: 3}.key())
		}, "not under its key"},
		"record twice": {func(s *State) {
			s.bucket("volumes").Put(Volume{ID: 90}.key(), s.bucket("volumes").Get(Volume{ID: 3}.key()))
		}, "two records"},

		"directory beyond the counter": {func(s *State) { put(s, Directory{ID: 77, Path: "/x", User: "ann"}) }, "directory 77 is beyond"},
		"volume beyond the counter":    {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.ID, v.Path = 77, "/x" }) }, "volume 77 is beyond"},
		"volume without directory":     {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Path = "/no/a" }) }, "lies in nothing"},
		"volume without a name":        {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Path = "/a\n" }) }, "control character"},
		"trash out of the bin":         {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Trash = &Trash{} }) }, "has the trash"},
		"trash without its task":       {func(s *State) { changed(s, s.volume(8), func(v *Volume) { v.Trash.Task = nil }) }, "wrong task"},
		"trash with another's task":    {func(s *State) { changed(s, s.volume(8), func(v *Volume) { v.Trash.Task.Volume = 4 }) }, "wrong task"},
		"snapshot in the trash": {func(s *State) {
			put(s, Snapshot{UUID: id(5), Volume: 8, User: "ann", Name: "s", Lineage: chunk.NewLineage()})
		}, "is deleted but has 1 snapshots"},

		"head blind to its writes":   {func(s *State) { changed(s, s.volume(3), func(v *Volume) { v.Lineage = v.Lineage.Freeze(1) }) }, "does not see"},
		"flattening for nothing":     {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Flattening = true }) }, "without need"},
		"orphan clone":               {func(s *State) { remove(s, s.snapshot(id(1))) }, "which does not exist"},
		"parent being deleted":       {func(s *State) { changed(s, s.snapshot(id(1)), func(n *Snapshot) { n.Status = SnapshotDeleting }) }, "which is being deleted"},
		"clone elsewhere":            {func(s *State) { changed(s, s.volume(4), func(v *Volume) { v.Root = 4 }) }, "lies elsewhere"},
		"clone too deep":             {tooDeep, "volumes deep"},
		"task lost":                  {func(s *State) { remove(s, Task{UUID: id(10)}) }, "lost its task"},
		"snapshot of the future":     {func(s *State) { changed(s, s.volume(3), func(v *Volume) { v.Seq = 1 }) }, "snapshot " + id(1).String() + " froze"},
		"snapshot of nothing":        {func(s *State) { put(s, Snapshot{UUID: id(5), Volume: 99, Name: "s"}) }, "volume 99 does not exist"},
		"snapshot of another":        {func(s *State) { changed(s, s.snapshot(id(1)), func(n *Snapshot) { n.User = "bob" }) }, "belongs to bob"},
		"hidden snapshot unused":     {func(s *State) { changed(s, s.volume(5), func(v *Volume) { v.Parent = id(1) }) }, "without use"},
		"garbage of the future":      {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Garbage = 1 << 40 }) }, "was not applied"},
		"purging, but not found":     {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Path, v.Purging = "", true }) }, "won't be found"},
		"eroding without a writer":   {func(s *State) { changed(s, s.volume(7), func(v *Volume) { v.Eroding = true }) }, "is eroding"},
		"deleted snapshot not found": {loseDeletion, "to be purged: true, but is found: false"},

		"two writers": {func(s *State) {
			put(s, Attachment{ID: s.next(counterAttachment), Volume: 7})
			put(s, Attachment{ID: s.next(counterAttachment), Volume: 7})
		}, "2 writers"},
		"attachment to nothing":         {func(s *State) { put(s, Attachment{ID: s.next(counterAttachment), Volume: 99}) }, "volume 99 does not exist"},
		"attachment beyond the counter": {func(s *State) { put(s, Attachment{ID: 1, Volume: 7, ReadOnly: true}) }, "attachment 1 is beyond"},
		"reader of nothing": {func(s *State) {
			put(s, Attachment{ID: s.next(counterAttachment), Volume: 3, Snapshot: id(99), ReadOnly: true})
		}, "which it can't be"},

		"task without a number": {func(s *State) { changed(s, theTask(s), func(t *Task) { t.Number = 0 }) }, "has the number 0"},
		"task left behind":      {func(s *State) { changed(s, theTask(s), func(t *Task) { t.Destination = "/x" }) }, "but its volume is at"},
		"two tasks of one kind": {func(s *State) {
			changed(s, theTask(s), func(t *Task) { t.UUID, t.Number = id(50), s.next(counterTask) })
		}, "of one type and destination"},

		"pool of three":     {func(s *State) { put(s, pool{DefaultPool, 3}) }, "has 3 copysets"},
		"copyset misplaced": {func(s *State) { put(s, copyset{DefaultPool, chunk.Copyset{ID: 0}}) }, "of epoch 0"},
		"copyset of nobody": {func(s *State) {
			put(s, copyset{DefaultPool, chunk.Copyset{Epoch: 1, Members: []chunk.Member{{Node: 9, State: chunk.InSync}}}})
		}, "chunkserver 9 does not exist"},
	} {
		f, err := Open(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			t.Fatal(err)
		}
		f.db.NoSync = true
		do(t, f,
			CreateVolume{User: "ann", Path: "/a", Size: gib},                                             // 3
			CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},                              //
			Clone{User: "ann", Path: "/a", Name: "s", Destination: "/b", Lazy: true, UUID: id(10)},       // 4
			Clone{User: "ann", Path: "/a", Destination: "/c", Lazy: true, UUID: id(11), Hidden: id(2)},   // 5
			Clone{User: "ann", Path: "/a", Name: "s", Destination: "/rest", Lazy: true, UUID: id(12)},    // 6
			CreateVolume{User: "ann", Path: "/d", Size: gib, Layout: chunk.Layout{Unit: 4096, Count: 2}}, // 7
			Clone{User: "ann", Path: "/a", Name: "s", Destination: "/trash", Lazy: true, UUID: id(13)},   // 8
			Delete{User: "ann", Path: "/trash"},
			CreateSnapshot{User: "ann", Path: "/a", Name: "going", UUID: id(3)},
			DeleteSnapshot{User: "ann", UUID: id(3)},
			RegisterNode{Store: id(501), Address: "n1:1", Incarnation: 1},
			CreatePool{Name: DefaultPool, Copysets: []chunk.Copyset{{Epoch: 1, Members: []chunk.Member{{Node: 1, State: chunk.InSync}}}}},
		)
		if err := f.Check(); err != nil {
			t.Fatalf("before any damage: %v", err)
		}
		f.db.Update(func(tx *bbolt.Tx) error { c.breakIt(&State{tx: tx}); return nil })
		if err := f.Check(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: Check says %v, want %q", name, err, c.want)
		}
		f.Close()
	}
}

// theTask is the task of volume 4.
func theTask(s *State) Task {
	t, err := s.Task(Root, id(10))
	must(err)
	return t
}

// tooDeep makes clones of clones of volume 4, one too many.
func tooDeep(s *State) {
	for v := s.volume(4); s.depth(v) <= chunk.MaxDepth; {
		n := s.freeze(v, Snapshot{UUID: id(1000 + uint64(v.ID)), Hidden: true})
		v.ID = chunk.VolumeID(s.next(counterFile))
		v.Path, v.Parent = fmt.Sprint("/deep", v.ID), n.UUID
		put(s, v)
	}
}

// loseDeletion makes a deleted snapshot one that no purge is told of.
func loseDeletion(s *State) {
	n := s.snapshot(id(3))
	s.unlist([]entry{{byDeletion, number(n.Volume), number(n.Seq), string(n.UUID[:])}})
}
