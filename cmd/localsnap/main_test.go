package main

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/localsnap/localsnap/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServerFlags(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text string
		want cluster.Server // none: refused
	}{
		{"s1=127.0.0.1:5555", cluster.Server{ID: "s1", API: "127.0.0.1:5555", Raft: "127.0.0.1:5565", Control: "127.0.0.1:5575"}},
		{"b=node-b.example:80", cluster.Server{ID: "b", API: "node-b.example:80", Raft: "node-b.example:90", Control: "node-b.example:100"}},
		{"s=[::1]:1000", cluster.Server{ID: "s", API: "[::1]:1000", Raft: "[::1]:1010", Control: "[::1]:1020"}},
		{"s=h:65515", cluster.Server{ID: "s", API: "h:65515", Raft: "h:65525", Control: "h:65535"}},
		{text: "s=h:65516"}, // no room for the control port
		{text: "127.0.0.1:5555"},
		{text: "=127.0.0.1:5555"},
		{text: "s=127.0.0.1"},
		{text: "s=:5555"},
		{text: "s=0.0.0.0:5555"},
		{text: "s=h:0"},
		{text: "s=h:-1"},
		{text: "s=h:70000"},
		{text: "s=h:http"},
	} {
		var m member
		err := m.UnmarshalText([]byte(tt.text))
		if refused := tt.want == (cluster.Server{}); refused != (err != nil) {
			t.Errorf("%s: %v", tt.text, err)
		} else if !refused {
			if diff := cmp.Diff(tt.want, m.server()); diff != "" {
				t.Errorf("%s:\n%s", tt.text, diff)
			}
		}
	}
}

func TestParse(t *testing.T) {
	t.Parallel()
	c := new(commands)
	parser, err := newParser(c)
	if err != nil {
		t.Fatal(err)
	}
	_, err = parser.Parse(strings.Fields("server --id b --data d --server a=127.0.0.1:1 --server b=127.0.0.1:2 --log-level debug"))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Server.Server) != 2 || c.Server.Server[1].server().API != "127.0.0.1:2" || c.Server.LogLevel.String() != "DEBUG" {
		t.Errorf("got %+v", c.Server)
	}
	_, err = parser.Parse(strings.Fields("chunkserver --data d --listen 127.0.0.1:9 --servers 127.0.0.1:1,127.0.0.1:2"))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"127.0.0.1:21", "127.0.0.1:22"}, controls(c.Chunkserver.Serve.Servers)); diff != "" {
		t.Error(diff)
	}
}

// What is refused is refused before anything is opened.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ args, want string }{
		{"server --id s --data DIR --server s=10.0.0.1:5555", "--insecure"},
		{"server --id x --data DIR --server s=127.0.0.1:5555", "--id x"},
		{"chunkserver --data DIR --listen 10.0.0.1:5585 --servers 127.0.0.1:5555", "--insecure"},
		{"chunkserver --data DIR --listen 0.0.0.0:5585 --servers 127.0.0.1:5555 --insecure", "at which others reach"},
		{"gateway --data DIR --nbd-host 0.0.0.0 --servers 127.0.0.1:5555", "--insecure"},
		{"gateway --data DIR --nbd-host example.org --servers 127.0.0.1:5555", "--insecure"},
		{"gateway --data DIR --servers 127.0.0.1:none", "port must be a number"},
		{"dev --data DIR --api-port 65530", "--api-port"},
		{"dev --data DIR --log-level loud", "loud"},
		{"nothing", "--help"},
	} {
		dir := filepath.Join(t.TempDir(), "data")
		err := run(t.Context(), strings.Fields(strings.ReplaceAll(tt.args, "DIR", dir)), io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want an error that mentions %q", tt.args, err, tt.want)
		}
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("%s: the data directory was made", tt.args)
		}
	}
}

func TestGuard(t *testing.T) {
	t.Parallel()
	for host, ok := range map[string]bool{
		"127.0.0.1": true, "127.8.8.8": true, "::1": true, "localhost": true,
		"": false, "0.0.0.0": false, "::": false, "192.168.1.1": false, "localhost.example": false,
	} {
		if err := guard(hostPort{host, 1}, "--listen", false); (err == nil) != ok {
			t.Errorf("%q: %v", host, err)
		}
		if err := guard(hostPort{host, 1}, "--listen", true); err != nil {
			t.Errorf("%q with --insecure: %v", host, err)
		}
	}
}

func TestListenBusy(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = listen(hostPort{"127.0.0.1", l.Addr().(*net.TCPAddr).Port}, "--api-port")
	if err == nil || !strings.Contains(err.Error(), "--api-port") {
		t.Errorf("busy port: %v", err)
	}
}

func TestListenUnix(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "--nbd-socket") {
		t.Errorf("socket that somebody serves: %v", err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false) // as a killed process leaves it
	l.Close()
	l, err = listenUnix(path)
	if err != nil {
		t.Fatalf("left-over socket: %v", err)
	}
	l.Close()

	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(path); err == nil {
		t.Error("a file was taken for a socket")
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file is lost: %q, %v", text, err)
	}
	if _, err := listenUnix("/tmp/" + strings.Repeat("x", maxSocketPath)); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("long path: %v", err)
	}
}

func TestClaim(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	d, err := claim(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := claim(dir); err == nil || !strings.Contains(err.Error(), "--data") {
		t.Errorf("claimed twice: %v", err)
	}
	if err := d.release(); err != nil {
		t.Fatal(err)
	}
	if _, err := claim(dir); err != nil {
		t.Errorf("claim after release: %v", err)
	}
}

func TestGatewayID(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	first, err := gatewayID(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := gatewayID(dir); again != first || err != nil {
		t.Errorf("got %s, %v after %s", again, err, first)
	}
	if other, _ := gatewayID(t.TempDir()); other == first {
		t.Error("two gateways of one name")
	}
	if err := os.WriteFile(filepath.Join(dir, "gateway"), []byte("torn"), 0o644); err != nil {
		t.Fatal(err)
	}
	if id, err := gatewayID(dir); err == nil {
		t.Errorf("a damaged file gave the name %s", id)
	}
}

func TestBanner(t *testing.T) {
	t.Parallel()
	c := &devCmd{Data: "d", APIPort: 6000, NbdPort: 7000}
	text := c.banner(1234567 * time.Microsecond)
	for _, want := range []string{"1.235s", "http://127.0.0.1:6002", "'http://127.0.0.1:6000/", "nbd://127.0.0.1:7000//test1", "d/nbd.sock"} {
		if !strings.Contains(text, want) {
			t.Errorf("the banner lacks %q:\n%s", want, text)
		}
	}
}

// A cluster whose start is interrupted, or fails half way, leaves nothing
// behind: another one can start in its place.
func TestDevLeavesNothing(t *testing.T) {
	c := &devCmd{Data: filepath.Join(t.TempDir(), "d"), APIPort: freePortBlock(t)}
	c.NbdPort = c.APIPort + chunkserverOffset + devChunkservers
	busy, err := listen(loopback(c.NbdPort), "--nbd-port")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := openDev(c); err == nil || !strings.Contains(err.Error(), "--nbd-port") {
		t.Fatalf("busy NBD port: %v", err)
	}
	busy.Close()
	for range 2 {
		d, err := openDev(c)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ready := false
		if err := d.Run(ctx, func() { ready = true; cancel() }); err != nil {
			t.Errorf("run: %v", err)
		}
		cancel()
		if !ready {
			t.Error("ended before it was ready")
		}
	}
}
