package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// refused carries out a command that must be refused.
func refused(t *testing.T, f *FSM, c Command, want Kind) {
	t.Helper()
	if _, err := apply(t, f, c); kind(t, err) != want {
		t.Fatalf("%#v: %v, want kind %d", c, err, want)
	}
}

func snapshot(t *testing.T, f *FSM, id uuid.UUID) Snapshot {
	t.Helper()
	return ask(t, f, func(s *State) (Snapshot, error) { return s.SnapshotByUUID(Root, id, "") })
}

func task(t *testing.T, f *FSM, id uuid.UUID) Task {
	t.Helper()
	return ask(t, f, func(s *State) (Task, error) { return s.Task(Root, id) })
}

// list is a page of a directory, directories with a slash behind.
func list(t *testing.T, f *FSM, dir string, p Page) string {
	t.Helper()
	return ask(t, f, func(s *State) (string, error) {
		files, total, err := s.List("ann", dir, p)
		names := []string{}
		for _, file := range files {
			if file.Directory != nil {
				names = append(names, file.Directory.Path+"/")
			} else {
				names = append(names, file.Volume.Path)
			}
		}
		return fmt.Sprintf("%s of %d", strings.Join(names, " "), total), err
	})
}

func TestSettingsAreGivenOnce(t *testing.T) {
	t.Parallel()
	f := open(t)
	get := func() Settings {
		return ask(t, f, func(s *State) (Settings, error) { return s.Settings(), nil })
	}
	if get() != DefaultSettings(uuid.Nil) {
		t.Errorf("settings of a new state: %+v", get())
	}
	first, second := DefaultSettings(id(1)), DefaultSettings(id(2))
	first.SnapshotLimit = 7
	do(t, f, InitCluster{Time: 9, Settings: first})
	if got := do(t, f, InitCluster{Time: 10, Settings: second}); got != first || get() != first {
		t.Errorf("settings after a second InitCluster: %+v, %+v", got, get())
	}
	bin := ask(t, f, func(s *State) (File, error) { return s.File(Root, RecycleBin) })
	if bin.Directory.Time != 9 || bin.Directory.User != Root {
		t.Errorf("recycle bin: %+v", bin.Directory)
	}
}

func TestListsArePaged(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f,
		CreateVolume{User: "bob", Path: "/c", Size: gib},
		CreateVolume{User: "ann", Path: "/a", Size: gib},
		CreateDir{User: "ann", Path: "/b"},
		CreateVolume{User: "ann", Path: "/b/x", Size: gib},
	)
	for _, c := range []struct {
		dir  string
		page Page
		want string
	}{
		{"/", Page{0, 10}, "/RecycleBin/ /a /b/ /c of 4"},
		{"/", Page{1, 2}, "/a /b/ of 4"},
		{"/", Page{3, 2}, "/c of 4"},
		{"/", Page{4, 2}, " of 4"},
		{"/", Page{0, 0}, " of 4"},
		{"/b", Page{0, 10}, "/b/x of 1"},
		{RecycleBin, Page{0, 10}, " of 0"},
	} {
		if got := list(t, f, c.dir, c.page); got != c.want {
			t.Errorf("%s %+v: %s, want %s", c.dir, c.page, got, c.want)
		}
	}
}

func TestRepetitionsGetTheSameAnswer(t *testing.T) {
	t.Parallel()
	f := open(t)
	volume := CreateVolume{User: "ann", Path: "/a", Size: gib}
	snap := CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)}
	byName := Clone{User: "ann", Path: "/a", Name: "s", Destination: "/b", Lazy: true, UUID: id(11)}
	byUUID := Clone{User: "ann", Snapshot: id(1), Destination: "/c", UUID: id(12)}
	byPath := Clone{User: "ann", Path: "/a", Destination: "/d", Lazy: true, UUID: id(13), Hidden: id(2)}
	rollback := Recover{User: "ann", Path: "/a", Name: "s", UUID: id(14)}
	for _, c := range []Command{
		CreateDir{User: "ann", Path: "/dir"}, volume, snap, byName, byUUID, byPath, rollback,
		Extend{User: "ann", Path: "/a", Size: 2 * gib},
		Rename{User: "ann", Path: "/a", Destination: "/dir/a"},
		Flatten{User: "ann", Path: "/b"}, Flatten{User: "ann", UUID: id(11)}, Flatten{User: "ann", Path: "/dir/a"},
		Delete{User: "ann", Path: "/never"}, DeleteSnapshot{User: "ann", UUID: id(99)},
		DeleteSnapshot{User: "ann", Path: "/never", Name: "s"}, DeleteSnapshot{User: "ann", Path: "/dir/a", Name: "never"},
		Detach{Attachment: 99},
	} {
		first := do(t, f, c)
		before := dump(f)
		c = renewed(c)
		if diff := cmp.Diff(first, do(t, f, c)); diff != "" {
			t.Errorf("%#v: a second answer (-first +second):\n%s", c, diff)
		}
		if diff := cmp.Diff(before, dump(f)); diff != "" {
			t.Errorf("%#v: a second effect:\n%s", c, diff)
		}
	}
}

