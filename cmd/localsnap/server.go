package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/localsnap/localsnap/api"
	"github.com/localsnap/localsnap/cluster"
	"github.com/localsnap/localsnap/cluster/coordinator"
)

type serverCmd struct {
	ID       string     `required:"" help:"Which of the servers this one is."`
	Server   []member   `required:"" placeholder:"ID=HOST:PORT" help:"A server and where users reach it; once for each, the same on all. The other servers use PORT+10, chunkservers and gateways PORT+20."`
	Data     string     `required:"" placeholder:"DIR" help:"Directory for what this server keeps."`
	Insecure bool       `help:"Allow addresses that other machines can reach. There is no authentication."`
	LogLevel slog.Level `default:"info" help:"Least level that is logged: debug, info, warn or error."`

	Patience time.Duration `default:"2s" help:"How long a chunkserver may say nothing before I/O goes on without it. It is brought up to date when it is back. The same on all servers. Default: ${default}."`

	ReplaceAfter time.Duration `default:"10m" help:"How long a chunkserver may stay away before others get its copies. The same on all servers. Default: ${default}."`
}

func (*serverCmd) Help() string {
	return `Three servers go on while any two of them live. For example, the first of three on one machine:

  localsnap server --id s1 --data ./s1 --server s1=127.0.0.1:5555 --server s2=127.0.0.1:5556 --server s3=127.0.0.1:5557`
}

func (c *serverCmd) Run(ctx context.Context) error {
	i := slices.IndexFunc(c.Server, func(m member) bool { return m.id == c.ID })
	if i < 0 {
		return fmt.Errorf("--id %s is not among the servers that --server names", c.ID)
	}
	if err := guard(c.Server[i].api.hostPort, "--server", c.Insecure); err != nil {
		return err
	}
	s, err := openServer(c.Server, c.Server[i], c.Data, "--server", coordinator.Config{Patience: c.Patience, ReplaceAfter: c.ReplaceAfter}, newLog(os.Stderr, c.LogLevel))
	if err != nil {
		return err
	}
	tellManager(ctx, s.log)
	return s.Run(ctx)
}

// server is one metadata server.
type server struct {
	dir          *directory
	node         *cluster.Node
	coordinator  *coordinator.Coordinator
	api, control net.Listener
	log          *slog.Logger
}

// openServer starts a member of the cluster and listens for those that need
// it. Run must be called. portFlag is the flag that chose the ports; times
// are those of the coordinator, zero for the usual ones.
func openServer(all []member, self member, path, portFlag string, times coordinator.Config, log *slog.Logger) (_ *server, err error) {
	s := &server{log: log.With("server", self.id)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("server %s: %w", self.id, err), s.close())
		}
	}()
	if s.dir, err = claim(path); err != nil {
		return nil, err
	}
	if s.api, err = listen(self.api.hostPort, portFlag); err != nil {
		return nil, err
	}
	if s.control, err = listen(self.api.plus(controlOffset), portFlag); err != nil {
		return nil, err
	}
	raft, err := listen(self.api.plus(raftOffset), portFlag)
	if err != nil {
		return nil, err
	}
	config := cluster.Config{ID: self.id, Dir: path, Listener: raft, Log: s.log}
	for _, m := range all {
		config.Servers = append(config.Servers, m.server())
	}
	if s.node, err = cluster.Open(config); err != nil {
		return nil, err
	}
	times.Node, times.Log = s.node, s.log
	s.coordinator = coordinator.New(times)
	return s, nil
}

// Run serves until ctx ends or the member fails, and closes everything.
func (s *server) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.coordinator.Run(ctx, s.control) })
	g.Go(func() error {
		users := api.Server{Metadata: s.coordinator, Log: s.log}
		return users.Run(ctx, s.api)
	})
	g.Go(func() error {
		select {
		case err := <-s.node.Failed():
			return err
		case <-ctx.Done():
			return nil
		}
	})
	return errors.Join(g.Wait(), s.close())
}

// close closes what has been opened. Listeners that were served are closed
// already.
func (s *server) close() error {
	for _, l := range []net.Listener{s.api, s.control} {
		if l != nil {
			l.Close()
		}
	}
	var err error
	if s.node != nil {
		err = s.node.Close()
	}
	if s.dir != nil {
		err = errors.Join(err, s.dir.release())
	}
	return err
}
