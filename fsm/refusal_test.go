package fsm

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// world is a state in which something of every kind and in every condition
// exists. ann owns all but /b.
func world(t *testing.T) *FSM {
	t.Helper()
	f := open(t)
	settings := DefaultSettings(id(500))
	settings.SnapshotLimit = 4
	do(t, f,
		InitCluster{Time: 1, Settings: settings},
		RegisterNode{Store: id(501), Address: "n1:1", Incarnation: 1},
		RegisterNode{Store: id(502), Address: "n2:1", Incarnation: 2},
		CreatePool{Name: DefaultPool, Copysets: []chunk.Copyset{set(0, 1), set(1, 1)}},
		CreatePool{Name: "ssd", Copysets: []chunk.Copyset{set(0, 1)}},
		CreateDir{User: "ann", Path: "/team"},
		CreateDir{User: "ann", Path: "/empty"},
		CreateVolume{User: "ann", Path: "/team/plain", Size: gib},
		CreateVolume{User: "bob", Path: "/b", Size: gib},
		CreateSnapshot{User: "bob", Path: "/b", Name: "bs", UUID: id(9)},

		CreateVolume{User: "ann", Path: "/a", Size: 2 * gib},
		CreateSnapshot{User: "ann", Path: "/a", Name: "s1", UUID: id(1)},
		CreateSnapshot{User: "ann", Path: "/a", Name: "going", UUID: id(2)},
		DeleteSnapshot{User: "ann", UUID: id(2)},
		Clone{User: "ann", Path: "/a", Name: "s1", Destination: "/lazy", Lazy: true, UUID: id(11)},
		Clone{User: "ann", Snapshot: id(1), Destination: "/flattening", UUID: id(12)},
		CreateSnapshot{User: "ann", Path: "/flattening", Name: "fs", UUID: id(3)},

		CreateVolume{User: "ann", Path: "/source", Size: gib},
		Clone{User: "ann", Path: "/source", Destination: "/ofvolume", ReadOnly: true, Lazy: true, UUID: id(13), Hidden: id(4)},

		CreateVolume{User: "ann", Path: "/full", Size: gib},
		CreateSnapshot{User: "ann", Path: "/full", Name: "1", UUID: id(21)},
		CreateSnapshot{User: "ann", Path: "/full", Name: "2", UUID: id(22)},
		CreateSnapshot{User: "ann", Path: "/full", Name: "3", UUID: id(23)},
		CreateSnapshot{User: "ann", Path: "/full", Name: "4", UUID: id(24)},

		CreateVolume{User: "ann", Path: "/written", Size: gib},
		CreateSnapshot{User: "ann", Path: "/written", Name: "ws", UUID: id(5)},
		Attach{Path: "/written", Gateway: "g", Session: id(600)}, // attachment 1
		Resume{Attachment: 1}, // turn 2
		CreateVolume{User: "ann", Path: "/read", Size: gib},
		Attach{Path: "/read", ReadOnly: true, Gateway: "g", Session: id(600)}, // attachment 2
		Attach{Path: "/a", Snapshot: "s1", ReadOnly: true, Gateway: "g", Session: id(600)},

		CreateVolume{User: "ann", Path: "/gone", Size: gib},
		Delete{User: "ann", Path: "/gone", Time: 50},
		CreateVolume{User: "ann", Path: "/gone", Size: gib},
	)
	return f
}

// set is a configuration of a copyset on nodes 1 and 2.
func set(id chunk.CopysetID, epoch chunk.Epoch) chunk.Copyset {
	return chunk.Copyset{ID: id, Epoch: epoch, Primary: 1, Members: []chunk.Member{
		{Node: 1, Incarnation: 1, State: chunk.InSync}, {Node: 2, Incarnation: 2, State: chunk.InSync},
	}}
}

