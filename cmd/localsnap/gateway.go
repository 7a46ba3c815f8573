package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"github.com/localsnap/localsnap/chunkserver/nbd"
	"github.com/localsnap/localsnap/chunkserver/volume"
)

// drainTimeout bounds how long requests of clients go on when a gateway stops.
const drainTimeout = 500 * time.Millisecond

type gatewayCmd struct {
	Data      string       `required:"" placeholder:"DIR" help:"Directory for the gateway's identity."`
	Servers   []apiAddress `required:"" placeholder:"HOST:PORT,..." help:"Metadata servers, by the addresses at which users reach them."`
	NbdHost   string       `default:"127.0.0.1" help:"Address to listen on for NBD."`
	NbdPort   uint16       `default:"10809" help:"Port to listen on for NBD."`
	NbdSocket string       `placeholder:"PATH" help:"Unix socket to listen on for NBD. Default: nbd.sock in the data directory."`
	Insecure  bool         `help:"Allow an address that other machines can reach. There is no authentication."`
	LogLevel  slog.Level   `default:"info" help:"Least level that is logged: debug, info, warn or error."`
}

func (*gatewayCmd) Help() string {
	return `Volumes are exported by their paths, snapshots as PATH@SNAPSHOT. For example:

  localsnap gateway --data ./g1 --servers 127.0.0.1:5555,127.0.0.1:5556,127.0.0.1:5557
  nbdinfo --list nbd://127.0.0.1:10809

A gateway that is started again on its directory takes up the volumes that it had.`
}

func (c *gatewayCmd) Run(ctx context.Context) error {
	at := hostPort{c.NbdHost, int(c.NbdPort)}
	if err := guard(at, "--nbd-host", c.Insecure); err != nil {
		return err
	}
	socket := c.NbdSocket
	if socket == "" {
		socket = filepath.Join(c.Data, "nbd.sock")
	}
	g, err := openGateway(c.Data, at, socket, c.Servers, newLog(os.Stderr, c.LogLevel))
	if err != nil {
		return err
	}
	tellManager(ctx, g.log)
	return g.Run(ctx)
}

// gateway exports the volumes of a cluster.
type gateway struct {
	dir       *directory
	session   *volume.Session
	listeners []net.Listener
	log       *slog.Logger
}

// openGateway listens for clients and begins a session with the cluster. Run
// must be called.
func openGateway(path string, at hostPort, socket string, servers []apiAddress, log *slog.Logger) (_ *gateway, err error) {
	g := &gateway{log: log.With("gateway", path)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("gateway: %w", err), g.close())
		}
	}()
	if g.dir, err = claim(path); err != nil {
		return nil, err
	}
	id, err := gatewayID(path)
	if err != nil {
		return nil, err
	}
	tcp, err := listen(at, "--nbd-port")
	if err != nil {
		return nil, err
	}
	g.listeners = append(g.listeners, tcp)
	unix, err := listenUnix(socket)
	if err != nil {
		return nil, err
	}
	g.listeners = append(g.listeners, unix)
	g.session, err = volume.Connect(volume.Config{Servers: controls(servers), Gateway: id, Run: uuid.NewString(), Log: g.log})
	if err != nil {
		return nil, err
	}
	return g, nil
}

// Run serves until ctx ends, gives all volumes back and closes everything.
func (g *gateway) Run(ctx context.Context) error {
	clients := nbd.Server{Exports: newExports(session{g.session}), Log: g.log, DrainTimeout: drainTimeout}
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range g.listeners {
		group.Go(func() error { return clients.Serve(ctx, l) })
	}
	return errors.Join(group.Wait(), g.close())
}

// close closes what has been opened. Listeners that were served are closed
// already.
func (g *gateway) close() error {
	for _, l := range g.listeners {
		l.Close()
	}
	if g.session != nil {
		g.session.Close()
	}
	if g.dir != nil {
		return g.dir.release()
	}
	return nil
}

// gatewayID returns the name that the gateway of a directory has for good, and
// gives it one the first time.
func gatewayID(dir string) (string, error) {
	path := filepath.Join(dir, "gateway")
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		id := uuid.NewString()
		return id, writeDurably(path, []byte(id))
	}
	if err != nil {
		return "", err
	}
	id, err := uuid.ParseBytes(text)
	if err != nil {
		return "", fmt.Errorf("%s does not hold a gateway's name: %w", path, err)
	}
	return id.String(), nil
}

// writeDurably makes a file that, after whatever crash, is whole or missing.
func writeDurably(path string, data []byte) error {
	f, err := os.Create(path + ".tmp")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
