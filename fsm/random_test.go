package fsm

import (
	"cmp"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"pgregory.net/rapid"
)

var seedFlag = flag.Uint64("seed", 0, "of the random logs; 0 for a new one each time")

func testSeed(t *testing.T) uint64 {
	seed := *seedFlag
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-seed %d", seed)
	return seed
}

// player makes random commands and keeps what it needs to know for that: the
// model, and layers as chunkservers would have them.
type player struct {
	t      failer
	intn   func(n int) int
	f      *FSM
	m      *model
	layers map[chunk.VolumeID]map[chunk.Seq]content
	time   uint64
	stamp  int // last value written

	purges   []Purge // that a leader has begun
	flattens []flattening
	log      []Entry
}

type flattening struct {
	id    chunk.VolumeID
	views []*chunk.View
}

// failer is what testing.T and rapid.T have in common.
type failer interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
}

func newPlayer(t failer, intn func(int) int, f *FSM) *player {
	p := &player{t: t, intn: intn, f: f, layers: map[chunk.VolumeID]map[chunk.Seq]content{}}
	settings := DefaultSettings(id(1))
	settings.SnapshotLimit = 3
	settings.Retention = uint64(100 * min(1, intn(3)))
	p.m = newModel(settings.SnapshotLimit, settings.Retention)
	p.apply(InitCluster{Time: 1, Settings: settings})

	// Something to begin with.
	dir := CreateDir{User: "ann", Path: "/d"}
	p.expect(dir)(p.m.createDir(dir))
	for _, path := range []string{"/a", "/d/a"} {
		v := CreateVolume{User: "ann", Path: path, Size: gib}
		p.expect(v)(p.m.createVolume(v))
		n := CreateSnapshot{User: "ann", Path: path, Name: "s", UUID: p.uuid()}
		p.expect(n)(p.m.createSnapshot(n))
	}
	return p
}

func (p *player) apply(c Command) Result {
	e := Entry{Index: p.f.Applied() + 1 + uint64(p.intn(2)), Data: Encode(c)}
	p.log = append(p.log, e)
	return p.f.Apply([]Entry{e})[0]
}

func pick[T any](p *player, from ...T) T { return from[p.intn(len(from))] }

// some returns a key of a map, now and then other.
func some[K comparable, V any](p *player, m map[K]V, other K, compare func(a, b K) int) K {
	keys := slices.SortedFunc(maps.Keys(m), compare)
	if len(keys) == 0 || p.intn(8) == 0 {
		return other
	}
	return pick(p, keys...)
}

func (p *player) user() string { return pick(p, "ann", "ann", "ann", "ann", "ann", "bob", Root) }

// path is one that may be free or not.
func (p *player) path() string {
	if p.intn(10) == 0 {
		return pick(p, "/d", "/d/e", "/a/x", "/no/x", RecycleBin, RecycleBin+"/x-1")
	}
	return pick(p, "/a", "/b", "/c", "/d/a", "/d/b", "/d/c")
}

// existing is mostly the path of a volume, one in the trash or another.
func (p *player) existing(trashed bool) string {
	paths := slices.DeleteFunc(slices.Sorted(maps.Keys(p.m.volumes)), func(path string) bool {
		return p.m.volumes[path].trash != "" != trashed
	})
	if len(paths) == 0 || p.intn(8) == 0 {
		return p.path()
	}
	return pick(p, paths...)
}

func (p *player) name() string { return pick(p, "s", "t") }

func (p *player) snapshot() uuid.UUID { return some(p, p.m.snapshots, id(99), byBytes) }

func (p *player) task() uuid.UUID { return some(p, p.m.tasks, id(99), byBytes) }

func byBytes(a, b uuid.UUID) int { return slices.Compare(a[:], b[:]) }

func (p *player) uuid() (u uuid.UUID) {
	p.time++
	return id(p.time)
}

// paused is the attachment and turn of a volume's writer, now and then wrong.
func (p *player) paused(path string) (uint64, uint64) {
	if v := p.m.volumes[path]; v != nil && p.intn(8) > 0 {
		if w, _ := p.m.heads(v); w != nil {
			return w.id, w.turn
		}
	}
	return uint64(p.intn(3)), 1
}

func (p *player) size() uint64 { return uint64(1+p.intn(3)) * gib }

