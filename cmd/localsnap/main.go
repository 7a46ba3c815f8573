// Command localsnap runs the roles of a localsnap cluster: metadata servers,
// chunkservers and gateways, each as a process of its own, or all of them in
// one (dev). And it operates volumes, through a cluster's HTTP API: the
// commands of one noun are in the file of its name, and what they share in
// access.go.
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
	os.Exit(execute(interruptible(), os.Args[1:], os.Stdout, os.Stderr))
}

// execute carries out one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	err := run(ctx, args, stdout, stderr)
	if err != nil {
		fmt.Fprintln(stderr, "localsnap:", err)
	}
	return exitCode(err)
}

// interruptible returns a context that ends with the first SIGINT or SIGTERM.
// The second one kills the process.
func interruptible() context.Context {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx
}

type commands struct {
	Volume   volumeCmd   `cmd:"" help:"Make, list and delete volumes and directories."`
	Snapshot snapshotCmd `cmd:"" help:"Take and delete snapshots, and go back to them."`
	Clone    cloneCmd    `cmd:"" help:"Make volumes from snapshots, and flatten them."`
	Task     taskCmd     `cmd:"" help:"Look at clones and rollbacks under way."`
	Copyset  copysetCmd  `cmd:"" help:"Look at the copies of the data, and compare them."`

	Dev         devCmd         `cmd:"" help:"Run a whole cluster in this process, on this machine, to try it out."`
	Server      serverCmd      `cmd:"" help:"Run one metadata server."`
	Chunkserver chunkserverCmd `cmd:"" help:"Run one chunkserver, which keeps copies of the data, or list them."`
	Gateway     gatewayCmd     `cmd:"" help:"Run one gateway, which exports volumes over NBD."`

	Store storeCmd `cmd:"" help:"Look into the directory of a stopped chunkserver."`

	Version kong.VersionFlag `help:"Print the version and exit."`
}

// run carries out one command line until it is done or ctx ends.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	answered := false
	parser, err := newParser(new(commands), kong.Writers(stdout, stderr), kong.Exit(func(int) { answered = true }))
	if err != nil {
		return err
	}
	command, err := parser.Parse(args)
	if answered { // by --help or --version
		return nil
	}
	if err != nil {
		return usage(err.Error())
	}
	command.BindTo(ctx, (*context.Context)(nil))
	return command.Run()
}

func newParser(c *commands, options ...kong.Option) (*kong.Kong, error) {
	return kong.New(c, append(options,
		kong.Name("localsnap"),
		kong.Description("Replicated block volumes over NBD, with snapshots, clones and flatten.\n\nBegin with: localsnap dev\n\n"+
			"Exit codes: 0 done, 1 failed or refused, 2 a command line that makes no sense, 3 no server could be reached."),
		kong.Vars{"version": version},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 100}),
	)...)
}

func newLog(w io.Writer, level slog.Level) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
