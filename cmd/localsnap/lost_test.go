package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/chunkserver/volume"
	"github.com/localsnap/localsnap/chunkserver/wire"
)

// deafConn loses what it receives once it is armed: the connection ends.
type deafConn struct {
	net.Conn
	armed *atomic.Bool
}

func (c deafConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.armed.CompareAndSwap(true, false) {
		c.Close()
		return 0, errors.New("cut by the test")
	}
	return n, err
}

// The leader attaches a volume, but its answer is lost with the connection,
// and the gateway asks again: nothing stays attached when it is done.
func TestLostAnswerLeavesNothingAttached(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v := f.views(ctx)
	v.create("/v", 1)
	var armed atomic.Bool
	servers := controls(f.addresses)
	session, err := volume.Connect(volume.Config{
		Servers: servers, Gateway: "deaf", Run: uuid.NewString(), Log: slog.New(slog.DiscardHandler),
		Dial: func(ctx context.Context, address string) (net.Conn, error) {
			conn, err := wire.DialTCP(ctx, address)
			if err == nil && slices.Contains(servers, address) {
				conn = deafConn{conn, &armed}
			}
			return conn, err
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	_, err = session.List(ctx)
	v.must(err, "list")
	for _, readOnly := range []bool{false, true} {
		armed.Store(true)
		view, err := session.Attach(ctx, "/v", "", readOnly)
		v.must(err, "attach")
		v.must(view.Close(ctx), "detach")
		if armed.Load() {
			t.Fatal("no answer was lost")
		}
	}
	v.delete("/v")
}
