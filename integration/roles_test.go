package integration

import (
	"context"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

// roles is a cluster in which each server, each chunkserver and the gateway is
// a process of its own. The ports are those of a Cluster.
type roles struct {
	t       *testing.T
	dir     string
	port    int
	servers [apiServers]*exec.Cmd
}

const chunkservers = 3

func startRoles(t *testing.T) *roles {
	t.Helper()
	port, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	r := &roles{t: t, dir: t.TempDir(), port: port}
	for i := range r.servers {
		r.startServer(i)
	}
	var addresses []string
	for i := range r.servers {
		addresses = append(addresses, r.address(i))
	}
	servers := "--servers=" + strings.Join(addresses, ",")
	for i := range chunkservers {
		r.start("chunkserver", "--data="+r.chunks(i), "--listen="+r.address(30+i), servers)
	}
	r.start("gateway", "--data="+filepath.Join(r.dir, "gateway"), "--nbd-port="+strconv.Itoa(port+nbdOffset), servers)
	return r
}

// address is that of a port of the block.
func (r *roles) address(offset int) string { return fmt.Sprintf("127.0.0.1:%d", r.port+offset) }

func (r *roles) uri(export string) string { return "nbd://" + r.address(nbdOffset) + "/" + export }

func (r *roles) chunks(i int) string { return filepath.Join(r.dir, fmt.Sprint("chunkserver", i)) }

// start starts a process that is gone when the test ends.
func (r *roles) start(args ...string) *exec.Cmd {
	r.t.Helper()
	cmd := exec.Command(binary, args...)
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { kill(cmd) })
	return cmd
}

func (r *roles) startServer(i int) {
	r.t.Helper()
	args := []string{"server", fmt.Sprint("--id=s", i), "--data=" + filepath.Join(r.dir, fmt.Sprint("server", i))}
	for j := range r.servers {
		args = append(args, fmt.Sprintf("--server=s%d=%s", j, r.address(j)))
	}
	r.servers[i] = r.start(args...)
}

// kill ends a process as a power failure would. It may be called again.
func kill(cmd *exec.Cmd) {
	cmd.Process.Kill()
	cmd.Wait()
}

// leader returns the server that leads.
func (r *roles) leader(ctx context.Context) (leader int) {
	r.t.Helper()
	r.await(ctx, "a leader", func() (bool, error) {
		for i := range r.servers {
			resp, err := http.Get("http://" + r.address(i) + "/leader")
			if err != nil {
				continue
			}
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				leader = i
				return true, nil
			}
		}
		return false, nil
	})
	return leader
}

func (r *roles) await(ctx context.Context, what string, look func() (bool, error)) {
	r.t.Helper()
	if err := wait(ctx, what, look); err != nil {
		r.t.Fatal(err)
	}
}

// taken is how much the layers of all chunkservers take, in bytes: without the
// journals, which are allocated in advance.
func (r *roles) taken() (n int64) {
	r.t.Helper()
	for i := range chunkservers {
		err := filepath.WalkDir(filepath.Join(r.chunks(i), "layers"), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				var info fs.FileInfo
				if info, err = d.Info(); err == nil {
					n += info.Sys().(*syscall.Stat_t).Blocks * 512
				}
			}
			if os.IsNotExist(err) {
				return nil
			}
			return err
		})
		if err != nil {
			r.t.Fatal(err)
		}
	}
	return n
}

var leaderKills = flag.Int("leader-kills", 2, "leaders to kill amid flattening and purging")

// The leader is killed while a clone is being flattened and a snapshot and a
// volume are being deleted, again and again: the next leader completes the
// work, the clone has what it should, and the space comes back.
func TestKilledLeader(t *testing.T) {
	needTools(t)
	t.Parallel()
	const size = 64 << 20
	r := startRoles(t)
	ctx := testContext(t, time.Minute+time.Duration(*leaderKills)*30*time.Second)
	api := client.New(r.address(0), r.address(1), r.address(2))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(r.dir, "image")
	content := make([]byte, size)
	for i := range content {
		content[i] = byte(rand.Uint32())
	}
	must(os.WriteFile(image, content, 0o644))
	must(os.Truncate(image, 1<<30))
	must(api.CreateFile(ctx, client.CreateFileRequest{User: user, File: "/v", Size: 1}))
	r.await(ctx, "the gateway to take the image", func() (bool, error) {
		return nbdcopy(ctx, image, r.uri("/v"), func(int) {}) == nil, nil
	})
	_, err := api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: "/v", Name: "kept"})
	must(err)
	for round := range *leaderKills {
		clone := fmt.Sprint("/c", round)
		_, err := api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: "/v", Name: "scrap"})
		must(err)
		must(nbdcopy(ctx, image, r.uri("/v"), func(int) {}))
		_, err = api.Clone(ctx, client.CloneRequest{User: user, File: "/v", Name: "kept", Destination: clone})
		must(err)
		must(api.Flatten(ctx, client.FlattenRequest{User: user, File: clone}))
		must(api.DeleteSnapshot(ctx, client.DeleteSnapshotRequest{User: user, File: "/v", Name: "scrap"}))
		leader := r.leader(ctx)
		time.Sleep(time.Duration(round*37%100) * time.Millisecond) // so that each dies at another step
		kill(r.servers[leader])
		r.await(ctx, "the clone to be flattened", func() (bool, error) {
			reply, err := api.ListFile(ctx, client.ListFileRequest{User: user, File: clone})
			return err == nil && reply.FileInfos[0].Status == client.FileDone, err
		})
		r.await(ctx, "the snapshot to go", func() (bool, error) {
			_, err := api.GetFileSnapshotInfo(ctx, client.SnapshotInfoRequest{User: user, File: "/v", Name: "scrap"})
			return client.Refused(err, client.NotExist), nil
		})
		r.startServer(leader)
		_, err = run(ctx, r.dir, "qemu-img", "compare", imageFile(image), nbdImage(clone, filepath.Join(r.dir, "gateway", "nbd.sock")))
		must(err)
		r.remove(ctx, api, clone)
	}
	must(api.DeleteSnapshot(ctx, client.DeleteSnapshotRequest{User: user, File: "/v", Name: "kept"}))
	if before := r.taken(); before < size*chunkservers {
		t.Errorf("%d bytes are taken before the end", before)
	}
	r.await(ctx, "the snapshots to go", func() (bool, error) {
		reply, err := api.GetFileSnapshotInfo(ctx, client.SnapshotInfoRequest{User: user, File: "/v"})
		return err == nil && reply.TotalCount == 0, err
	})
	r.remove(ctx, api, "/v")
	r.await(ctx, "the space to come back", func() (bool, error) { return r.taken() == 0, nil })
}

// remove deletes a volume and has it purged.
func (r *roles) remove(ctx context.Context, api *client.Client, file string) {
	r.t.Helper()
	r.await(ctx, "the volume to be let go of", func() (bool, error) {
		err := api.DeleteFile(ctx, client.DeleteFileRequest{User: user, File: file})
		if client.Refused(err, client.Occupied) {
			return false, nil
		}
		return err == nil, err
	})
	trash, err := api.ListFile(ctx, client.ListFileRequest{User: user, Dir: "/RecycleBin"})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range trash.FileInfos {
		if err := api.DeleteFile(ctx, client.DeleteFileRequest{User: user, File: f.File}); err != nil {
			r.t.Fatal(err)
		}
	}
}
