// Command localsnap runs the roles of a localsnap cluster: metadata servers,
// chunkservers and gateways, each as a process of its own, or all of them in
// one (dev).
//
// Each role is a struct whose open function claims what can be contended for
// (directories, ports) and whose Run serves until its context ends. Whatever a
// role has started is gone when its Run has returned.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
)

// version is set by the build.
var version = "unknown"

func main() {
	if err := run(interruptible(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "localsnap:", err)
		os.Exit(1)
	}
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM.
// The second one kills the process.
func interruptible() context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx
}

type commands struct {
	Dev         devCmd         `cmd:"" help:"Run a whole cluster in this process, on this machine, to try it out."`
	Server      serverCmd      `cmd:"" help:"Run one metadata server."`
	Chunkserver chunkserverCmd `cmd:"" help:"Run one chunkserver, which keeps copies of the data."`
	Gateway     gatewayCmd     `cmd:"" help:"Run one gateway, which exports volumes over NBD."`

	Version kong.VersionFlag `help:"Print the version and exit."`
}

// run carries out one command line until it is done or ctx ends.
func run(ctx context.Context, args []string) error {
	parser, err := newParser(new(commands))
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if err != nil {
		return fmt.Errorf("%w (localsnap --help tells more)", err)
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run()
}

func newParser(c *commands) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("localsnap"),
		kong.Description("Replicated block volumes over NBD, with snapshots, clones and flatten.\n\nBegin with: localsnap dev"),
		kong.Vars{"version": version},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)
}

func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
