package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

// needTool skips a test where there is no such program, but not in CI.
func needTool(t *testing.T, tool string) {
	t.Helper()
	if _, err := lookPath(tool); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatalf("%s is missing: make deps installs it", tool)
		}
		t.Skipf("%s is missing: make deps installs it", tool)
	}
}

// The units are what systemd understands, and are told when a role is ready.
func TestUnits(t *testing.T) {
	needTool(t, "systemd-analyze")
	t.Parallel()
	dir := t.TempDir()
	units, err := filepath.Glob("../deploy/systemd/*.service")
	if err != nil || len(units) != 3 {
		t.Fatalf("%q, %v", units, err)
	}
	for _, unit := range units {
		text, err := os.ReadFile(unit)
		if err != nil {
			t.Fatal(err)
		}
		// Where the package will put it, there is nothing yet.
		text = bytes.ReplaceAll(text, []byte("/usr/bin/localsnap"), []byte(binary))
		copied := filepath.Join(dir, filepath.Base(unit))
		if err := os.WriteFile(copied, text, 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", "--man=no", copied).CombinedOutput(); err != nil || strings.Contains(string(out), filepath.Base(unit)) {
			t.Errorf("%s: %v\n%s", unit, err, out)
		}
	}
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	port, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "server", "--id=s1", "--data="+filepath.Join(dir, "s1"), fmt.Sprintf("--server=s1=127.0.0.1:%d", port))
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+manager.LocalAddr().String())
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(cmd) })
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		manager.SetReadDeadline(time.Now().Add(startLimit))
		told := make([]byte, 64)
		n, err := manager.Read(told)
		if err != nil || string(told[:n]) != want {
			t.Fatalf("told %q, %v, want %s", told[:n], err, want)
		}
		cmd.Process.Signal(os.Interrupt)
	}
}

var withContainers = flag.Bool("containers", false, "start a cluster of containers; needs Docker")

// The containers come up as a cluster, which keeps what is written through it
// when they are all restarted.
func TestContainers(t *testing.T) {
	if !*withContainers {
		t.Skip("runs with make test-containers")
	}
	if err := exec.Command("docker", "info").Run(); err != nil {
		t.Fatalf("there is no Docker here: %v", err)
	}
	needTool(t, "docker-compose")
	needTools(t)
	t.Parallel()
	ctx := testContext(t, 3*time.Minute)
	port, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	build := t.TempDir()
	project := fmt.Sprint("localsnap-test-", port)
	must := func(tool string, args ...string) {
		t.Helper()
		if _, err := run(ctx, build, tool, args...); err != nil {
			t.Fatal(err)
		}
	}
	static := exec.Command("go", "build", "-o", filepath.Join(build, "localsnap"), "../cmd/localsnap")
	static.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := static.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	must("docker", "build", "-q", "-t", project, "-f", absolute(t, "../deploy/docker/Dockerfile"), ".")
	t.Cleanup(func() { exec.Command("docker", "rmi", "-f", project).Run() })
	compose := func(args ...string) *exec.Cmd {
		cmd := exec.Command("docker-compose", append([]string{"-p", project, "-f", absolute(t, "../deploy/docker/docker-compose.yml")}, args...)...)
		cmd.Env = append(os.Environ(), "LOCALSNAP_IMAGE="+project, fmt.Sprint("LOCALSNAP_API_PORT=", port), fmt.Sprint("LOCALSNAP_NBD_PORT=", port+nbdOffset))
		return cmd
	}
	up := func() {
		t.Helper()
		if out, err := compose("up", "-d", "--no-build").CombinedOutput(); err != nil {
			t.Fatalf("up: %v\n%s", err, out)
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := compose("logs", "--tail=20").CombinedOutput()
			t.Logf("%s", logs)
		}
		compose("down", "-v", "-t", "1").Run()
	})
	up()
	api := client.New(fmt.Sprintf("127.0.0.1:%d", port))
	ready := func() {
		t.Helper()
		if err := wait(ctx, "the cluster to be ready", func() (bool, error) {
			return api.CreateFile(ctx, client.CreateFileRequest{User: user, File: "/v", Size: 1}) == nil, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	ready()
	image, copied := filepath.Join(build, "image"), filepath.Join(build, "copy")
	uri := fmt.Sprintf("nbd://127.0.0.1:%d//v", port+nbdOffset)
	must("cp", binary, image)
	must("truncate", "-s", "1G", image)
	must("nbdcopy", "--flush", image, uri)
	if out, err := compose("down", "-t", "10").CombinedOutput(); err != nil {
		t.Fatalf("down: %v\n%s", err, out)
	}
	up()
	ready()
	must("nbdcopy", uri, copied)
	must("cmp", image, copied)
}

func absolute(t *testing.T, path string) string {
	t.Helper()
	path, err := filepath.Abs(path)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// startBalancer runs HAProxy with the configuration that is shipped.
func (r *roles) startBalancer() (address string) {
	r.t.Helper()
	address = r.address(45)
	cmd := exec.Command("haproxy", "-db", "-q", "-f", "../deploy/haproxy.cfg")
	if path, err := lookPath("haproxy"); err == nil {
		cmd.Path = path
	}
	cmd.Env = append(os.Environ(), "LOCALSNAP_BIND="+address)
	for i := range r.servers {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LOCALSNAP_SERVER_%d=%s", i+1, r.address(i)))
	}
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		kill(cmd)
		if r.t.Failed() {
			r.t.Logf("haproxy:\n%s", said.Bytes())
		}
	})
	return address
}

// The metadata leader is killed, again and again, under a stream of requests of
// all kinds through the load balancer. Each ends well, or with an error that
// says that it can be repeated; what was acknowledged is there; and the service
// is back soon.
func TestLeadersDieBehindABalancer(t *testing.T) {
	needTool(t, "haproxy")
	t.Parallel()
	r := startRoles(t)
	ctx := testContext(t, 2*time.Minute)
	s := &stream{t: t, base: "http://" + r.startBalancer() + "/SnapshotCloneService?Version=1.5&User=" + user}
	r.await(ctx, "the balancer to pass requests on", func() (bool, error) {
		return s.ask(ctx, "Action=CreateFile&File=/ready&Size=1") == nil, nil
	})
	s.last = time.Now()
	running, stop := context.WithCancel(ctx)
	var writers sync.WaitGroup
	for i := range 4 {
		writers.Go(func() { s.run(running, ctx, fmt.Sprint("/w", i)) })
	}
	for range *leaderKills {
		leader := r.leader(ctx)
		kill(r.servers[leader])
		at := s.done()
		r.await(ctx, "requests to be answered again", func() (bool, error) { return s.done() > at+20, nil })
		r.startServer(leader)
		r.await(ctx, "the server to be back", func() (bool, error) {
			resp, err := http.Get("http://" + r.address(leader) + "/readyz")
			if err != nil {
				return false, nil
			}
			resp.Body.Close()
			return resp.StatusCode == http.StatusOK, nil
		})
	}
	stop()
	writers.Wait()
	t.Logf("%d requests were answered, %d could be repeated; the longest pause was %v", s.answered, s.repeated, s.longest)
	const limit = 2 * time.Second
	if s.longest > 5*limit { // on a machine that does other things meanwhile
		t.Errorf("no request was answered for %v", s.longest)
	}
	for file := range s.kept {
		if err := s.ask(ctx, "Action=ListFile&File="+file); err != nil {
			t.Errorf("%s was made, and is not there: %v", file, err)
		}
	}
}

// stream is requests that many make, and how they end.
type stream struct {
	t    *testing.T
	base string

	mu       sync.Mutex
	answered int
	repeated int
	last     time.Time // when a request was answered
	longest  time.Duration
	kept     map[string]bool // volumes that were made and not deleted
}

func (s *stream) done() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answered
}

