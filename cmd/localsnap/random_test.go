package main

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
)

var (
	stories    = flag.Int("stories", 1, "random stories to tell")
	storySeed  = flag.Uint64("story-seed", 0, "seed of the first random story; 0 chooses one")
	storySteps = flag.Int("story-steps", 40, "steps of a random story")
)

// What users do to volumes in any order, while servers and chunkservers come
// and go, leaves every view as the model says; and when all is deleted, no
// space is taken.
func TestRandomStories(t *testing.T) {
	t.Parallel()
	seed := *storySeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	for i := range uint64(*stories) {
		t.Run(fmt.Sprint(seed+i), func(t *testing.T) {
			t.Logf("repeat with -stories 1 -story-seed %d -story-steps %d", seed+i, *storySteps)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute+time.Duration(*storySteps)*time.Second)
			defer cancel()
			s := &story{views: startFleet(t, nil).views(ctx), rng: rand.New(rand.NewPCG(seed+i, 0))}
			s.tell(*storySteps)
		})
	}
}

type story struct {
	*views
	rng   *rand.Rand
	names int
	trash []trashed
}

// trashed is a deleted volume that can be restored.
type trashed struct {
	path   string
	volume *modelled
}

func (s *story) tell(steps int) {
	const size = 1 << 30
	for i := range uint64(4) { // in neighbouring blocks, and in chunks of different copysets
		s.places = append(s.places, i*chunk.BlockSize, i*5*chunk.Size+chunk.Size-chunk.BlockSize, size-(i*7+1)*chunk.BlockSize)
	}
	s.createSome()
	for step := range steps {
		name, do := s.choose()
		began := time.Now()
		done := do()
		s.t.Logf("%3d %s: %s (%v)", step, name, done, time.Since(began).Round(time.Millisecond))
		s.glance()
	}
	s.compare()
	s.clear()
}

// choose returns something to do.
func (s *story) choose() (string, func() string) {
	all := []struct {
		weight int
		name   string
		do     func() string
	}{
		{20, "write", s.writeSome},
		{6, "discard", s.discardSome},
		{12, "snapshot", s.snapshotSome},
		{10, "clone", s.cloneSome},
		{10, "rollback", s.rollbackSome},
		{6, "flatten", s.flattenSome},
		{8, "delete snapshot", s.deleteSomeSnapshot},
		{4, "delete", s.deleteSome},
		{4, "restore", s.restoreSome},
		{3, "create", s.createSome},
		{1, "restart leader", s.restartLeader},
		{1, "restart chunkserver", s.restartChunkserver},
	}
	total := 0
	for _, a := range all {
		total += a.weight
	}
	n := s.rng.IntN(total)
	for _, a := range all {
		if n -= a.weight; n < 0 {
			return a.name, a.do
		}
	}
	panic("unreachable")
}

func (s *story) name(of string) string {
	s.names++
	return fmt.Sprint(of, s.names)
}

// volume returns some volume.
func (s *story) volume() string {
	all := slices.Sorted(maps.Keys(s.volumes))
	if len(all) == 0 {
		return s.createSome()
	}
	return all[s.rng.IntN(len(all))]
}

// snapshotOf returns some snapshot of a volume, empty if there is none.
func (s *story) snapshotOf(path string) string {
	all := slices.Sorted(maps.Keys(s.volumes[path].snapshots))
	if len(all) == 0 {
		return ""
	}
	return all[s.rng.IntN(len(all))]
}

func (s *story) place() uint64 { return s.places[s.rng.IntN(len(s.places))] }

// glance compares some view with the model.
func (s *story) glance() {
	path := s.volume()
	m := s.volumes[path]
	name, open, want := s.snapshotOf(path), m.writer, m.head
	if name == "" || s.rng.IntN(3) == 0 {
		name = ""
	} else {
		open, want = nil, m.snapshots[name]
	}
	if err := s.compareView(path, name, open, want); err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) createSome() string {
	path := s.name("/v")
	s.create(path, 1)
	s.write(path, s.places...)
	return path
}

func (s *story) writeSome() string {
	path := s.volume()
	for range 1 + s.rng.IntN(5) {
		s.write(path, s.place())
	}
	if s.rng.IntN(4) == 0 {
		s.detach(path)
	}
	return path
}

func (s *story) discardSome() string {
	path, at := s.volume(), s.place()
	if s.rng.IntN(2) == 0 {
		s.discard(path, at, chunk.BlockSize)
		return fmt.Sprintf("%s at %d", path, at)
	}
	at -= at % chunk.Size
	s.discard(path, at, chunk.Size)
	return fmt.Sprintf("%s, the chunk at %d", path, at)
}

func (s *story) snapshotSome() string {
	path, name := s.volume(), s.name("s")
	s.snapshot(path, name)
	return path + "@" + name
}

