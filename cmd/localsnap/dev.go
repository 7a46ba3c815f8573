package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/localsnap/localsnap/chunkserver"
	"github.com/localsnap/localsnap/cluster/coordinator"
	"github.com/localsnap/localsnap/fsm"
)

// The shape of a cluster in one process. Its chunkservers' ports follow from
// the first server's, as the servers' own do.
const (
	devServers        = 3
	devChunkservers   = 3
	chunkserverOffset = 30
	highestAPIPort    = 65535 - chunkserverOffset - devChunkservers
)

// readyPoll is how often a starting cluster is asked whether it is ready.
const readyPoll = 20 * time.Millisecond

type devCmd struct {
	Data      string     `default:"./data" placeholder:"DIR" help:"Directory for everything that the cluster keeps. Default: ${default}."`
	APIPort   uint16     `default:"5555" help:"Port of the first server; the ports up to 33 above are used too."`
	NbdPort   uint16     `default:"10809" help:"Port to listen on for NBD."`
	NbdSocket string     `placeholder:"PATH" help:"Unix socket to listen on for NBD. Default: nbd.sock in the data directory."`
	LogLevel  slog.Level `default:"warn" help:"Least level that is logged: debug, info, warn or error."`
}

func (*devCmd) Help() string {
	return `Three servers, three chunkservers and a gateway, on 127.0.0.1. Ctrl-C stops them; a second one kills them. For example:

  localsnap dev --data /tmp/try --api-port 6000 --nbd-port 10900

The data stays, and so does the cluster: start it again on the same directory.`
}

func (c *devCmd) Run(ctx context.Context) error {
	began := time.Now()
	d, err := openDev(c)
	if err != nil {
		return err
	}
	fmt.Printf("localsnap %s is starting, with its data under %s\n", version, c.Data)
	return d.Run(ctx, func() { fmt.Print(c.banner(time.Since(began))) })
}

func (c *devCmd) socket() string {
	if c.NbdSocket != "" {
		return c.NbdSocket
	}
	return filepath.Join(c.Data, "nbd.sock")
}

// members returns the cluster's servers.
func (c *devCmd) members() (all []member, addresses []apiAddress) {
	for i := range devServers {
		address := apiAddress{loopback(c.APIPort).plus(i)}
		all = append(all, member{fmt.Sprintf("s%d", i+1), address})
		addresses = append(addresses, address)
	}
	return all, addresses
}

func loopback(port uint16) hostPort { return hostPort{"127.0.0.1", int(port)} }

// banner says what listens where and what to do next.
func (c *devCmd) banner(took time.Duration) string {
	_, addresses := c.members()
	var apis []string
	for _, a := range addresses {
		apis = append(apis, "http://"+a.String())
	}
	return fmt.Sprintf(`ready after %v

  API   %s
  NBD   nbd://127.0.0.1:%d and socket %s

Next, in another terminal, a volume of 1 GiB with something in it:

  curl '%s/SnapshotCloneService?Version=1.5&User=ann&Action=CreateFile&File=/test1&Size=1'
  head -c 64M /dev/urandom | nbdcopy --flush - nbd://127.0.0.1:%d//test1
  nbdinfo nbd://127.0.0.1:%d//test1

Ctrl-C stops everything.
`, took.Round(time.Millisecond), strings.Join(apis, " "), c.NbdPort, c.socket(), apis[0], c.NbdPort, c.NbdPort)
}

// dev is a whole cluster.
type dev struct {
	dir          *directory
	servers      []*server
	chunkservers []*chunkserver.Server
	gateway      *gateway
}

// openDev opens all roles. Run must be called.
func openDev(c *devCmd) (_ *dev, err error) {
	if c.APIPort == 0 || c.APIPort > highestAPIPort {
		return nil, fmt.Errorf("--api-port must be from 1 to %d", highestAPIPort)
	}
	log := newLog(os.Stderr, c.LogLevel)
	d := new(dev)
	defer func() {
		if err != nil {
			err = errors.Join(err, d.close())
		}
	}()
	if d.dir, err = claim(c.Data); err != nil {
		return nil, err
	}
	all, addresses := c.members()
	for i, m := range all {
		s, err := openServer(all, m, filepath.Join(c.Data, fmt.Sprintf("server%d", i+1)), "--api-port", coordinator.Config{}, log)
		if err != nil {
			return nil, err
		}
		d.servers = append(d.servers, s)
	}
	for i := range devChunkservers {
		path := filepath.Join(c.Data, fmt.Sprintf("chunkserver%d", i+1))
		s, err := openChunkserver(path, loopback(c.APIPort).plus(chunkserverOffset+i), addresses, "--api-port", log)
		if err != nil {
			return nil, err
		}
		d.chunkservers = append(d.chunkservers, s)
	}
	d.gateway, err = openGateway(filepath.Join(c.Data, "gateway"), loopback(c.NbdPort), c.socket(), addresses, log)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Run serves until ctx ends or a role fails, and closes everything. It calls
// ready once volumes can be made and used.
func (d *dev) Run(ctx context.Context, ready func()) error {
	g, ctx := errgroup.WithContext(ctx)
	// The gateway gives its volumes back, for which it needs the others.
	others, stopOthers := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOthers()
	for _, s := range d.servers {
		g.Go(func() error { return s.Run(others) })
	}
	for _, s := range d.chunkservers {
		g.Go(func() error { return runChunkserver(others, s) })
	}
	g.Go(func() error {
		defer stopOthers()
		return d.gateway.Run(ctx)
	})
	g.Go(func() error {
		if d.awaitReady(ctx) {
			ready()
		}
		return nil
	})
	return errors.Join(g.Wait(), d.dir.release())
}

// awaitReady waits until the cluster is ready; it reports false if ctx ended
// before.
func (d *dev) awaitReady(ctx context.Context) bool {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for !d.ready(ctx) {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// ready reports whether every server knows a leader, there is a place for
// data, and the gateway has its session.
func (d *dev) ready(ctx context.Context) bool {
	placed := false
	for _, s := range d.servers {
		_, self, known := s.coordinator.Leader()
		if !self && !known {
			return false
		}
		if self {
			err := s.coordinator.Read(ctx, func(state *fsm.State) error {
				placed = len(state.Pools()) > 0
				return nil
			})
			placed = placed && err == nil
		}
	}
	if !placed {
		return false
	}
	_, err := d.gateway.session.List(ctx)
	return err == nil
}

// close closes roles that have not run.
func (d *dev) close() error {
	var errs []error
	for _, s := range d.chunkservers {
		errs = append(errs, s.Close())
	}
	for _, s := range d.servers {
		errs = append(errs, s.close())
	}
	if d.dir != nil {
		errs = append(errs, d.dir.release())
	}
	return errors.Join(errs...)
}