// command carries out a random command.
func (p *player) command() {
	p.time++
	switch p.intn(23) {
	case 0, 1:
		c := CreateVolume{User: p.user(), Time: p.time, Path: p.path(), Size: p.size()}
		p.expect(c)(p.m.createVolume(c))
	case 2:
		c := CreateDir{User: p.user(), Time: p.time, Path: pick(p, "/d", "/d", p.path())}
		p.expect(c)(p.m.createDir(c))
	case 3, 20:
		c := Delete{User: p.user(), Time: p.time, Path: p.existing(p.intn(10) == 0)}
		p.expect(c)(p.m.delete(c))
	case 4:
		c := RestoreFile{User: p.user(), Path: p.existing(true)}
		p.expect(c)(p.m.restoreFile(c))
	case 5:
		c := Rename{User: p.user(), Path: p.existing(p.intn(10) == 0), Destination: p.path()}
		p.expect(c)(p.m.rename(c))
	case 6:
		c := Extend{User: p.user(), Path: p.existing(p.intn(10) == 0), Size: p.size()}
		p.expect(c)(p.m.extend(c))
	case 7, 8:
		c := CreateSnapshot{User: p.user(), Time: p.time, Path: p.existing(p.intn(10) == 0), Name: p.name(), UUID: p.uuid()}
		c.Attachment, c.Turn = p.paused(c.Path)
		p.expect(c)(p.m.createSnapshot(c))
	case 9:
		c := DeleteSnapshot{User: p.user(), Path: p.existing(p.intn(10) == 0), Name: p.name()}
		if p.intn(2) == 0 {
			c = DeleteSnapshot{User: c.User, UUID: p.snapshot(), Path: pick(p, "", "", "", c.Path)}
		}
		p.expect(c)(p.m.deleteSnapshot(c))
	case 10, 11, 12:
		c := p.clone()
		p.expect(c)(p.m.clone(c))
	case 13:
		c := Flatten{User: p.user(), Path: p.existing(p.intn(10) == 0)}
		if p.intn(2) == 0 {
			c = Flatten{User: c.User, UUID: p.task()}
		}
		p.expect(c)(p.m.flatten(c))
	case 14:
		c := Recover{User: p.user(), Time: p.time, Path: p.existing(p.intn(10) == 0), Name: p.name(), Lazy: p.intn(2) == 0, UUID: p.uuid()}
		if p.intn(2) == 0 {
			c.Snapshot, c.Destination = p.snapshot(), pick(p, "", "", p.existing(false))
		}
		p.expect(c)(p.m.recover(c))
	case 15:
		c := CleanTask{User: p.user(), UUID: p.task()}
		p.expect(c)(p.m.cleanTask(c))
	case 16, 17:
		c := Attach{Path: p.existing(p.intn(10) == 0), Snapshot: pick(p, "", "", p.name()), ReadOnly: p.intn(2) == 0, Gateway: "g", Session: id(1)}
		p.expect(c)(p.m.attach(c))
	case 18:
		c := Resume{Attachment: some(p, p.m.attached, 99, cmp.Compare)}
		p.expect(c)(p.m.resume(c))
	case 19, 21:
		c := Detach{Attachment: some(p, p.m.attached, 99, cmp.Compare)}
		p.expect(c)(0, func(any) { delete(p.m.attached, c.Attachment) })
	case 22:
		c := ExpireTrash{Before: p.time - min(p.time, uint64(p.intn(100)))}
		p.expect(c)(p.m.expireTrash(c))
	}
}

func (p *player) clone() Clone {
	c := Clone{
		User: p.user(), Time: p.time, Path: p.existing(p.intn(10) == 0), Destination: p.path(),
		ReadOnly: p.intn(4) == 0, Lazy: p.intn(3) > 0, UUID: p.uuid(),
	}
	switch p.intn(4) {
	case 0, 3:
		c.Snapshot, c.Path = p.snapshot(), ""
	case 1:
		c.Name = p.name()
	case 2:
		c.Hidden = p.uuid()
		c.Attachment, c.Turn = p.paused(c.Path)
	}
	return c
}

// step does one thing: a command, or what gateways and the leader do.
func (p *player) step() {
	switch p.intn(12) {
	case 0, 1, 2:
		p.write()
	case 3:
		p.f.View(p.begin)
	case 4:
		p.purge()
	case 5:
		p.flatten()
	default:
		p.command()
	}
}