// renewed is what a command is like if the same request comes again: the
// proposer has chosen other ids and another time.
func renewed(c Command) Command {
	switch c := c.(type) {
	case CreateVolume:
		c.Time++
		return c
	case CreateSnapshot:
		c.Time, c.UUID = c.Time+1, id(1000)
		return c
	case Clone:
		c.Time, c.UUID, c.Hidden = c.Time+1, id(1001), id(1002)
		return c
	case Recover:
		c.Time, c.UUID = c.Time+1, id(1003)
		return c
	}
	return c
}

func TestCloneIsKnownAfterItsTaskAndSourceAreGone(t *testing.T) {
	t.Parallel()
	f := open(t)
	c := Clone{User: "ann", Snapshot: id(1), Destination: "/b", UUID: id(11)}
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib},
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
		c,
		FlattenDone{Volume: 4},
		CleanTask{User: "ann", UUID: id(11)},
		DeleteSnapshot{User: "ann", UUID: id(1)},
		PurgeDone{Volume: 3, Snapshots: []uuid.UUID{id(1)}},
	)
	c.UUID = id(12)
	got := do(t, f, c).(Task)
	if got.UUID != id(11) || got.Status != TaskDone || !got.FromSnapshot || got.Destination != "/b" {
		t.Errorf("answer to the repetition: %+v", got)
	}
}

func TestSnapshotsFreezeAndCountUp(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f, CreateVolume{User: "ann", Path: "/a", Size: gib})
	for i := range uint64(3) {
		n := do(t, f, CreateSnapshot{User: Root, Path: "/a", Name: fmt.Sprint(i), UUID: id(1 + i), Time: i}).(Snapshot)
		if n.Seq != chunk.Seq(1+i) || n.User != "ann" || n.Path != "/a" || n.Progress != 100 || n.Time != i {
			t.Errorf("snapshot %d: %+v", i, n)
		}
	}
	do(t, f,
		Extend{User: "ann", Path: "/a", Size: 3 * gib},
		Recover{User: "ann", Snapshot: id(1), Destination: "/a", Lazy: true, UUID: id(10)},
	)
	v := volume(t, f, "/a")
	if v.Seq != 5 || v.Size != gib || !cmp.Equal(v.Lineage, chunk.Lineage{{From: 0, To: 1}, {From: 5, To: chunk.MaxSeq}}) {
		t.Errorf("after rollback to the first snapshot: %+v", v)
	}
	if n := snapshot(t, f, id(3)); n.Seq != 3 || n.Size != gib {
		t.Errorf("the last snapshot has changed: %+v", n)
	}
	if got := task(t, f, id(10)); got.Status != TaskDone || got.Type != TaskRecover || !got.Lazy || got.Source != id(1).String() {
		t.Errorf("task of the rollback: %+v", got)
	}
	do(t, f, Flatten{User: "ann", UUID: id(10)}) // of a recover: nothing to do
}

// A repeated Recover is one only as long as nobody has written to the result.
func TestRecoverAfterWritingIsNew(t *testing.T) {
	t.Parallel()
	f := open(t)
	c := Recover{User: "ann", Path: "/a", Name: "s", UUID: id(10)}
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib},
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
		c, Attach{Path: "/a", Session: id(9)}, Detach{Attachment: 1},
	)
	seq := volume(t, f, "/a").Seq
	c.UUID = id(11)
	if got := do(t, f, c).(Task); got.UUID != id(11) {
		t.Errorf("a writer's work was kept: answer %+v", got)
	}
	if volume(t, f, "/a").Seq != seq+1 {
		t.Error("a writer's work was kept")
	}
}

