package nemesis

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

const (
	user = "ann"

	apiPort   = "5555"
	chunkPort = "5585"

	// patient is more than anything takes that works, on a busy machine.
	patient = time.Minute
)

// A fleet is a cluster of processes on a network.
type fleet struct {
	*network
	dir                             string
	servers, chunkservers, gateways []*process
	api                             *client.Client
}

// A layout says what a fleet is to consist of, beside three servers.
type layout struct {
	chunkservers, gateways int
	small                  bool // each chunkserver has a small disk of its own
}

// startFleet runs a cluster until the test ends.
func startFleet(t *testing.T, l layout) *fleet {
	t.Helper()
	f := &fleet{network: newNetwork(t), dir: t.TempDir()}
	for i := range 3 {
		f.servers = append(f.servers, f.newProcess(fmt.Sprint("server", i+1)))
	}
	var members, addresses []string
	for _, s := range f.servers {
		members = append(members, fmt.Sprintf("--server=%s=%s:%s", s.name, s.address, apiPort))
		addresses = append(addresses, s.address+":"+apiPort)
	}
	for _, s := range f.servers {
		s.args = append([]string{"server", "--insecure", "--id=" + s.name, "--data=" + s.dir}, members...)
		s.start()
	}
	f.api = client.New(addresses...)
	t.Cleanup(f.api.HTTP.CloseIdleConnections)
	servers := "--servers=" + strings.Join(addresses, ",")
	for i := range l.chunkservers {
		c := f.newProcess(fmt.Sprint("chunkserver", i+1))
		if l.small {
			mountSmall(t, c.dir)
			t.Cleanup(c.kill) // before its disk goes
			c.dir = filepath.Join(c.dir, "data")
		}
		c.args = []string{"chunkserver", "--insecure", "--data=" + c.dir, "--listen=" + c.address + ":" + chunkPort, servers}
		c.start()
		f.chunkservers = append(f.chunkservers, c)
	}
	for i := range l.gateways {
		g := f.newProcess(fmt.Sprint("gateway", i+1))
		g.args = []string{"gateway", "--data=" + g.dir, servers}
		g.start()
		f.gateways = append(f.gateways, g)
	}
	return f
}

// newProcess makes a host for a process. When the test ends, the process is
// gone, and if the test has failed it is told what the process said.
func (f *fleet) newProcess(name string) *process {
	f.t.Helper()
	p := &process{host: f.newHost(name), t: f.t, dir: filepath.Join(f.dir, name), log: filepath.Join(f.dir, name+".log")}
	must(f.t, os.Mkdir(p.dir, 0o755))
	f.t.Cleanup(func() {
		p.kill()
		if f.t.Failed() {
			f.t.Logf("%s:\n%s", p.name, p.tail())
		}
	})
	return p
}

func (f *fleet) processes() (all []*process) {
	return append(append(append(all, f.servers...), f.chunkservers...), f.gateways...)
}

// leader returns the server that leads.
func (f *fleet) leader() (leader *process) {
	f.t.Helper()
	c := http.Client{Timeout: time.Second}
	defer c.CloseIdleConnections()
	await(f.t, patient, "a leader", func() bool {
		for _, s := range f.servers {
			resp, err := c.Get("http://" + s.address + ":" + apiPort + "/leader")
			if err != nil {
				continue
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				leader = s
				return true
			}
		}
		return false
	})
	return leader
}

// createVolume makes a volume of 1 GiB.
func (f *fleet) createVolume(file string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patient)
	defer cancel()
	must(f.t, f.api.CreateFile(ctx, client.CreateFileRequest{User: user, File: file, Size: 1}))
}

func socket(gateway *process) string { return filepath.Join(gateway.dir, "nbd.sock") }

// open opens an export as soon as the gateway does, until the test ends.
func (f *fleet) open(gateway *process, export string) (d *disk) {
	f.t.Helper()
	var err error
	defer func() {
		if d == nil {
			f.t.Logf("open %s: %v", export, err)
		}
	}()
	await(f.t, patient, "the gateway to open "+export, func() bool {
		d, err = openDisk(socket(gateway), export)
		return err == nil
	})
	f.t.Cleanup(d.close)
	return d
}

// snapshot takes a snapshot.
func (f *fleet) snapshot(file, name string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patient)
	defer cancel()
	if _, err := f.api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: file, Name: name}); err != nil {
		f.t.Errorf("snapshot %s: %v", name, err)
	}
}

// removeSnapshot deletes a snapshot.
func (f *fleet) removeSnapshot(file, name string) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), patient)
	defer cancel()
	if err := f.api.DeleteSnapshot(ctx, client.DeleteSnapshotRequest{User: user, File: file, Name: name}); err != nil {
		f.t.Errorf("delete snapshot %s: %v", name, err)
	}
}

// whole waits until all members of all copysets are in sync.
func (f *fleet) whole(limit time.Duration) {
	f.t.Helper()
	await(f.t, limit, "all copies to be in sync", func() bool {
		ctx, cancel := context.WithTimeout(f.t.Context(), limit)
		defer cancel()
		reply, err := f.api.ListCopysets(ctx, client.ListCopysetsRequest{})
		if err != nil || len(reply.Copysets) == 0 {
			return false
		}
		for _, set := range reply.Copysets {
			for _, m := range set.Members {
				if m.State != client.MemberInSync {
					return false
				}
			}
		}
		return true
	})
}

// verify checks, when nobody writes, that all copies are whole and equal, as
// an administrator does.
func (f *fleet) verify() {
	f.t.Helper()
	f.whole(patient)
	var servers []string
	for _, s := range f.servers {
		servers = append(servers, s.address+":"+apiPort)
	}
	var out string
	await(f.t, patient, "localsnap copyset verify to find all copies equal", func() bool {
		ctx, cancel := context.WithTimeout(f.t.Context(), patient)
		defer cancel()
		var err error
		out, err = run(ctx, "", os.Getenv(binaryVariable), "copyset", "verify", "--user="+user, "--servers="+strings.Join(servers, ","))
		if err != nil && strings.Contains(out, "DIFFER") {
			f.t.Fatal(err)
		}
		return err == nil
	})
	f.t.Log(strings.TrimSpace(out))
}

// allRun checks that no process has ended by itself.
func (f *fleet) allRun() {
	f.t.Helper()
	for _, p := range f.processes() {
		if !p.runs() {
			f.t.Errorf("%s has ended", p.name)
		}
	}
}
