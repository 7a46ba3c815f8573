// Command demo tells the story of a volume on a cluster of its own, whose data
// is in a temporary directory and goes with it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/localsnap/localsnap/integration"
)

func main() {
	binary := flag.String("binary", "bin/localsnap", "the localsnap to run")
	from := flag.String("tree", "", "the `directory` that fills the volume (default: Go's source)")
	flag.Parse()
	if err := tell(*binary, *from); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func tell(binary, from string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	binary, err := filepath.Abs(binary)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "localsnap-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if from == "" {
		from = integration.GoSource(ctx)
	}
	story := integration.Story{Binary: binary, Dir: dir, Tree: from, Out: os.Stdout}
	return story.Tell(ctx)
}