// expect carries out a command that the model has an opinion about.
func (p *player) expect(c Command) func(want Kind, effect func(any)) {
	return func(want Kind, effect func(any)) {
		p.t.Helper()
		r := p.apply(c)
		if got := kind(p.t, r.Err); got != want {
			p.t.Fatalf("%#v: %v (kind %d), want kind %d", c, r.Err, got, want)
		}
		if want == 0 {
			effect(r.Value)
		}
	}
}

// write lets a writer write a block with its present context.
func (p *player) write() {
	for _, n := range slices.Sorted(maps.Keys(p.m.attached)) {
		if a := p.m.attached[n]; !a.readOnly && p.intn(2) == 0 {
			p.stamp++
			b := p.intn(blocks)
			a.of.data[b] = p.stamp
			p.f.View(func(s *State) error {
				c, err := s.Context(a.id)
				if err != nil {
					p.t.Fatal(err)
				}
				p.put(c.Volume.ID, c.Token.Seq, b, p.stamp)
				return nil
			})
		}
	}
}

func (p *player) put(id chunk.VolumeID, seq chunk.Seq, b, value int) {
	if p.layers[id] == nil {
		p.layers[id] = map[chunk.Seq]content{}
	}
	layer := p.layers[id][seq]
	layer[b] = value
	p.layers[id][seq] = layer
}

// own returns the layer that a view has a block from, or false if it would be
// read from the parent.
func (p *player) own(v *chunk.View, b int) (chunk.Seq, bool) {
	top, ok := chunk.Seq(0), false
	for seq, layer := range p.layers[v.Volume()] {
		if layer[b] != 0 && v.Lineage().Sees(seq) && (!ok || seq > top) {
			top, ok = seq, true
		}
	}
	return top, ok
}

func (p *player) read(v *chunk.View) (c content) {
	for b := range blocks {
		for at := v; at != nil; at = at.Parent() {
			if seq, ok := p.own(at, b); ok {
				c[b] = p.layers[at.Volume()][seq][b]
				break
			}
		}
	}
	return c
}

// begin looks for work, as a leader does; it is done at some later step.
func (p *player) begin(s *State) error {
	if purges := s.Purges(); len(purges) > 0 {
		work, err := s.Purge(pick(p, purges...))
		if err != nil {
			p.t.Fatal(err)
		}
		p.purges = append(p.purges, work)
	}
	if clones := s.Flattening(); len(clones) > 0 {
		n := pick(p, clones...)
		views, err := s.FlattenViews(n)
		if err != nil {
			p.t.Fatal(err)
		}
		p.flattens = append(p.flattens, flattening{n, views})
	}
	return nil
}

// purge does a purge that was begun, and reports it, or is cut off before that.
func (p *player) purge() {
	if len(p.purges) == 0 {
		return
	}
	i := p.intn(len(p.purges))
	work := p.purges[i]
	p.purges = slices.Delete(p.purges, i, i+1)
	p.free(work)
	if p.intn(4) > 0 {
		p.purged(work)
	}
}

// free does to the layers what a purge says.
func (p *player) free(work Purge) {
	for b := range blocks {
		for seq, layer := range p.layers[work.Volume.ID] {
			if seq <= work.UpTo && layer[b] != 0 && !p.reached(work.Views, seq, b) {
				p.put(work.Volume.ID, seq, b, 0)
			}
		}
	}
}

// reached reports whether any of the views has a block from a layer.
func (p *player) reached(views []*chunk.View, seq chunk.Seq, b int) bool {
	return slices.ContainsFunc(views, func(v *chunk.View) bool {
		top, ok := p.own(v, b)
		return ok && top == seq
	})
}

func (p *player) purged(work Purge) {
	p.apply(PurgeProgress{Snapshots: work.Snapshots, Percent: 50})
	if r := p.apply(work.Done()); r.Err != nil {
		p.t.Fatalf("%#v: %v", work.Done(), r.Err)
	}
	for _, n := range work.Snapshots {
		delete(p.m.snapshots, n)
	}
}

// settle lets the leader sweep, and again when everybody is gone. There must be
// no garbage after either.
func (p *player) settle() {
	p.sweep()
	for n := range p.m.attached {
		p.apply(Detach{Attachment: n})
	}
	clear(p.m.attached)
	p.purgeAll()
	p.compare()
}