func TestLineagesAreBounded(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f, CreateVolume{User: "ann", Path: "/a", Size: gib})
	for i := uint64(0); i < maxRanges-1; i++ {
		do(t, f,
			CreateSnapshot{User: "ann", Path: "/a", Name: fmt.Sprint(i), UUID: id(1 + i)},
			Recover{User: "ann", Snapshot: id(1 + i), UUID: id(10000 + i)},
		)
	}
	do(t, f, CreateSnapshot{User: "ann", Path: "/a", Name: "last", UUID: id(9000)})
	refused(t, f, Recover{User: "ann", Snapshot: id(9000), UUID: id(9001)}, Unsupported)
	do(t, f, Recover{User: "ann", Snapshot: id(1), UUID: id(9002)})
}

func TestDepthIsBounded(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f, CreateVolume{User: "ann", Path: "/1", Size: gib})
	for i := uint64(1); i < chunk.MaxDepth; i++ {
		do(t, f, Clone{User: "ann", Path: fmt.Sprintf("/%d", i), Destination: fmt.Sprintf("/%d", i+1), Lazy: true, UUID: id(1000 + i), Hidden: id(i)})
	}
	deepest := volume(t, f, fmt.Sprintf("/%d", chunk.MaxDepth))
	view := ask(t, f, func(s *State) (*chunk.View, error) { return s.HeadView(deepest.ID) })
	if view.Depth() != chunk.MaxDepth || deepest.Root != volume(t, f, "/1").ID {
		t.Errorf("depth %d, root %d", view.Depth(), deepest.Root)
	}
	if _, rest, err := chunk.ParseView([]byte(view.Key())); err != nil || len(rest) > 0 {
		t.Errorf("the view can't be sent: %v", err)
	}
	more := Clone{User: "ann", Path: deepest.Path, Destination: "/more", Lazy: true, UUID: id(2000), Hidden: id(3000)}
	refused(t, f, more, Unsupported)
	do(t, f, Flatten{User: "ann", Path: "/32"}, FlattenDone{Volume: volume(t, f, "/32").ID}, more)
}

func TestTrashKeepsAndExpires(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f,
		CreateDir{User: "ann", Path: "/d"},                 // 3
		CreateVolume{User: "ann", Path: "/d/a", Size: gib}, // 4
		CreateVolume{User: "ann", Path: "/b", Size: gib},   // 5
		Delete{User: "ann", Path: "/b", Time: 20},
		Delete{User: "ann", Path: "/d/a", Time: 10},
	)
	if got := list(t, f, RecycleBin, Page{0, 10}); got != "/RecycleBin/a-4 /RecycleBin/b-5 of 2" {
		t.Fatal(got)
	}
	oldest := func() uint64 {
		return ask(t, f, func(s *State) (uint64, error) { time, _ := s.OldestTrash(); return time, nil })
	}
	if oldest() != 10 {
		t.Errorf("oldest %d, want 10", oldest())
	}
	back := RestoreFile{User: "ann", Path: "/RecycleBin/a-4"}
	first := do(t, f, back)
	if diff := cmp.Diff(first, do(t, f, back)); diff != "" { // a repetition
		t.Error(diff)
	}
	do(t, f, Delete{User: "ann", Path: "/d/a", Time: 30}, Delete{User: "ann", Path: "/d"})
	refused(t, f, back, NotExist) // its directory is gone
	do(t, f, CreateDir{User: "bob", Path: "/d"})
	refused(t, f, back, NotOwner)

	if n := do(t, f, ExpireTrash{Before: 19}); n != 0 {
		t.Errorf("%v volumes expired before 20", n)
	}
	if n := do(t, f, ExpireTrash{Before: 20}); n != 1 || oldest() != 30 {
		t.Errorf("%v volumes expired at 20, oldest %d", n, oldest())
	}
	do(t, f, Delete{User: "ann", Path: "/RecycleBin/a-4"}) // empties the trash
	if got := list(t, f, RecycleBin, Page{0, 10}); got != " of 0" {
		t.Error(got)
	}
	for _, n := range []chunk.VolumeID{4, 5} {
		p := ask(t, f, func(s *State) (Purge, error) { return s.Purge(n) })
		if len(p.Views) != 0 || p.UpTo != chunk.MaxSeq || !p.Volume.Purging {
			t.Errorf("purge of %d: %+v", n, p)
		}
		do(t, f, p.Done(), p.Done())
	}
	if got := ask(t, f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil }); len(got) != 0 {
		t.Errorf("left to purge: %v", got)
	}
	if n := do(t, f, CreateVolume{User: "ann", Path: "/b", Size: gib}).(Volume).ID; n <= 5 {
		t.Errorf("number %d is given again", n)
	}
}