// mutated is set after a change.
func mutated(change func(*chunk.Copyset)) chunk.Copyset {
	c := set(0, 2)
	change(&c)
	return c
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	f := world(t)
	trashed := fmt.Sprintf("/RecycleBin/gone-%d", volume(t, f, "/gone").ID-1)
	long := strings.Repeat("n", maxName+1)
	reached := map[Kind]bool{}
	for i, c := range []struct {
		command Command
		want    Kind
	}{
		{InitCluster{Settings: DefaultSettings(uuid.Nil)}, InvalidArgument},
		{InitCluster{Settings: Settings{Cluster: id(1), MinSize: 1, MaxSize: 1}}, InvalidArgument},
		{InitCluster{Settings: Settings{Cluster: id(1), SnapshotLimit: 1, MinSize: 2, MaxSize: 1}}, InvalidArgument},

		{CreateVolume{Path: "/n", Size: gib}, InvalidArgument},
		{CreateVolume{User: "a\x00b", Path: "/n", Size: gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "n", Size: gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/n@s", Size: gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/" + long, Size: gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/", Size: gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/n", Size: gib - 4096}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/n", Size: 20481 * gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/n", Size: gib + 1}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/n", Size: gib, Layout: chunk.Layout{Unit: 4096}}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/b/n", Size: gib}, InvalidArgument},
		{CreateVolume{User: "ann", Path: "/no/n", Size: gib}, NotExist},
		{CreateVolume{User: "ann", Path: "/n", Size: gib, Pool: "nvme"}, NotExist},
		{CreateVolume{User: "bob", Path: "/team/n", Size: gib}, NotOwner},
		{CreateVolume{User: "bob", Path: "/RecycleBin/n", Size: gib}, NotOwner},
		{CreateVolume{User: Root, Path: "/RecycleBin/n", Size: gib}, Unsupported},
		{CreateVolume{User: "ann", Path: "/a", Size: gib}, Exists},
		{CreateVolume{User: "bob", Path: "/a", Size: 2 * gib}, Exists},
		{CreateVolume{User: "ann", Path: "/a", Size: 2 * gib, Pool: "ssd"}, Exists},
		{CreateVolume{User: "ann", Path: "/a", Size: 2 * gib, Layout: chunk.Layout{Unit: 4096, Count: 1}}, Exists},
		{CreateVolume{User: "ann", Path: "/lazy", Size: 2 * gib}, Exists},
		{CreateVolume{User: "ann", Path: "/team", Size: gib}, Exists},

		{CreateDir{User: "", Path: "/n"}, InvalidArgument},
		{CreateDir{User: "ann", Path: "/n/"}, InvalidArgument},
		{CreateDir{User: "ann", Path: "/a/n"}, InvalidArgument},
		{CreateDir{User: "ann", Path: "/no/n"}, NotExist},
		{CreateDir{User: "bob", Path: "/team/n"}, NotOwner},
		{CreateDir{User: Root, Path: "/RecycleBin/n"}, Unsupported},
		{CreateDir{User: "bob", Path: "/team"}, Exists},
		{CreateDir{User: "ann", Path: "/a"}, Exists},
		{CreateDir{User: Root, Path: "/"}, Exists},

		{Delete{Path: "/a"}, InvalidArgument},
		{Delete{User: "ann", Path: "/../a"}, InvalidArgument},
		{Delete{User: "bob", Path: "/a"}, NotOwner},
		{Delete{User: "bob", Path: "/empty"}, NotOwner},
		{Delete{User: "bob", Path: trashed}, NotOwner},
		{Delete{User: "ann", Path: "/RecycleBin"}, NotOwner},
		{Delete{User: Root, Path: "/RecycleBin"}, Unsupported},
		{Delete{User: Root, Path: "/"}, Unsupported},
		{Delete{User: "ann", Path: "/team"}, BadStatus},
		{Delete{User: "ann", Path: "/a"}, UnderSnapshot},
		{Delete{User: "ann", Path: "/source"}, UnderSnapshot},
		{Delete{User: "ann", Path: "/flattening"}, UnderSnapshot}, // before Occupied
		{Delete{User: "ann", Path: "/written"}, UnderSnapshot},
		{Delete{User: "ann", Path: "/read"}, Occupied},

		{RestoreFile{User: "ann", Path: "gone"}, InvalidArgument},
		{RestoreFile{User: "ann", Path: "/RecycleBin/gone-9999"}, NotExist},
		{RestoreFile{User: "ann", Path: "/RecycleBin/gone"}, NotExist},
		{RestoreFile{User: "bob", Path: trashed}, NotOwner},
		{RestoreFile{User: "ann", Path: trashed}, Exists},
		{RestoreFile{User: "ann", Path: "/a"}, BadStatus},
		{RestoreFile{User: "ann", Path: "/team"}, Unsupported},

		{Rename{User: "ann", Path: "/a", Destination: "/n@s"}, InvalidArgument},
		{Rename{User: "ann", Path: "/a", Destination: "/b/n"}, InvalidArgument},
		{Rename{User: "ann", Path: "/no", Destination: "/n"}, NotExist},
		{Rename{User: "ann", Path: "/a", Destination: "/no/n"}, NotExist},
		{Rename{User: "bob", Path: "/a", Destination: "/n"}, NotOwner},
		{Rename{User: "bob", Path: "/b", Destination: "/team/n"}, NotOwner},
		{Rename{User: "ann", Path: "/team", Destination: "/n"}, Unsupported},
		{Rename{User: Root, Path: "/a", Destination: "/RecycleBin/n"}, Unsupported},
		{Rename{User: "ann", Path: trashed, Destination: "/n"}, BadStatus},
		{Rename{User: "ann", Path: "/flattening", Destination: "/n"}, BadStatus},
		{Rename{User: "ann", Path: "/a", Destination: "/b"}, Exists},

		{Extend{User: "ann", Path: "/a", Size: 30000 * gib}, InvalidArgument},
		{Extend{User: "ann", Path: "/a", Size: gib}, InvalidArgument},
		{Extend{User: "ann", Path: "/no", Size: gib}, NotExist},
		{Extend{User: "bob", Path: "/a", Size: 3 * gib}, NotOwner},
		{Extend{User: "ann", Path: "/team", Size: gib}, Unsupported},
		{Extend{User: "ann", Path: trashed, Size: 2 * gib}, BadStatus},
		{Extend{User: "ann", Path: "/flattening", Size: 3 * gib}, BadStatus},

		{CreateSnapshot{User: "ann", Path: "/a", Name: "x@y", UUID: id(90)}, InvalidArgument},
		{CreateSnapshot{User: "ann", Path: "/a", Name: "x/y", UUID: id(90)}, InvalidArgument},
		{CreateSnapshot{User: "ann", Path: "/a", Name: "", UUID: id(90)}, InvalidArgument},
		{CreateSnapshot{User: "ann", Path: "/a", Name: "n"}, InvalidArgument},
		{CreateSnapshot{User: "ann", Path: "/no", Name: "n", UUID: id(90)}, NotExist},
		{CreateSnapshot{User: "bob", Path: "/a", Name: "n", UUID: id(90)}, NotOwner},
		{CreateSnapshot{User: "bob", Path: "/a", Name: "s1", UUID: id(90)}, NotOwner},
		{CreateSnapshot{User: "ann", Path: "/team", Name: "n", UUID: id(90)}, Unsupported},
		{CreateSnapshot{User: "ann", Path: trashed, Name: "n", UUID: id(90)}, BadStatus},
		{CreateSnapshot{User: "ann", Path: "/a", Name: "going", UUID: id(90)}, Exists},
		{CreateSnapshot{User: "ann", Path: "/a", Name: "n", UUID: id(1)}, Exists},
		{CreateSnapshot{User: "ann", Path: "/full", Name: "5", UUID: id(90)}, SnapshotLimit},
		{CreateSnapshot{User: "ann", Path: "/written", Name: "n", UUID: id(90)}, Stale},
		{CreateSnapshot{User: "ann", Path: "/written", Name: "n", UUID: id(90), Attachment: 1, Turn: 1}, Stale},
		{CreateSnapshot{User: "ann", Path: "/written", Name: "n", UUID: id(90), Attachment: 2, Turn: 2}, Stale},

		{DeleteSnapshot{User: "", UUID: id(1)}, InvalidArgument},
		{DeleteSnapshot{User: "ann", Path: "/a"}, InvalidArgument},
		{DeleteSnapshot{User: "ann", Path: "a", Name: "s1"}, InvalidArgument},
		{DeleteSnapshot{User: "bob", UUID: id(1), Path: "a"}, InvalidArgument},  // before NotOwner
		{DeleteSnapshot{User: "ann", UUID: id(99), Path: "a"}, InvalidArgument}, // before nothing to do
		{DeleteSnapshot{User: "bob", UUID: id(1)}, NotOwner},
		{DeleteSnapshot{User: "bob", UUID: id(1), Path: "/b"}, NotOwner},
		{DeleteSnapshot{User: "bob", Path: "/a", Name: "s1"}, NotOwner},
		{DeleteSnapshot{User: "ann", UUID: id(1), Path: "/b"}, NameMismatch},
		{DeleteSnapshot{User: "ann", UUID: id(1), Path: "/no"}, NameMismatch},
		{DeleteSnapshot{User: "ann", UUID: id(1)}, SnapshotInUse},
		{DeleteSnapshot{User: "ann", Path: "/a", Name: "s1"}, SnapshotInUse},
		{DeleteSnapshot{User: "ann", Path: "/team", Name: "s1"}, Unsupported},

		{Clone{User: "ann", Path: "/a", Name: "s1", Destination: "/n@s", UUID: id(90)}, InvalidArgument},
		{Clone{User: "ann", Path: "/a", Name: "s1", Destination: "/n"}, InvalidArgument},
		{Clone{User: "ann", Path: "/a", Destination: "/n", UUID: id(90)}, InvalidArgument},
		{Clone{User: "ann", Path: "/a", Name: "s1", Destination: "/b/n", UUID: id(90)}, InvalidArgument},
		{Clone{User: "ann", Path: "/a", Name: "no", Destination: "/n", UUID: id(90)}, NotExist},
		{Clone{User: "ann", Path: "/no", Name: "s1", Destination: "/n", UUID: id(90)}, NotExist},
		{Clone{User: "ann", Path: "/no", Destination: "/n", UUID: id(90), Hidden: id(91)}, NotExist},
		{Clone{User: "ann", Snapshot: id(99), Destination: "/n", UUID: id(90)}, NotExist},
		{Clone{User: "ann", Snapshot: id(4), Destination: "/n", UUID: id(90)}, NotExist}, // hidden
		{Clone{User: "ann", Snapshot: id(1), Destination: "/no/n", UUID: id(90)}, NotExist},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/n", UUID: id(90), Pool: "nvme"}, NotExist},
		{Clone{User: "bob", Snapshot: id(1), Destination: "/n", UUID: id(90), Pool: "nvme"}, NotExist}, // before NotOwner
		{Clone{User: "bob", Snapshot: id(1), Destination: "/n", UUID: id(90)}, NotOwner},
		{Clone{User: "bob", Snapshot: id(9), Destination: "/team/n", UUID: id(90)}, NotOwner},
		{Clone{User: "bob", Path: "/a", Destination: "/n", UUID: id(90), Hidden: id(91)}, NotOwner},
		{Clone{User: "bob", Path: "/team", Destination: "/n", UUID: id(90), Hidden: id(91)}, NotOwner},
		{Clone{User: "ann", Path: "/team", Destination: "/n", UUID: id(90), Hidden: id(91)}, Unsupported},
		{Clone{User: "ann", Path: "/team", Name: "s1", Destination: "/n", UUID: id(90)}, Unsupported},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/n", UUID: id(90), Pool: "ssd"}, Unsupported},
		{Clone{User: "ann", Path: trashed, Destination: "/n", UUID: id(90), Hidden: id(91)}, BadStatus},
		{Clone{User: "ann", Snapshot: id(2), Destination: "/n", UUID: id(90)}, InvalidSnapshot},
		{Clone{User: "ann", Path: "/a", Name: "going", Destination: "/n", UUID: id(90)}, InvalidSnapshot},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/gone", UUID: id(90)}, Exists},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/team", UUID: id(90)}, Exists},
		{Clone{User: Root, Snapshot: id(1), Destination: "/lazy", Lazy: true, UUID: id(90)}, Exists},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/lazy", UUID: id(90)}, Exists},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/lazy", Lazy: true, ReadOnly: true, UUID: id(90)}, Exists},
		{Clone{User: "ann", Snapshot: id(5), Destination: "/lazy", Lazy: true, UUID: id(90)}, Exists},
		{Clone{User: "ann", Snapshot: id(1), Destination: "/n", UUID: id(11)}, Exists},
		{Clone{User: "ann", Path: "/a", Destination: "/n", UUID: id(90), Hidden: id(1)}, Exists},
		{Clone{User: "ann", Path: "/full", Destination: "/n", UUID: id(90), Hidden: id(91)}, SnapshotLimit},
		{Clone{User: "ann", Path: "/written", Destination: "/n", UUID: id(90), Hidden: id(91), Attachment: 1, Turn: 1}, Stale},

		{Flatten{User: "", Path: "/lazy"}, InvalidArgument},
		{Flatten{User: "ann", Path: "lazy"}, InvalidArgument},
		{Flatten{User: "ann", Path: "/no"}, NotExist},
		{Flatten{User: "ann", UUID: id(99)}, NotExist},
		{Flatten{User: "bob", Path: "/lazy"}, NotOwner},
		{Flatten{User: "bob", UUID: id(11)}, NotOwner},
		{Flatten{User: "ann", Path: "/team"}, Unsupported},
		{Flatten{User: "ann", Path: trashed}, BadStatus},
		{FlattenProgress{Volume: 999}, NotExist},
		{FlattenProgress{Volume: volume(t, f, "/flattening").ID, Percent: 101}, InvalidArgument},
		{FlattenDone{Volume: 999}, NotExist},
		{FlattenDone{Volume: volume(t, f, "/lazy").ID}, BadStatus},

		{Recover{User: "ann", Path: "/full", Name: "1"}, InvalidArgument},
		{Recover{User: "ann", Path: "/full", UUID: id(90)}, InvalidArgument},
		{Recover{User: "ann", Snapshot: id(21), Destination: "full", UUID: id(90)}, InvalidArgument},
		{Recover{User: "ann", Path: "/full", Name: "no", UUID: id(90)}, NotExist},
		{Recover{User: "ann", Snapshot: id(99), UUID: id(90)}, NotExist},
		{Recover{User: "ann", Snapshot: id(21), Destination: "/no", UUID: id(90)}, NotExist},
		{Recover{User: "bob", Path: "/full", Name: "1", UUID: id(90)}, NotOwner},
		{Recover{User: "bob", Snapshot: id(21), UUID: id(90)}, NotOwner},
		{Recover{User: "ann", Snapshot: id(21), Destination: "/b", UUID: id(90)}, NotOwner},
		{Recover{User: "ann", Snapshot: id(21), Destination: "/a", UUID: id(90)}, Unsupported},
		{Recover{User: "ann", Path: "/team", Name: "1", UUID: id(90)}, Unsupported},
		{Recover{User: "ann", Snapshot: id(2), UUID: id(90)}, InvalidSnapshot},
		{Recover{User: "ann", Snapshot: id(3), UUID: id(90)}, Occupied},
		{Recover{User: "ann", Snapshot: id(5), UUID: id(90)}, Occupied},
		{Recover{User: "ann", Snapshot: id(21), UUID: id(11)}, Exists},

		{CleanTask{User: "", UUID: id(11)}, InvalidArgument},
		{CleanTask{User: "ann", UUID: id(99)}, NotExist},
		{CleanTask{User: "bob", UUID: id(11)}, NotOwner},
		{CleanTask{User: "ann", UUID: id(11)}, TaskRunning},
		{CleanTask{User: "ann", UUID: id(12)}, TaskRunning},

		{Attach{Path: "a"}, InvalidArgument},
		{Attach{Path: "/a", Snapshot: "x@y", ReadOnly: true}, InvalidArgument},
		{Attach{Path: "/no"}, NotExist},
		{Attach{Path: "/a", Snapshot: "no", ReadOnly: true}, NotExist},
		{Attach{Path: "/team"}, Unsupported},
		{Attach{Path: "/a", Snapshot: "s1"}, Unsupported},
		{Attach{Path: "/ofvolume"}, Unsupported},
		{Attach{Path: trashed}, BadStatus},
		{Attach{Path: "/a", Snapshot: "going", ReadOnly: true}, InvalidSnapshot},
		{Attach{Path: "/written"}, Occupied},
		{Attach{Path: "/written", ReadOnly: true}, Occupied},
		{Attach{Path: "/read"}, Occupied},
		{Resume{Attachment: 99}, NotExist},

		{RegisterNode{Address: "n:1"}, InvalidArgument},
		{RegisterNode{Store: id(501)}, InvalidArgument},

		{DrainNode{Node: 9, Draining: true}, NotExist},
		{RemoveNode{}, NotExist},
		{RemoveNode{Node: 9}, NotExist},
		{RemoveNode{Node: 1}, BadStatus},

		{CreatePool{Name: "", Copysets: []chunk.Copyset{set(0, 1)}}, InvalidArgument},
		{CreatePool{Name: "n"}, InvalidArgument},
		{CreatePool{Name: "n", Copysets: []chunk.Copyset{set(0, 1), set(1, 1), set(2, 1)}}, InvalidArgument},
		{CreatePool{Name: "n", Copysets: []chunk.Copyset{set(1, 1)}}, InvalidArgument},
		{CreatePool{Name: "n", Copysets: []chunk.Copyset{set(0, 2)}}, InvalidArgument},
		{CreatePool{Name: "n", Copysets: []chunk.Copyset{{Epoch: 1}}}, InvalidArgument},
		{CreatePool{Name: "n", Copysets: []chunk.Copyset{{Epoch: 1, Members: []chunk.Member{{Node: 9, State: chunk.InSync}}}}}, NotExist},

		{Reconfigure{Pool: "no", Copysets: []chunk.Copyset{set(0, 2)}}, NotExist},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{set(7, 2)}}, NotExist},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{set(0, 1)}}, Stale},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{set(0, 2), set(1, 3)}}, Stale},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{set(0, 2), set(0, 3)}}, InvalidArgument},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{mutated(func(c *chunk.Copyset) { c.Members[1].Node = 1 })}}, InvalidArgument},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{mutated(func(c *chunk.Copyset) { c.Members[1].State = 0 })}}, InvalidArgument},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{mutated(func(c *chunk.Copyset) { c.Primary = 3 })}}, InvalidArgument},
		{Reconfigure{Pool: DefaultPool, Copysets: []chunk.Copyset{mutated(func(c *chunk.Copyset) { c.Members[0].State = chunk.Out })}}, InvalidArgument},

		{PurgeProgress{Percent: -1}, InvalidArgument},
		{PurgeDone{Volume: volume(t, f, "/a").ID, Snapshots: []uuid.UUID{id(1)}}, BadStatus},
		{PurgeDone{Volume: volume(t, f, "/b").ID, Snapshots: []uuid.UUID{id(2)}}, BadStatus},
	} {
		if _, err := apply(t, f, c.command); kind(t, err) != c.want {
			t.Errorf("case %d: %#v: %v (kind %d), want kind %d", i, c.command, err, kind(t, err), c.want)
		}
		reached[c.want] = true
	}
	for _, k := range Kinds() {
		if !reached[k] && k != CancelFinished { // CancelSnapshot is a query
			t.Errorf("no command is refused with kind %d", k)
		}
	}
}