// sweep lets the leader purge what it is told of and what it is not.
func (p *player) sweep() {
	p.time++
	p.apply(Sweep{Time: p.time})
	p.purgeAll()
}

// purgeAll lets the leader purge until nothing is left to do, and looks for
// garbage.
func (p *player) purgeAll() {
	for {
		var work Purge
		p.f.View(func(s *State) (err error) {
			if volumes := s.Purges(); len(volumes) > 0 {
				work, err = s.Purge(volumes[0])
			}
			return err
		})
		if work.Volume.ID == 0 {
			break
		}
		p.free(work)
		p.purged(work)
	}
	p.f.View(func(s *State) error {
		for n, layers := range p.layers {
			work, err := s.Purge(n)
			for seq, layer := range layers {
				for b := range blocks {
					if layer[b] != 0 && (err != nil || !p.reached(work.Views, seq, b)) {
						p.t.Fatalf("block %d of layer %d of volume %d is garbage for ever", b, seq, n)
					}
				}
			}
		}
		return nil
	})
}

// flatten does a flattening that was begun, and reports it, or is cut off.
func (p *player) flatten() {
	if len(p.flattens) == 0 {
		return
	}
	i := p.intn(len(p.flattens))
	work := p.flattens[i]
	p.flattens = slices.Delete(p.flattens, i, i+1)
	p.copyUp(work)
	if p.intn(4) == 0 {
		p.apply(FlattenProgress{Volume: work.id, Percent: p.intn(101)})
		return
	}
	c := FlattenDone{Volume: work.id}
	want, effect := p.m.flattenDone(c)
	r := p.apply(c)
	if got := kind(p.t, r.Err); got != want && got != NotExist {
		p.t.Fatalf("%#v: %v, want kind %d", c, r.Err, want)
	}
	if want == 0 {
		effect(nil)
	}
}

// copyUp does to the layers what a flattening says.
func (p *player) copyUp(work flattening) {
	for b := range blocks {
		for _, v := range work.views {
			if _, ok := p.own(v, b); !ok && v.Parent() != nil {
				p.put(work.id, 0, b, p.read(v)[b])
			}
		}
	}
}

// compare compares the whole state with the model.
func (p *player) compare() {
	if err := p.f.Check(); err != nil {
		p.t.Fatalf("Check: %v", err)
	}
	p.f.View(func(s *State) error {
		p.compareVolumes(s)
		p.compareSnapshots(s)
		p.compareTasks(s)
		for _, a := range p.m.attached {
			if a.readOnly {
				p.same(fmt.Sprintf("reader %d", a.id), a.data, p.read(a.view))
			}
		}
		if got := len(s.Attachments()); got != len(p.m.attached) {
			p.t.Fatalf("%d attachments, want %d", got, len(p.m.attached))
		}
		return nil
	})
}

func (p *player) same(what string, want, got any) {
	if diff := gocmp.Diff(want, got); diff != "" {
		p.t.Fatalf("%s (-want +got):\n%s", what, diff)
	}
}

var everything = Page{Limit: 1000}

func (p *player) compareVolumes(s *State) {
	names := map[string]bool{}
	for dir := range p.m.dirs {
		files, total, err := s.List(Root, dir, everything)
		if err != nil || total != len(files) {
			p.t.Fatalf("list of %s: %d of %d, %v", dir, len(files), total, err)
		}
		for _, f := range files {
			if f.Directory != nil {
				names[f.Directory.Path] = true
				p.same(f.Directory.Path, p.m.dirs[f.Directory.Path], f.Directory.User)
			} else {
				names[f.Volume.Path] = true
				p.compareVolume(s, *f.Volume)
			}
		}
	}
	if want := len(p.m.dirs) - 1 + len(p.m.volumes); len(names) != want {
		p.t.Fatalf("names %v, want %d", names, want)
	}
}