// A name that is cut to make room for a number is cut between characters.
func TestTrashNamesAreNames(t *testing.T) {
	t.Parallel()
	f := open(t)
	for _, name := range []string{strings.Repeat("x", maxName), strings.Repeat("卷", maxName/3), "é" + strings.Repeat("卷", (maxName-2)/3)} {
		v := do(t, f, CreateVolume{User: "ann", Path: "/" + name, Size: gib}).(Volume)
		do(t, f, Delete{User: "ann", Path: v.Path})
		trashed := ask(t, f, func(s *State) (Volume, error) { return s.VolumeByID(v.ID) }).Path
		if err := checkPath(trashed); err != nil || len(trashed) < len(RecycleBin+"/")+maxName-4 {
			t.Errorf("%q went to %q: %v", v.Path, trashed, err)
		}
		if got := do(t, f, RestoreFile{User: "ann", Path: trashed}).(Volume).Path; got != v.Path {
			t.Errorf("%q came back as %q", v.Path, got)
		}
	}
}

func TestWithoutRetentionNothingIsKept(t *testing.T) {
	t.Parallel()
	f := open(t)
	settings := DefaultSettings(id(1))
	settings.Retention = 0
	do(t, f, InitCluster{Settings: settings}, CreateVolume{User: "ann", Path: "/a", Size: gib}, Delete{User: "ann", Path: "/a"})
	if got := list(t, f, RecycleBin, Page{0, 10}); got != " of 0" {
		t.Error(got)
	}
	if got := ask(t, f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil }); len(got) != 1 {
		t.Errorf("to purge: %v", got)
	}
	if err := f.View(func(s *State) error { _, err := s.HeadView(3); return err }); kind(t, err) != NotExist {
		t.Errorf("the head of a volume that is purged: %v", err)
	}
}

func TestTasksFollowTheirVolumes(t *testing.T) {
	t.Parallel()
	f := open(t)
	status := func(id uuid.UUID) string {
		got := task(t, f, id)
		return fmt.Sprintf("%d %d%%", got.Status, got.Progress)
	}
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib}, // 3
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
		Clone{User: "ann", Path: "/a", Name: "s", Destination: "/b", Lazy: true, UUID: id(11)}, // 4
	)
	if got := status(id(11)); got != "7 5%" {
		t.Error(got)
	}
	do(t, f, Flatten{User: "ann", Path: "/b"}, FlattenProgress{Volume: 4, Percent: 50}, FlattenProgress{Volume: 4, Percent: 40})
	if got := status(id(11)); got != "1 50%" {
		t.Error(got)
	}
	do(t, f, FlattenDone{Volume: 4}, FlattenDone{Volume: 4})
	if got := status(id(11)); got != "0 100%" {
		t.Error(got)
	}
	if v := volume(t, f, "/b"); v.Status() != VolumeDone || v.Progress != 100 || v.Parent != uuid.Nil {
		t.Errorf("flattened: %+v", v)
	}

	// The record outlives the volume, until a clone takes its place.
	do(t, f, Rename{User: "ann", Path: "/b", Destination: "/c"}, Delete{User: "ann", Path: "/c"})
	if got := task(t, f, id(11)); got.Destination != "/c" || got.Status != TaskDone {
		t.Errorf("task of a deleted volume: %+v", got)
	}
	do(t, f, Clone{User: "ann", Path: "/a", Name: "s", Destination: "/c", Lazy: true, UUID: id(12)}) // 5
	tasks := ask(t, f, func(s *State) ([]Task, error) {
		tasks, _, err := s.Tasks(TaskFilter{Destination: "/c"}, everything)
		return tasks, err
	})
	if len(tasks) != 1 || tasks[0].UUID != id(12) {
		t.Errorf("tasks of /c: %+v", tasks)
	}

	// Of an unfinished clone, it goes with the volume and comes back with it.
	do(t, f, Delete{User: "ann", Path: "/c"})
	refused(t, f, Flatten{User: "ann", UUID: id(12)}, NotExist)
	do(t, f, RestoreFile{User: "ann", Path: "/RecycleBin/c-5"})
	if got := status(id(12)); got != "7 5%" {
		t.Error(got)
	}
	do(t, f, Flatten{User: "ann", UUID: id(12)}, FlattenDone{Volume: 5}, CleanTask{User: "ann", UUID: id(12)})
	refused(t, f, CleanTask{User: "ann", UUID: id(12)}, NotExist)
}

