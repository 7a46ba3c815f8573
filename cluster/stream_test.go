package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"
)

func TestStreamClosesAll(t *testing.T) {
	t.Parallel()
	c := newNetwork()
	dialing := make(chan struct{})
	s := newStream(c.listen(t, "a:1"), "a:1", func(ctx context.Context, address string) (net.Conn, error) {
		if address == "nowhere:1" {
			close(dialing)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return c.dialer("a:1")(ctx, address)
	})
	if s.Addr().String() != "a:1" || s.Addr().Network() != "tcp" {
		t.Errorf("Addr = %v", s.Addr())
	}
	dialled, err := s.Dial("a:1", patience)
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := s.Accept()
	if err != nil {
		t.Fatal(err)
	}
	finished, err := s.Dial("a:1", patience)
	if err != nil {
		t.Fatal(err)
	}
	finished.Close()
	if len(s.conns) != 2 {
		t.Errorf("%d connections are known", len(s.conns))
	}
	ended := make(chan error, 3)
	go func() { _, err := dialled.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := accepted.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := s.Dial("nowhere:1", patience); ended <- err }()
	<-dialing
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	for range cap(ended) {
		if err := <-ended; err == nil {
			t.Error("something goes on after Close")
		}
	}
	if _, err := s.Accept(); err == nil {
		t.Error("accepts after Close")
	}
	if err := errors.Join(dialled.Close(), s.Close()); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
	late, other := net.Pipe()
	defer other.Close()
	if _, err := s.add(late); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection made during Close: %v", err)
	}
}

func TestRaftLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	log := raftLog(slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})))
	log.Named("x").Error("failed", "peer", "b", "got", hclog.Fmt("%d / %d", 1, 2))
	for _, want := range []string{"level=DEBUG", `msg="raft: failed"`, "peer=b", `got="1 / 2"`, "severity=error"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s lacks %s", out.String(), want)
		}
	}
	raftLog(slog.New(slog.NewTextHandler(io.Discard, nil))).Info("not asked for")
}