func (p *player) compareVolume(s *State, v Volume) {
	want := p.m.volumes[v.Path]
	if want == nil {
		p.t.Fatalf("there is a volume at %s", v.Path)
	}
	type summary struct {
		ID       chunk.VolumeID
		User     string
		Size     uint64
		ReadOnly bool
		Status   VolumeStatus
		Trash    bool
	}
	status := VolumeDone
	if want.flattening {
		status = VolumeFlattening
	} else if want.parent != nil {
		status = VolumeUnflattened
	}
	p.same(v.Path,
		summary{want.id, want.user, want.size, want.readOnly, status, want.trash != ""},
		summary{v.ID, v.User, v.Size, v.ReadOnly, v.Status(), v.Trash != nil})
	view, err := s.HeadView(v.ID)
	if err != nil {
		p.t.Fatal(err)
	}
	p.same("content of "+v.Path, want.data, p.read(view))
	clones := 0
	for _, other := range p.m.volumes {
		if other.parent != nil && other.parent.of == want && other.trash == "" {
			clones++
		}
	}
	if got, err := s.Children(Root, v.Path, ""); err != nil || len(got) != clones {
		p.t.Fatalf("%d children of %s, %v, want %d", len(got), v.Path, err, clones)
	}
}

func (p *player) compareSnapshots(s *State) {
	visible := 0
	for _, n := range p.m.snapshots {
		if !n.deleting || p.m.pinned(n) {
			view, err := s.SnapshotView(n.id)
			if err != nil {
				p.t.Fatal(err)
			}
			p.same("content of snapshot "+n.name+" of "+n.of.path, n.data, p.read(view))
		}
		if n.hidden {
			continue
		}
		visible++
		got, err := s.Snapshot(n.of.user, n.of.path, n.name)
		if err != nil || got.UUID != n.id || got.Size != n.size || (got.Status == SnapshotDeleting) != n.deleting {
			p.t.Fatalf("snapshot %+v, %v, want %+v", got, err, n)
		}
	}
	byUser, byPath := 0, 0
	for _, user := range []string{"ann", "bob", Root} {
		_, n, _ := s.Snapshots(SnapshotFilter{User: user}, everything)
		byUser += n
	}
	for path := range p.m.volumes {
		list, n, _ := s.Snapshots(SnapshotFilter{Path: path}, everything)
		byPath += n
		if !slices.IsSortedFunc(list, func(a, b Snapshot) int { return int(a.Seq) - int(b.Seq) }) {
			p.t.Fatalf("snapshots of %s are out of order: %+v", path, list)
		}
	}
	_, all, _ := s.Snapshots(SnapshotFilter{}, everything)
	if all != visible || byUser != visible || byPath != visible {
		p.t.Fatalf("%d snapshots, %d by user, %d by volume, want %d", all, byUser, byPath, visible)
	}
}

func (p *player) compareTasks(s *State) {
	list, total, _ := s.Tasks(TaskFilter{}, everything)
	if total != len(p.m.tasks) || len(list) != total {
		p.t.Fatalf("%d tasks, want %d", total, len(p.m.tasks))
	}
	for _, t := range list {
		want := p.m.tasks[t.UUID]
		if want == nil {
			p.t.Fatalf("there is a task %+v", t)
		}
		status, progress := TaskDone, t.Progress == 100
		if p.m.running(want) && want.of.flattening {
			status, progress = TaskCloning, t.Progress >= 5 && t.Progress <= 95
		} else if p.m.running(want) {
			status, progress = TaskMetaInstalled, t.Progress == 5
		}
		if t.Status != status || !progress || t.User != want.user || t.Source != want.source || t.Destination != want.destination || t.Lazy != want.lazy {
			p.t.Fatalf("task %+v, want %+v with status %d", t, want, status)
		}
	}
}

// Whatever users, gateways and leaders do, in whatever order, the state is what
// the contract says; every view reads as it should from layers that jobs, late
// or cut off, have worked on; and the invariants hold.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		f, err := Open(filepath.Join(t.TempDir(), "state"))
		if err != nil {
			rt.Fatal(err)
		}
		defer f.Close()
		f.db.NoSync = true
		p := newPlayer(rt, func(n int) int { return rapid.IntRange(0, n-1).Draw(rt, "n") }, f)
		for i := range rapid.IntRange(1, 120).Draw(rt, "steps") {
			p.step()
			if i%5 == 0 { // to compare takes most of the time
				p.compare()
			}
		}
		p.settle()
	})
}

// randomLog is what a player leaves behind.
func randomLog(t *testing.T, rng *rand.Rand, n int) []Entry {
	p := newPlayer(t, rng.IntN, open(t))
	for i := 0; len(p.log) < n; i++ {
		p.step()
		if i%20 == 0 {
			p.compare()
		}
		if i%40 == 0 {
			p.sweep()
		}
	}
	p.settle()
	return p.log
}
