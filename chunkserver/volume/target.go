package volume

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/localsnap/localsnap/chunkserver/wire"
)

// redialPause is the least time between two attempts to reach a chunkserver.
const redialPause = 20 * time.Millisecond

// targets are the session's connections to chunkservers, one to each. A
// connection that is lost is made again under the same session name: so the
// chunkserver has handed on, or lost, everything of the old one before the
// new one carries anything.
type targets struct {
	dial  wire.Dialer
	hello wire.Hello
	log   *slog.Logger
	ctx   context.Context // ends with the session
	run   *sync.WaitGroup

	mu        sync.Mutex
	byAddress map[string]*target
}

// target is one chunkserver.
type target struct {
	address string
	dials   flight[*wire.Conn]

	mu     sync.Mutex
	conn   *wire.Conn // the latest; nil before the first
	failed bool       // the latest attempt to connect
}

// connect returns the living connection to a chunkserver of the cluster, or
// makes one. Any error wraps wire.ErrUnavailable.
func (t *targets) connect(ctx context.Context, cluster, address string) (*wire.Conn, error) {
	t.mu.Lock()
	to := t.byAddress[address]
	if to == nil {
		to = &target{address: address, dials: flight[*wire.Conn]{pause: redialPause}}
		t.byAddress[address] = to
	}
	t.mu.Unlock()

	if conn := to.living(); conn != nil {
		return conn, nil
	}
	conn, err := to.dials.begin(t.ctx, t.run, func(ctx context.Context) (*wire.Conn, error) {
		if conn := to.living(); conn != nil { // made between the look above and the attempt
			return conn, nil
		}
		hello := t.hello
		hello.Cluster = cluster
		conn, err := wire.Dial(ctx, t.dial, address, hello, wire.Deaf{})
		to.note(conn, err, t.log)
		if err != nil {
			return nil, err
		}
		t.run.Go(func() {
			select {
			case <-t.ctx.Done():
			case <-conn.Done():
			}
			conn.Close()
		})
		return conn, nil
	}).wait(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: chunkserver %s: %w", wire.ErrUnavailable, address, err)
	}
	return conn, nil
}

// retain gives up the connections to all other addresses.
func (t *targets) retain(addresses map[string]bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for address, to := range t.byAddress {
		if conn := to.living(); conn != nil && !addresses[address] {
			t.run.Go(conn.Close)
		}
	}
}

// living returns the connection if there is one that has not ended.
func (t *target) living() *wire.Conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.conn == nil || t.conn.Err() != nil {
		return nil
	}
	return t.conn
}

// note takes in the outcome of an attempt to connect, and logs it if it is
// not like the one before.
func (t *target) note(conn *wire.Conn, err error, log *slog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil && !t.failed:
		log.Warn("chunkserver can't be reached; requests for it wait", "address", t.address, "err", err)
	case err == nil && t.failed:
		log.Info("chunkserver is back", "address", t.address)
	}
	t.failed = err != nil
	if err == nil {
		t.conn = conn
	}
}