// What was at a path before leaves no task beside those of what is there now.
func TestDeadTasksGiveWay(t *testing.T) {
	t.Parallel()
	for name, next := range map[string][]Command{
		"clone":  {Clone{User: "ann", Snapshot: id(1), Destination: "/b", Lazy: true, UUID: id(20)}},
		"rename": {Clone{User: "ann", Snapshot: id(1), Destination: "/x", Lazy: true, UUID: id(20)}, Rename{User: "ann", Path: "/x", Destination: "/b"}},
		"recover": {
			CreateVolume{User: "ann", Path: "/b", Size: gib},
			CreateSnapshot{User: "ann", Path: "/b", Name: "s", UUID: id(2)},
			Recover{User: "ann", Path: "/b", Name: "s", UUID: id(20)},
		},
	} {
		f := open(t)
		do(t, f,
			CreateVolume{User: "ann", Path: "/a", Size: gib}, // 3
			CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
			Clone{User: "ann", Snapshot: id(1), Destination: "/b", UUID: id(11)}, // 4
			FlattenDone{Volume: 4},
			Delete{User: "ann", Path: "/b"},
		)
		do(t, f, next...)
		f.View(func(s *State) error {
			if tasks, n, err := s.Tasks(TaskFilter{Destination: "/b"}, everything); err != nil || n != 1 || tasks[0].UUID != id(20) {
				t.Errorf("%s: tasks %+v", name, tasks)
			}
			return nil
		})
	}
}

func TestHiddenSnapshotsCount(t *testing.T) {
	t.Parallel()
	f := open(t)
	settings := DefaultSettings(id(1))
	settings.SnapshotLimit = 1
	do(t, f,
		InitCluster{Settings: settings},
		CreateVolume{User: "ann", Path: "/a", Size: gib},
		Clone{User: "ann", Path: "/a", Destination: "/b", Lazy: true, UUID: id(11), Hidden: id(1)},
	)
	refused(t, f, CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(2)}, SnapshotLimit)
}

func TestTrashedCloneDoesNotKeepItsSnapshot(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib}, // 3
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
		Clone{User: "ann", Path: "/a", Name: "s", Destination: "/b", Lazy: true, UUID: id(11)}, // 4
		Delete{User: "ann", Path: "/b"},
	)
	if got := ask(t, f, func(s *State) ([]Volume, error) { return s.Children("ann", "/a", "s") }); len(got) != 0 {
		t.Errorf("children: %+v", got)
	}
	do(t, f, DeleteSnapshot{User: "ann", Path: "/a", Name: "s"})
	refused(t, f, RestoreFile{User: "ann", Path: "/RecycleBin/b-4"}, NotExist)
	if got := ask(t, f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil }); !cmp.Equal(got, []chunk.VolumeID{3, 4}) {
		t.Errorf("to purge: %v", got)
	}
}

func TestHiddenSnapshotGoesWithItsLastClone(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib},                                           // 3
		Clone{User: "ann", Path: "/a", Destination: "/b", Lazy: true, UUID: id(11), Hidden: id(1)}, // 4
		Clone{User: "ann", Path: "/a", Destination: "/c", UUID: id(12), Hidden: id(2)},             // 5
	)
	if got := task(t, f, id(11)); got.Source != "/a" || got.FromSnapshot {
		t.Errorf("task: %+v", got)
	}
	count := func() (visible, all int) {
		f.View(func(s *State) error {
			_, visible, _ = s.Snapshots(SnapshotFilter{}, everything)
			all = len(s.snapshotsOf(s.volume(3)))
			return nil
		})
		return visible, all
	}
	if visible, all := count(); visible != 0 || all != 2 {
		t.Errorf("%d visible snapshots of %d", visible, all)
	}
	if got := ask(t, f, func(s *State) ([]Volume, error) { return s.Children("ann", "/a", "") }); len(got) != 2 {
		t.Errorf("children: %+v", got)
	}
	do(t, f, FlattenDone{Volume: 5})
	if _, all := count(); all != 1 {
		t.Errorf("%d snapshots after flattening the second clone", all)
	}
	if got := ask(t, f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil }); !cmp.Equal(got, []chunk.VolumeID{3}) {
		t.Errorf("to purge: %v", got)
	}
	refused(t, f, Delete{User: "ann", Path: "/a"}, UnderSnapshot)
	do(t, f, Delete{User: "ann", Path: "/b"}, Delete{User: "ann", Path: "/a"})
	refused(t, f, RestoreFile{User: "ann", Path: "/RecycleBin/b-4"}, NotExist) // its data went with /a
	do(t, f, RestoreFile{User: "ann", Path: "/RecycleBin/a-3"})
}

