package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/chunkserver/store"
	"github.com/localsnap/localsnap/chunkserver/volume"
	"github.com/localsnap/localsnap/cluster/coordinator"
	"github.com/localsnap/localsnap/fsm"
)

// A fleet is a cluster whose servers and chunkservers are stopped and started
// one by one, with a gateway's session and a user of the API.
type fleet struct {
	t            *testing.T
	dir          string
	times        coordinator.Config
	members      []member
	addresses    []apiAddress
	first        hostPort // of the chunkservers
	servers      []*role
	chunkservers []*role
	session      *volume.Session
	users        *client.Client
}

// role is a running server or chunkserver.
type role struct {
	server *server // nil for a chunkserver
	cancel context.CancelFunc
	ended  chan error
}

// fleetStore are the options of chunkservers that free soon.
var fleetStore = store.Options{SegmentBytes: 8 << 20, CheckpointBytes: 32 << 20, FreeEvery: 50 * time.Millisecond}

// startFleet runs a cluster until the test ends; then it checks everything
// that the cluster has kept. settle changes the settings that it begins with.
func startFleet(t *testing.T, settle func(*fsm.Settings)) *fleet {
	t.Helper()
	return startFleetWith(t, coordinator.Config{}, settle)
}

// startFleetWith is startFleet with times for the coordinators.
func startFleetWith(t *testing.T, times coordinator.Config, settle func(*fsm.Settings)) *fleet {
	t.Helper()
	c := devCmd{APIPort: freePortBlock(t)}
	f := &fleet{t: t, times: times, dir: t.TempDir(), first: loopback(c.APIPort).plus(chunkserverOffset)}
	f.members, f.addresses = c.members()
	f.servers, f.chunkservers = make([]*role, devServers), make([]*role, devChunkservers)
	t.Cleanup(f.end)
	opened := make([]*server, devServers)
	for i := range opened {
		opened[i] = f.openServer(i)
	}
	settings := fsm.DefaultSettings(uuid.New())
	if settle != nil {
		settle(&settings)
	}
	f.await("a cluster with settings", func() bool {
		return slices.ContainsFunc(opened, func(s *server) bool {
			_, err := s.node.Apply(t.Context(), fsm.InitCluster{Settings: settings})
			return err == nil
		})
	})
	for i, s := range opened {
		f.servers[i] = start(s, s.Run)
	}
	for i := range f.chunkservers {
		f.startChunkserver(i)
	}
	var apis []string
	for _, a := range f.addresses {
		apis = append(apis, a.String())
	}
	f.users = client.New(apis...)
	session, err := volume.Connect(volume.Config{
		Servers: controls(f.addresses), Gateway: "gateway", Run: uuid.NewString(), Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.session = session
	return f
}

func (f *fleet) openServer(i int) *server {
	f.t.Helper()
	s, err := openServer(f.members, f.members[i], f.serverDir(i), "--api-port", f.times, slog.New(slog.DiscardHandler))
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// start runs a role.
func start(s *server, run func(context.Context) error) *role {
	ctx, cancel := context.WithCancel(context.Background())
	r := &role{server: s, cancel: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- run(ctx) }()
	return r
}

// stop ends a role, if it runs, in order.
func (f *fleet) stop(r **role) {
	f.t.Helper()
	if *r == nil {
		return
	}
	(*r).cancel()
	if err := <-(*r).ended; err != nil {
		f.t.Errorf("a role ended with %v", err)
	}
	*r = nil
}

func (f *fleet) startServer(i int) {
	f.t.Helper()
	s := f.openServer(i)
	f.servers[i] = start(s, s.Run)
}

func (f *fleet) startChunkserver(i int) {
	f.t.Helper()
	at := f.first.plus(i)
	l, err := listen(at, "--listen")
	if err != nil {
		f.t.Fatal(err)
	}
	s, err := chunkserver.New(chunkserver.Config{
		Dir: f.chunkserverDir(i), Servers: controls(f.addresses), Listener: l, Address: at.String(), Store: fleetStore,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.chunkservers[i] = start(nil, func(ctx context.Context) error { return runChunkserver(ctx, s) })
}

func (f *fleet) serverDir(i int) string { return filepath.Join(f.dir, fmt.Sprint("server", i)) }
func (f *fleet) chunkserverDir(i int) string {
	return filepath.Join(f.dir, fmt.Sprint("chunkserver", i))
}

// leader returns the server that leads.
func (f *fleet) leader() (leader int) {
	f.t.Helper()
	f.await("a leader", func() bool {
		leader = slices.IndexFunc(f.servers, func(r *role) bool {
			if r == nil {
				return false
			}
			_, self, _ := r.server.coordinator.Leader()
			return self
		})
		return leader >= 0
	})
	return leader
}

// idle reports whether the leader knows of no work to be done.
func (f *fleet) idle() (idle bool) {
	err := f.servers[f.leader()].server.node.Read(f.t.Context(), func(s *fsm.State) error {
		idle = len(s.Flattening())+len(s.Purges()) == 0
		return nil
	})
	return idle && err == nil
}

// await waits until something is so.
func (f *fleet) await(what string, so func() bool) {
	f.t.Helper()
	for deadline := time.Now().Add(time.Minute); !so(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("waited too long for %s", what)
		}
	}
}

// blocks is how much the files of layers take on all disks together, in bytes.
// The journal, which is allocated in advance, does not count.
func (f *fleet) blocks() (n int64) {
	f.t.Helper()
	for i := range f.chunkservers {
		err := filepath.WalkDir(filepath.Join(f.chunkserverDir(i), "layers"), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return ignoreMissing(err)
			}
			info, err := d.Info()
			if err == nil {
				n += info.Sys().(*syscall.Stat_t).Blocks * 512
			}
			return ignoreMissing(err)
		})
		if err != nil {
			f.t.Fatal(err)
		}
	}
	return n
}

// ignoreMissing is err unless that says that a file is gone.
func ignoreMissing(err error) error {
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

// end stops everything and checks what is left on the disks.
func (f *fleet) end() {
	if f.users != nil {
		f.users.HTTP.CloseIdleConnections()
	}
	if f.session != nil {
		f.session.Close()
	}
	for i := range f.chunkservers {
		f.stop(&f.chunkservers[i])
	}
	for i := range f.servers {
		f.stop(&f.servers[i])
	}
	if !f.t.Failed() {
		f.check()
	}
}

// check verifies the metadata of every server and every block of every
// chunkserver, and that no chunkserver has data of volumes that are gone.
func (f *fleet) check() {
	known := make(map[chunk.VolumeID]bool)
	for i := range f.servers {
		state, err := fsm.Open(filepath.Join(f.serverDir(i), "fsm.db"))
		if err != nil {
			f.t.Error(err)
			continue
		}
		if err := state.Check(); err != nil {
			f.t.Errorf("server %d: %v", i, err)
		}
		state.View(func(s *fsm.State) error {
			for id := chunk.VolumeID(0); id < 1000; id++ {
				if _, err := s.VolumeByID(id); err == nil {
					known[id] = true
				}
			}
			return nil
		})
		if err := state.Close(); err != nil {
			f.t.Error(err)
		}
	}
	for i := range f.chunkservers {
		chunks, err := store.Open(f.chunkserverDir(i), fleetStore)
		if err != nil {
			f.t.Error(err)
			continue
		}
		err = chunks.Check(context.Background(), func(found store.Finding) { f.t.Errorf("chunkserver %d: %v", i, found) })
		if err != nil {
			f.t.Error(err)
		}
		volumes, err := chunks.Volumes()
		if err != nil {
			f.t.Error(err)
		}
		for _, id := range volumes {
			if !known[id] {
				f.t.Errorf("chunkserver %d has data of volume %d, which does not exist", i, id)
			}
		}
		if err := chunks.Close(); err != nil {
			f.t.Error(err)
		}
	}
}