func TestRefusedQueries(t *testing.T) {
	t.Parallel()
	f := world(t)
	for name, c := range map[string]struct {
		query func(*State) error
		want  Kind
	}{
		"file of nobody":          {func(s *State) error { _, err := s.File("ann", "/no"); return err }, NotExist},
		"file of another":         {func(s *State) error { _, err := s.File("bob", "/a"); return err }, NotOwner},
		"file of no name":         {func(s *State) error { _, err := s.File("bob", "a"); return err }, InvalidArgument},
		"list of a volume":        {func(s *State) error { _, _, err := s.List("ann", "/a", Page{}); return err }, InvalidArgument},
		"list of nothing":         {func(s *State) error { _, _, err := s.List("ann", "/no", Page{}); return err }, NotExist},
		"list of no name":         {func(s *State) error { _, _, err := s.List("ann", "", Page{}); return err }, InvalidArgument},
		"list for nobody":         {func(s *State) error { _, _, err := s.List("", "/", Page{}); return err }, InvalidArgument},
		"file of no user":         {func(s *State) error { _, err := s.File("..", "/a"); return err }, InvalidArgument},
		"snapshot of no user":     {func(s *State) error { _, err := s.Snapshot("..", "/a", "s1"); return err }, InvalidArgument},
		"snapshot, no user":       {func(s *State) error { _, err := s.SnapshotByUUID("..", id(1), ""); return err }, InvalidArgument},
		"snapshot, no path":       {func(s *State) error { _, err := s.SnapshotByUUID("bob", id(99), "a"); return err }, InvalidArgument},
		"task of no user":         {func(s *State) error { _, err := s.Task("..", id(11)); return err }, InvalidArgument},
		"snapshots of no user":    {func(s *State) error { _, _, err := s.Snapshots(SnapshotFilter{User: ".."}, Page{}); return err }, InvalidArgument},
		"snapshots of no path":    {func(s *State) error { _, _, err := s.Snapshots(SnapshotFilter{Path: "a"}, Page{}); return err }, InvalidArgument},
		"tasks of no user":        {func(s *State) error { _, _, err := s.Tasks(TaskFilter{User: ".."}, Page{}); return err }, InvalidArgument},
		"tasks of no source":      {func(s *State) error { _, _, err := s.Tasks(TaskFilter{Source: "a"}, Page{}); return err }, InvalidArgument},
		"tasks of no destination": {func(s *State) error { _, _, err := s.Tasks(TaskFilter{Destination: "a"}, Page{}); return err }, InvalidArgument},
		"volume of a directory":   {func(s *State) error { _, err := s.Volume("ann", "/team"); return err }, Unsupported},
		"volume by id":            {func(s *State) error { _, err := s.VolumeByID(99); return err }, NotExist},
		"snapshot by name":        {func(s *State) error { _, err := s.Snapshot("ann", "/a", "no"); return err }, NotExist},
		"snapshot of another":     {func(s *State) error { _, err := s.Snapshot("bob", "/a", "s1"); return err }, NotOwner},
		"snapshot by UUID":        {func(s *State) error { _, err := s.SnapshotByUUID("ann", id(99), ""); return err }, NotExist},
		"hidden snapshot":         {func(s *State) error { _, err := s.SnapshotByUUID("ann", id(4), ""); return err }, NotExist},
		"snapshot elsewhere":      {func(s *State) error { _, err := s.SnapshotByUUID("ann", id(1), "/b"); return err }, NameMismatch},
		"children of another":     {func(s *State) error { _, err := s.Children("bob", "/a", ""); return err }, NotOwner},
		"children of no snapshot": {func(s *State) error { _, err := s.Children("ann", "/a", "no"); return err }, NotExist},
		"task of another":         {func(s *State) error { _, err := s.Task("bob", id(11)); return err }, NotOwner},
		"no task":                 {func(s *State) error { _, err := s.Task("bob", id(99)); return err }, NotExist},
		"no node":                 {func(s *State) error { _, err := s.Node(99); return err }, NotExist},
		"no context":              {func(s *State) error { _, err := s.Context(99); return err }, NotExist},
		"no head":                 {func(s *State) error { _, err := s.HeadView(99); return err }, NotExist},
		"no snapshot's view":      {func(s *State) error { _, err := s.SnapshotView(id(99)); return err }, NotExist},
		"no purge":                {func(s *State) error { _, err := s.Purge(99); return err }, NotExist},
		"no flatten":              {func(s *State) error { _, err := s.FlattenViews(99); return err }, NotExist},
		"cancel of nothing":       {func(s *State) error { return s.CancelSnapshot("ann", "/no", id(1)) }, NotExist},
		"cancel of another's":     {func(s *State) error { return s.CancelSnapshot("bob", "/a", id(1)) }, NotOwner},
		"cancel elsewhere":        {func(s *State) error { return s.CancelSnapshot("ann", "/source", id(1)) }, NameMismatch},
		"cancel of finished":      {func(s *State) error { return s.CancelSnapshot("ann", "/a", id(1)) }, CancelFinished},
		"cancel of unknown":       {func(s *State) error { return s.CancelSnapshot("ann", "/a", id(99)) }, CancelFinished},
	} {
		if got := kind(t, f.View(c.query)); got != c.want {
			t.Errorf("%s: kind %d, want %d", name, got, c.want)
		}
	}
}