// A purge that was begun before something became garbage does not hide it.
func TestLatePurgeHidesNothing(t *testing.T) {
	t.Parallel()
	f := open(t)
	begin := func() Purge { return ask(t, f, func(s *State) (Purge, error) { return s.Purge(3) }) }
	open := func() int {
		return len(ask(t, f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil }))
	}
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib}, // 3
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
		Recover{User: "ann", Snapshot: id(1), UUID: id(10)},
	)
	early := begin()
	do(t, f, Attach{Path: "/a"}, Detach{Attachment: 1}, Recover{User: "ann", Snapshot: id(1), UUID: id(11)}, early.Done())
	if open() != 1 {
		t.Error("the second rollback's garbage is forgotten")
	}
	do(t, f, DeleteSnapshot{User: "ann", UUID: id(1)})
	do(t, f, begin().Done())
	if open() != 0 {
		t.Error("something is left to purge")
	}
	if late := begin(); len(late.Views) != 1 || late.UpTo != volume(t, f, "/a").Seq {
		t.Errorf("views of a volume without snapshots: %+v", late)
	}
	do(t, f,
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(2)},
		Recover{User: "ann", Snapshot: id(2), UUID: id(12)},
		DeleteSnapshot{User: "ann", UUID: id(2)},
		PurgeDone{Volume: 3, Snapshots: []uuid.UUID{id(2)}},
	)
	stale := begin()
	do(t, f, Delete{User: "ann", Path: "/a"}, Delete{User: "ann", Path: "/RecycleBin/a-3"}, stale.Done())
	if open() != 1 {
		t.Error("the volume is gone before its data")
	}
}

func TestReadersPinADeletedSnapshot(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f,
		CreateVolume{User: "ann", Path: "/a", Size: gib},
		CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)},
		Extend{User: "ann", Path: "/a", Size: 2 * gib},
	)
	c := do(t, f, Attach{Path: "/a", Snapshot: "s", ReadOnly: true, Gateway: "g", Session: id(9)}).(Context)
	if c.Volume.Size != gib || c.View.Lineage().Sees(2) {
		t.Errorf("attached snapshot: %+v", c)
	}
	do(t, f, DeleteSnapshot{User: "ann", UUID: id(1)}, DeleteSnapshot{User: "ann", UUID: id(1)})
	purges := func() []chunk.VolumeID {
		return ask(t, f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil })
	}
	p := ask(t, f, func(s *State) (Purge, error) { return s.Purge(3) })
	if len(purges()) != 0 || len(p.Views) != 2 || len(p.Snapshots) != 0 {
		t.Errorf("with a reader: %v, %+v", purges(), p)
	}
	do(t, f, Detach{Attachment: c.Attachment.ID}, Detach{Attachment: c.Attachment.ID})
	p = ask(t, f, func(s *State) (Purge, error) { return s.Purge(3) })
	if len(purges()) != 1 || len(p.Views) != 1 || len(p.Snapshots) != 1 {
		t.Errorf("without a reader: %v, %+v", purges(), p)
	}
	do(t, f, PurgeProgress{Snapshots: p.Snapshots, Percent: 40}, PurgeProgress{Snapshots: p.Snapshots, Percent: 30})
	if n := snapshot(t, f, id(1)); n.Status != SnapshotDeleting || n.Progress != 40 {
		t.Errorf("while it is deleted: %+v", n)
	}
	do(t, f, p.Done(), p.Done())
	n := do(t, f, CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(2)}).(Snapshot)
	if n.UUID != id(2) || n.Seq != 2 {
		t.Errorf("the same name again: %+v", n)
	}
}

// A snapshot whose pause was given up is never committed.
func TestTurnsVoidPauses(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f, CreateVolume{User: "ann", Path: "/a", Size: gib})
	c := do(t, f, Attach{Path: "/a", Gateway: "g", Session: id(9)}).(Context)
	if c.Token != (chunk.Token{Attachment: 1, Seq: 1}) || c.Attachment.Turn != 1 || c.View.Volume() != 3 {
		t.Errorf("attached: %+v", c)
	}
	late := CreateSnapshot{User: "ann", Path: "/a", Name: "late", UUID: id(1), Attachment: 1, Turn: 1}
	do(t, f, CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(2), Attachment: 1, Turn: 1})
	c = do(t, f, Resume{Attachment: 1}).(Context)
	if c.Attachment.Turn != 2 || c.Token.Seq != 2 {
		t.Errorf("resumed: %+v", c)
	}
	refused(t, f, late, Stale)
	do(t, f, Detach{Attachment: 1}, late) // all that was written is durable: no pause is needed
	if c := do(t, f, Attach{Path: "/a"}).(Context); c.Attachment.ID != 2 {
		t.Errorf("attached again: %+v", c)
	}
	w := ask(t, f, func(s *State) (Attachment, error) { a, _ := s.Writer(3); return a, nil })
	if w.ID != 2 {
		t.Errorf("writer: %+v", w)
	}
}

