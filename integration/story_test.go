package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/api/client"
)

// binary is the localsnap that all tests run.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "localsnap-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	binary = filepath.Join(dir, "localsnap")
	build := exec.Command("go", "build", "-race=false", "-o", binary, "github.com/localsnap/localsnap/cmd/localsnap")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	code := 1
	if err := build.Run(); err == nil {
		code = m.Run()
	}
	os.RemoveAll(dir)
	os.Exit(code)
}

// needTools skips the test on a developer's machine without the tools, and
// fails it where nobody would notice.
func needTools(t *testing.T) {
	t.Helper()
	var missing []string
	for _, tool := range Tools {
		if _, err := lookPath(tool); err != nil {
			missing = append(missing, tool)
		}
	}
	if missing == nil {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("missing: %s", strings.Join(missing, ", "))
	}
	t.Skipf("missing: %s (make deps installs them)", strings.Join(missing, ", "))
}

func start(t *testing.T, dir string) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), binary, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Kill)
	return c
}

// testContext ends before the test binary's own limit, so that what hangs
// says where.
func testContext(t *testing.T, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

func TestStory(t *testing.T) {
	needTools(t)
	ctx := testContext(t, 3*time.Minute)
	story := Story{Binary: binary, Dir: t.TempDir(), Tree: filepath.Join(GoSource(ctx), "net"), Out: t.Output()}
	if err := story.Tell(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-story.cluster.done:
	default:
		t.Error("the cluster still runs")
	}
}

// TestStoryCleansUp ends the story in its middle.
func TestStoryCleansUp(t *testing.T) {
	needTools(t)
	story := Story{Binary: binary, Dir: t.TempDir(), Tree: filepath.Join(t.TempDir(), "missing"), Out: t.Output()}
	if err := story.Tell(testContext(t, time.Minute)); err == nil {
		t.Fatal("an image was made of a directory that does not exist")
	}
	if story.cluster == nil {
		t.Fatal("no cluster was started")
	}
	select {
	case <-story.cluster.done:
	default:
		t.Error("the cluster still runs")
	}
}

func TestEveryServerAnswers(t *testing.T) {
	c := start(t, t.TempDir())
	ctx := testContext(t, time.Minute)
	var want []string
	for i := range apiServers {
		file := fmt.Sprintf("/v%d", i)
		want = append(want, file)
		if err := client.New(c.server(i)).CreateFile(ctx, client.CreateFileRequest{User: user, File: file, Size: 1}); err != nil {
			t.Fatalf("CreateFile at server %d: %v", i, err)
		}
	}
	for i := range apiServers {
		reply, err := client.New(c.server(i)).ListFile(ctx, client.ListFileRequest{User: user, Dir: "/"})
		if err != nil {
			t.Fatalf("ListFile at server %d: %v", i, err)
		}
		var got []string
		for _, f := range reply.FileInfos {
			if f.Type == client.Volume {
				got = append(got, f.File)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("ListFile at server %d (-want +got):\n%s", i, diff)
		}
	}
}

func TestExports(t *testing.T) {
	needTools(t)
	c := start(t, t.TempDir())
	ctx, api, dir := testContext(t, time.Minute), c.Client(), t.TempDir()
	if err := api.CreateFile(ctx, client.CreateFileRequest{User: user, File: "/v", Size: 1}); err != nil {
		t.Fatal(err)
	}
	io := func(image string, list ...string) (string, error) {
		return run(ctx, dir, "qemu-io", append(commands(list), image)...)
	}
	must := func(out string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	fails := func(what string, out string, err error) {
		t.Helper()
		if err == nil {
			t.Errorf("%s was accepted: %s", what, out)
		}
	}

	// Sectors beside each other in one block of 4 KiB, and one across two blocks.
	must(io(c.Image("/v"), "write -P 1 4096 4096", "write -P 2 4608 512", "write -P 3 7680 1024"))
	layout := []string{
		"read -P 0 0 4096", "read -P 1 4096 512", "read -P 2 4608 512",
		"read -P 1 5120 2560", "read -P 3 7680 1024", "read -P 0 8704 4096",
	}
	must(io(c.Image("/v"), layout...))
	out, err := io(c.Image("/v"), "read -P 9 4096 512")
	fails("a wrong pattern", out, err)

	if _, err := api.CreateSnapshot(ctx, client.CreateSnapshotRequest{User: user, File: "/v", Name: "s"}); err != nil {
		t.Fatal(err)
	}
	must(io(c.Image("/v"), "write -P 4 4096 512"))
	must(run(ctx, dir, "qemu-io", append(commands(layout), "-r", c.Image("/v@s"))...))
	out, err = io(c.Image("/v@s"), "write -P 5 0 512")
	fails("a write to a snapshot", out, err)

	for _, tc := range []struct {
		export string
		want   string
	}{
		{"/v", "is_read_only: false"},
		{"/v@s", "is_read_only: true"},
		{"/v", "export-size: 1073741824"},
	} {
		if out := must(run(ctx, dir, "nbdinfo", c.URI(tc.export))); !strings.Contains(out, tc.want) {
			t.Errorf("%s lacks %q:\n%s", tc.export, tc.want, out)
		}
	}
	for _, export := range []string{"/missing", "/v@missing", "/missing@s", ""} {
		out, err := run(ctx, dir, "nbdinfo", c.URI(export))
		fails(fmt.Sprintf("the export %q", export), out, err)
	}
	listed := must(run(ctx, dir, "nbdinfo", "--list", c.URI("")))
	for _, export := range []string{`"/v"`, `"/v@s"`} {
		if !strings.Contains(listed, export) {
			t.Errorf("the list lacks %s:\n%s", export, listed)
		}
	}
	// The gateway survived all that.
	must(io(c.Image("/v"), "read -P 4 4096 512"))
}

// commands are qemu-io's arguments for what it is to do.
func commands(of []string) []string {
	var args []string
	for _, command := range of {
		args = append(args, "-c", command)
	}
	return args
}

// TestRestart finds everything again, after a clean stop and after none.
func TestRestart(t *testing.T) {
	needTools(t)
	dir := t.TempDir()
	ctx := testContext(t, time.Minute)
	for round, end := range []func(*Cluster){
		func(c *Cluster) {
			took, err := c.Stop()
			if err != nil || took > cleanStop {
				t.Errorf("stop: %v after %v", err, took)
			}
		},
		(*Cluster).Kill,
		(*Cluster).Kill,
	} {
		c := start(t, dir)
		api := c.Client()
		file := fmt.Sprintf("/v%d", round)
		if err := api.CreateFile(ctx, client.CreateFileRequest{User: user, File: file, Size: 1}); err != nil {
			t.Fatal(err)
		}
		if _, err := run(ctx, dir, "qemu-io", "-c", fmt.Sprintf("write -P %d 1M 64k", round+1), "-c", "flush", c.Image(file)); err != nil {
			t.Fatal(err)
		}
		for r := range round + 1 {
			out, err := run(ctx, dir, "qemu-io", "-c", fmt.Sprintf("read -P %d 1M 64k", r+1), c.Image(fmt.Sprintf("/v%d", r)))
			if err != nil {
				t.Errorf("round %d: /v%d: %v\n%s", round, r, err, out)
			}
		}
		end(c)
	}
}
