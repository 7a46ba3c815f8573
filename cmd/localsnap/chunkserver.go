package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/localsnap/localsnap/chunkserver"
)

type chunkserverCmd struct {
	Serve  chunkserverServe  `cmd:"" default:"withargs" help:"Run one chunkserver, which keeps copies of the data."`
	List   chunkserverList   `cmd:"" help:"List the chunkservers of a cluster, and how they are."`
	Drain  chunkserverDrain  `cmd:"" help:"Move all copies of a chunkserver to others."`
	Remove chunkserverRemove `cmd:"" help:"Forget a chunkserver that keeps no copies and does not run."`
}

type chunkserverServe struct {
	Data     string       `required:"" placeholder:"DIR" help:"Directory for the chunks."`
	Listen   hostPort     `required:"" placeholder:"HOST:PORT" help:"Where gateways and other chunkservers reach this one."`
	Servers  []apiAddress `required:"" placeholder:"HOST:PORT,..." help:"Metadata servers, by the addresses at which users reach them."`
	Insecure bool         `help:"Allow an address that other machines can reach. There is no authentication."`
	LogLevel slog.Level   `default:"info" help:"Least level that is logged: debug, info, warn or error."`
}

func (*chunkserverServe) Help() string {
	return `A cluster needs three chunkservers, as all data is kept in three copies. For example:

  localsnap chunkserver --data ./c1 --listen 127.0.0.1:5585 --servers 127.0.0.1:5555,127.0.0.1:5556,127.0.0.1:5557`
}

func (c *chunkserverServe) Run(ctx context.Context) error {
	if !c.Listen.reachable() {
		return fmt.Errorf("--listen %s: say the host and port at which others reach this chunkserver", c.Listen)
	}
	if err := guard(c.Listen, "--listen", c.Insecure); err != nil {
		return err
	}
	log := newLog(os.Stderr, c.LogLevel)
	s, err := openChunkserver(c.Data, c.Listen, c.Servers, "--listen", log)
	if err != nil {
		return err
	}
	tellManager(ctx, log)
	return runChunkserver(ctx, s)
}

// openChunkserver opens a store and listens. portFlag is the flag that chose
// the port.
func openChunkserver(path string, at hostPort, servers []apiAddress, portFlag string, log *slog.Logger) (*chunkserver.Server, error) {
	l, err := listen(at, portFlag)
	if err != nil {
		return nil, fmt.Errorf("chunkserver: %w", err)
	}
	s, err := chunkserver.New(chunkserver.Config{
		Dir:      path,
		Servers:  controls(servers),
		Listener: l,
		Address:  at.String(),
		Log:      log.With("chunkserver", at.String()),
	})
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("chunkserver %s: %w", path, err)
	}
	return s, nil
}

// runChunkserver serves until ctx ends or the store fails, and closes it.
func runChunkserver(ctx context.Context, s *chunkserver.Server) error {
	return errors.Join(s.Run(ctx), s.Close())
}