func TestManyReadersOrOneWriter(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f, CreateVolume{User: "ann", Path: "/a", Size: gib}, Attach{Path: "/a", ReadOnly: true}, Attach{Path: "/a", ReadOnly: true})
	refused(t, f, Attach{Path: "/a"}, Occupied)
	do(t, f, Detach{Attachment: 1})
	refused(t, f, Attach{Path: "/a"}, Occupied)
	do(t, f, Detach{Attachment: 2}, Attach{Path: "/a"})
	refused(t, f, Attach{Path: "/a", ReadOnly: true}, Occupied)
	if got := ask(t, f, func(s *State) ([]Attachment, error) { return s.Attachments(), nil }); len(got) != 1 || got[0].ID != 3 {
		t.Errorf("attachments: %+v", got)
	}
}

func TestNodesKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	f := open(t)
	a := do(t, f, RegisterNode{Store: id(1), Address: "a:1", Incarnation: 1}).(Node)
	b := do(t, f, RegisterNode{Store: id(2), Address: "b:1", Incarnation: 1}).(Node)
	again := do(t, f, RegisterNode{Store: id(1), Address: "c:1", Incarnation: 2, Capacity: 7}).(Node)
	if a.ID != 1 || b.ID != 2 || again != (Node{ID: 1, Store: id(1), Address: "c:1", Incarnation: 2, Capacity: 7}) {
		t.Errorf("nodes %+v, %+v, again %+v", a, b, again)
	}
	got := ask(t, f, func(s *State) ([]Node, error) { return s.Nodes(), nil })
	if diff := cmp.Diff([]Node{again, b}, got); diff != "" {
		t.Error(diff)
	}
}

func TestNodesLeave(t *testing.T) {
	t.Parallel()
	f := world(t)
	get := func(n chunk.NodeID) Node {
		return ask(t, f, func(s *State) (Node, error) { return s.Node(n) })
	}
	spare := do(t, f, RegisterNode{Store: id(503), Address: "n3:1", Incarnation: 1}).(Node)
	do(t, f, DrainNode{Node: 1, Draining: true}, DrainNode{Node: spare.ID, Draining: true}, DrainNode{Node: spare.ID, Draining: true})
	do(t, f, RegisterNode{Store: id(501), Address: "n1:2", Incarnation: 2})
	if !get(1).Draining || !get(spare.ID).Draining || get(2).Draining {
		t.Errorf("draining: %+v, %+v, %+v", get(1), get(2), get(spare.ID))
	}
	do(t, f, DrainNode{Node: spare.ID})
	if get(spare.ID).Draining {
		t.Error("a drain was not cancelled")
	}

	refused(t, f, RemoveNode{Node: 1}, BadStatus)
	do(t, f, RemoveNode{Node: spare.ID}, RemoveNode{Node: spare.ID}) // who asks again is answered alike
	refused(t, f, DrainNode{Node: spare.ID, Draining: true}, NotExist)
	again := do(t, f, RegisterNode{Store: id(503), Address: "n3:1", Incarnation: 1}).(Node)
	if again.ID <= spare.ID || again.Draining {
		t.Errorf("a store that was removed came back as %+v, was %+v", again, spare)
	}
	if err := f.Check(); err != nil {
		t.Error(err)
	}
}

func TestCopysetsChangeOneEpochAtATime(t *testing.T) {
	t.Parallel()
	f := world(t)
	get := func(pool string) []chunk.Copyset {
		return ask(t, f, func(s *State) ([]chunk.Copyset, error) { return s.Copysets(pool), nil })
	}
	moved := set(1, 2)
	moved.Primary, moved.Members[0].Incarnation = 2, 3
	do(t, f, Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{moved}})
	want := []chunk.Copyset{set(0, 1), moved}
	if diff := cmp.Diff(want, get(DefaultPool)); diff != "" {
		t.Error(diff)
	}
	refused(t, f, Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{set(0, 2), moved}}, Stale)
	again := do(t, f, CreatePool{Name: DefaultPool, Copysets: []chunk.Copyset{set(0, 1)}})
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("a pool was made twice:\n%s", diff)
	}
	if diff := cmp.Diff([]chunk.Copyset{set(0, 1)}, get("ssd")); diff != "" {
		t.Error(diff)
	}
	if got := get("none"); len(got) != 0 {
		t.Errorf("copysets of no pool: %+v", got)
	}
	pools := ask(t, f, func(s *State) ([]string, error) { return s.Pools(), nil })
	if diff := cmp.Diff([]string{DefaultPool, "ssd"}, pools); diff != "" {
		t.Error(diff)
	}
}