// run lives the lives of volumes below a prefix until running ends.
func (s *stream) run(running, ctx context.Context, prefix string) {
	for n := 0; running.Err() == nil; n++ {
		file, clone := fmt.Sprint(prefix, "-", n), fmt.Sprint(prefix, "-clone-", n)
		s.must(ctx, "Action=CreateFile&Size=1&File="+file)
		s.must(ctx, "Action=CreateSnapshot&Name=s&File="+file)
		s.must(ctx, "Action=Clone&Name=s&File="+file+"&Destination="+clone)
		s.must(ctx, "Action=Flatten&File="+clone)
		s.must(ctx, "Action=ListFile&File="+clone)
		s.must(ctx, "Action=GetFileSnapshotInfo&File="+file)
		s.must(ctx, "Action=Recover&Name=s&File="+file)
		s.keep(file, clone)
	}
}

func (s *stream) keep(files ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept = make(map[string]bool)
	}
	for _, f := range files {
		s.kept[f] = true
	}
}

// must repeats a request that can be repeated until it is answered well.
func (s *stream) must(ctx context.Context, query string) {
	for ctx.Err() == nil {
		err := s.ask(ctx, query)
		s.mu.Lock()
		if err == nil {
			s.answered++
			s.longest = max(s.longest, time.Since(s.last))
			s.last = time.Now()
			s.mu.Unlock()
			return
		}
		s.repeated++
		s.mu.Unlock()
		if !client.Refused(err, client.Stopped) && !client.Refused(err, client.Occupied) {
			s.t.Errorf("%s: %v", query, err)
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ask makes one request, as curl would. The balancer says that it has no server
// as the API says that it has no leader.
func (s *stream) ask(ctx context.Context, query string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.base+"&"+query, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	var reply client.Reply
	if json.Unmarshal(body, &reply) != nil {
		if resp.StatusCode != http.StatusServiceUnavailable {
			return fmt.Errorf("status %d: %s", resp.StatusCode, body)
		}
		reply.Code = client.Stopped
	}
	if reply.Code != client.OK {
		return &client.Error{Code: reply.Code, Message: reply.Message, Detail: reply.Detail, RequestID: reply.RequestID}
	}
	return nil
}
