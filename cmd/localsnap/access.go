package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/user"
	"time"

	"github.com/alecthomas/kong"

	"github.com/localsnap/localsnap/api/client"
)

// access is how the commands that operate volumes reach a cluster, and how
// they print what it answers.
type access struct {
	Servers []apiAddress  `env:"LOCALSNAP_SERVERS" default:"127.0.0.1:5555,127.0.0.1:5556,127.0.0.1:5557" placeholder:"HOST:PORT" help:"Metadata servers, separated by commas. Default: those of localsnap dev (env ${env})."`
	User    string        `env:"LOCALSNAP_USER" placeholder:"NAME" help:"Who asks. Default: your login name (env ${env})."`
	Timeout time.Duration `default:"30s" help:"How long to look for a server that answers. Default: ${default}."`
	JSON    bool          `name:"json" help:"Print JSON, with the fields of the HTTP API, instead of tables."`

	api *client.Client
	out io.Writer
	err io.Writer
}

// AfterApply makes a usable access of the flags, for the command to be given.
func (a *access) AfterApply(k *kong.Context) error {
	var servers []string
	for _, s := range a.Servers {
		servers = append(servers, s.String())
	}
	a.api = client.New(servers...)
	a.out, a.err = k.Stdout, k.Stderr
	if a.User == "" {
		u, err := user.Current()
		if err != nil {
			return fmt.Errorf("say who you are with --user: %w", err)
		}
		a.User = u.Username
	}
	k.Bind(a)
	return nil
}

// errUnreachable: no server could say whether something is done.
var errUnreachable = errors.New("no server could be reached")

// ask makes one request, which has the time that the user allows.
func (a *access) ask(ctx context.Context, request func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, a.Timeout, fmt.Errorf("no answer within %v", a.Timeout))
	defer cancel()
	err := request(ctx)
	if err != nil && ctx.Err() != nil {
		return fmt.Errorf("%w: %w", errUnreachable, err)
	}
	return err
}

// get is ask for a request with a reply.
func get[Request, Reply any](ctx context.Context, a *access, do func(context.Context, Request) (Reply, error), request Request) (reply Reply, err error) {
	err = a.ask(ctx, func(ctx context.Context) error {
		reply, err = do(ctx, request)
		return err
	})
	return reply, err
}

// tell is ask for a request without one.
func tell[Request any](ctx context.Context, a *access, do func(context.Context, Request) error, request Request) error {
	return a.ask(ctx, func(ctx context.Context) error { return do(ctx, request) })
}

// pageSize is how many elements of a list are asked for at once.
const pageSize = 1000

// window is the part of a list that a user wants to see.
type window struct {
	Limit  uint64 `placeholder:"N" help:"Most lines to print. Default: all."`
	Offset uint64 `placeholder:"N" help:"How many to pass over first."`
}

// collect asks for a list page by page until the window is full.
func collect[E any](w window, page func(client.Page) ([]E, error)) ([]E, error) {
	all := []E{}
	for {
		p := client.Page{Limit: pageSize, Offset: w.Offset + uint64(len(all))}
		if w.Limit > 0 {
			p.Limit = min(p.Limit, w.Limit-uint64(len(all)))
		}
		next, err := page(p)
		if err != nil {
			return nil, err
		}
		all = append(all, next...)
		if uint64(len(next)) < p.Limit || uint64(len(all)) == w.Limit {
			return all, nil
		}
	}
}

// show prints a value: as JSON, or as text prints it.
func (a *access) show(value any, text func(io.Writer) error) error {
	return show(a.out, a.JSON, value, text)
}

// say prints a line about something that has been done, with value as its
// JSON.
func (a *access) say(value any, format string, args ...any) error {
	return a.show(value, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, format+"\n", args...)
		return err
	})
}

// The exit codes, which --help lists.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
)

// errUsage: the command line makes no sense.
var errUsage = errors.New("localsnap --help tells more")

func usage(why string) error { return fmt.Errorf("%s; %w", why, errUsage) }

func exitCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, errUnreachable):
		return exitUnreachable
	}
	return exitFailed
}

// advise adds to a refusal what to do about it. object is what the command
// was about.
func advise(err error, object string) error {
	var refused *client.Error
	if !errors.As(err, &refused) {
		return err
	}
	advice := map[client.Code]string{
		client.InvalidUser:        "it belongs to somebody else: say whose it is with --user, or be root",
		client.UnderSnapshot:      "delete its snapshots first: localsnap snapshot list " + object,
		client.Occupied:           "disconnect its NBD client, or wait for its flattening: localsnap task list",
		client.SnapshotInUse:      "flatten or delete its clones first: localsnap clone list " + object,
		client.SnapshotLimit:      "delete some that are not needed: localsnap snapshot list",
		client.TaskRunning:        "wait for it: localsnap task wait " + object,
		client.SnapshotUnfinished: "wait for it: localsnap snapshot show " + object,
	}[refused.Code]
	if advice == "" {
		return err
	}
	return fmt.Errorf("%w; %s", err, advice)
}