func TestFilters(t *testing.T) {
	t.Parallel()
	f := world(t)
	deleting, cloning, recovering := SnapshotDeleting, TaskCloning, TaskRecover
	do(t, f, Recover{User: "ann", Path: "/full", Name: "2", UUID: id(14)})
	f.View(func(s *State) error {
		for _, c := range []struct {
			filter SnapshotFilter
			page   Page
			want   string
		}{
			{SnapshotFilter{}, Page{0, 3}, "bs s1 going of 9"},
			{SnapshotFilter{}, Page{7, 3}, "4 ws of 9"},
			{SnapshotFilter{User: "bob"}, everything, "bs of 1"},
			{SnapshotFilter{User: "ann"}, Page{2, 1}, "fs of 8"},
			{SnapshotFilter{Path: "/full"}, Page{1, 2}, "2 3 of 4"},
			{SnapshotFilter{Path: "/full", User: "ann"}, Page{3, 2}, "4 of 4"},
			{SnapshotFilter{Path: "/full", User: "bob"}, everything, " of 0"},
			{SnapshotFilter{Path: "/source"}, everything, " of 0"},
			{SnapshotFilter{Path: "/none"}, everything, " of 0"},
			{SnapshotFilter{Status: &deleting}, everything, "going of 1"},
			{SnapshotFilter{UUID: id(22)}, everything, "2 of 1"},
			{SnapshotFilter{UUID: id(22)}, Page{1, 10}, " of 1"},
			{SnapshotFilter{UUID: id(22), Path: "/a"}, everything, " of 0"},
			{SnapshotFilter{UUID: id(22), User: "bob"}, everything, " of 0"},
			{SnapshotFilter{UUID: id(4)}, everything, " of 0"}, // hidden
		} {
			list, total, err := s.Snapshots(c.filter, c.page)
			names := []string{}
			for _, n := range list {
				names = append(names, n.Name)
			}
			if got := fmt.Sprintf("%s of %d", strings.Join(names, " "), total); got != c.want || err != nil {
				t.Errorf("snapshots %+v %+v: %s, %v, want %s", c.filter, c.page, got, err, c.want)
			}
		}
		for _, c := range []struct {
			filter TaskFilter
			page   Page
			want   string
		}{
			{TaskFilter{}, Page{0, 3}, "/lazy /flattening /ofvolume of 4"},
			{TaskFilter{}, Page{3, 3}, "/full of 4"},
			{TaskFilter{User: "ann"}, Page{1, 1}, "/flattening of 4"},
			{TaskFilter{User: "bob"}, everything, " of 0"},
			{TaskFilter{Destination: "/lazy"}, everything, "/lazy of 1"},
			{TaskFilter{Destination: "/lazy", User: "bob"}, everything, " of 0"},
			{TaskFilter{Source: "/source"}, everything, "/ofvolume of 1"},
			{TaskFilter{Source: id(1).String()}, Page{1, 1}, "/flattening of 2"},
			{TaskFilter{Status: &cloning}, everything, "/flattening of 1"},
			{TaskFilter{Type: &recovering}, everything, "/full of 1"},
			{TaskFilter{UUID: id(12)}, everything, "/flattening of 1"},
			{TaskFilter{UUID: id(12)}, Page{0, 0}, " of 1"},
			{TaskFilter{UUID: id(12), Destination: "/lazy"}, everything, " of 0"},
			{TaskFilter{UUID: id(99)}, everything, " of 0"},
		} {
			list, total, err := s.Tasks(c.filter, c.page)
			names := []string{}
			for _, n := range list {
				names = append(names, n.Destination)
			}
			if got := fmt.Sprintf("%s of %d", strings.Join(names, " "), total); got != c.want || err != nil {
				t.Errorf("tasks %+v %+v: %s, %v, want %s", c.filter, c.page, got, err, c.want)
			}
		}
		return nil
	})
}