// cloneSome clones in one of the ways that the API knows.
func (s *story) cloneSome() string {
	path, destination := s.volume(), s.name("/c")
	name := s.snapshotOf(path)
	request := client.CloneRequest{User: "ann", Destination: destination, Lazy: s.rng.IntN(2) == 0}
	m := &modelled{snapshots: make(map[string]content), parent: path}
	switch {
	case name == "" || s.rng.IntN(4) == 0: // the present content, also beside a writer
		request.Source = path
		m.head = maps.Clone(s.volumes[path].head)
	case s.rng.IntN(2) == 0:
		s.clone(path, name, destination)
		return fmt.Sprintf("%s@%s as %s", path, name, destination)
	default:
		request.Source = s.uuid(path, name)
		m.head, m.parent = maps.Clone(s.volumes[path].snapshots[name]), path+"@"+name
	}
	_, err := s.users.Clone(s.ctx, request)
	s.must(err, "clone %+v", request)
	s.volumes[destination] = m
	return fmt.Sprintf("%s as %s, lazy: %v", m.parent, destination, request.Lazy)
}

func (s *story) rollbackSome() string {
	path := s.volume()
	name := s.snapshotOf(path)
	if name == "" {
		return "none"
	}
	if s.volumes[path].parent != "" {
		s.settled(path)
	}
	s.rollback(path, name, s.rng.IntN(2) == 0)
	return path + "@" + name
}

// settled waits until a clone is not being flattened.
func (s *story) settled(path string) {
	s.await(path+" not to be flattened", func() bool {
		got, err := s.users.ListFile(s.ctx, client.ListFileRequest{User: "ann", File: path})
		s.must(err, "list %s", path)
		return got.FileInfos[0].Status != client.Flattening
	})
}

func (s *story) flattenSome() string {
	path := s.volume()
	s.flatten(path)
	if s.rng.IntN(2) == 0 {
		return path
	}
	s.flattened(path)
	return path + " to the end"
}

// deleteSomeSnapshot is refused if clones may still need it.
func (s *story) deleteSomeSnapshot() string {
	path := s.volume()
	name := s.snapshotOf(path)
	if name == "" {
		return "none"
	}
	err := s.users.DeleteSnapshot(s.ctx, client.DeleteSnapshotRequest{User: "ann", File: path, Name: name})
	if s.hasClones(path + "@" + name) {
		if client.Refused(err, client.SnapshotInUse) {
			return path + "@" + name + " has clones"
		}
	}
	s.must(err, "delete %s@%s", path, name)
	delete(s.volumes[path].snapshots, name)
	return path + "@" + name
}

// hasClones reports whether there may be clones of a snapshot, or of a volume,
// that need it.
func (s *story) hasClones(of string) bool {
	for m := range maps.Values(s.volumes) {
		if m.parent == of || strings.HasPrefix(m.parent, of+"@") {
			return true
		}
	}
	return false
}

// deleteSome is refused if the volume has snapshots, or clones that need it.
func (s *story) deleteSome() string {
	path := s.volume()
	m := s.volumes[path]
	s.settled(path)
	s.detach(path)
	err := s.deleteFile(path)
	if len(m.snapshots) > 0 {
		s.refused(err, client.UnderSnapshot)
		return path + " has snapshots"
	}
	if client.Refused(err, client.UnderSnapshot) {
		// A snapshot is still being deleted, or a hidden one is in use.
		if s.hasClones(path) {
			return path + " has clones"
		}
		s.await("nothing to purge", s.idle)
		err = s.deleteFile(path)
	}
	s.must(err, "delete %s", path)
	delete(s.volumes, path)
	s.trash = append(s.trash, trashed{path, m})
	return path
}

// restoreSome restores a volume. A clone is lost if what it was made of has
// been deleted meanwhile.
func (s *story) restoreSome() string {
	if len(s.trash) == 0 {
		return "none"
	}
	i := s.rng.IntN(len(s.trash))
	was := s.trash[i]
	s.trash = slices.Delete(s.trash, i, i+1)
	bin, err := s.users.ListFile(s.ctx, client.ListFileRequest{User: "ann", Dir: "/RecycleBin", Page: client.Page{Limit: 1000}})
	s.must(err, "list the recycle bin")
	at := slices.IndexFunc(bin.FileInfos, func(file client.FileInfo) bool {
		return strings.HasPrefix(file.File, "/RecycleBin"+was.path+"-")
	})
	if at < 0 {
		if was.volume.parent == "" {
			s.t.Fatalf("%s is not in the recycle bin", was.path)
		}
		return was.path + " is lost"
	}
	s.must(s.users.RestoreFile(s.ctx, client.RestoreFileRequest{User: "ann", File: bin.FileInfos[at].File}), "restore %s", was.path)
	s.volumes[was.path] = was.volume
	return was.path
}

func (s *story) restartLeader() string {
	i := s.leader()
	s.stop(&s.servers[i])
	s.startServer(i)
	return fmt.Sprint(i)
}

func (s *story) restartChunkserver() string {
	i := s.rng.IntN(len(s.chunkservers))
	s.stop(&s.chunkservers[i])
	s.startChunkserver(i)
	return fmt.Sprint(i)
}

// clear deletes everything, clones first.
func (s *story) clear() {
	for path, m := range s.volumes {
		if m.parent != "" {
			s.flatten(path)
		}
	}
	for path := range s.volumes {
		s.flattened(path)
	}
	for path, m := range s.volumes {
		s.detach(path)
		for name := range m.snapshots {
			s.deleteSnapshot(path, name)
		}
	}
	s.await("nothing to purge", s.idle)
	for path := range s.volumes {
		s.delete(path)
	}
	s.purgeTrash()
	s.await("the space to come back", func() bool { return s.blocks() == 0 })
}
