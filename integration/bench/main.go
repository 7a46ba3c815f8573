// Command bench measures the data path with fio, beside a peer that does the
// same work in the same run: qemu-nbd, which serves one plain file, and Ceph's
// RBD if one is at hand. Each job runs on localsnap and on the peer in turn,
// and what counts is the ratio of neighbours, since machines drift. It also
// tells what an operation costs in CPU time of all processes that serve it.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	var b bench
	binary := flag.String("binary", "bin/localsnap", "the localsnap to run")
	only := flag.String("only", "", "run the jobs whose name matches this regular `expression`")
	flag.IntVar(&b.rounds, "rounds", 3, "how often each pair runs")
	flag.DurationVar(&b.span, "time", 4*time.Second, "how long each run takes")
	flag.IntVar(&b.size, "size", 2, "size of the volumes in GiB")
	flag.StringVar(&b.ceph, "ceph", "", "compare with RBD too: the `file` ceph.conf of a running cluster with a pool rbd")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := b.run(ctx, *binary, *only); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// bench is one invocation.
type bench struct {
	rounds int
	span   time.Duration
	size   int    // GiB
	ceph   string // path of ceph.conf, if any
	table  *tabwriter.Writer
}

func (b *bench) run(ctx context.Context, binary, only string) error {
	match, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	if binary, err = filepath.Abs(binary); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "localsnap-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)

	fmt.Fprintf(os.Stderr, "filling volumes of %d GiB; load average %s", b.size, load())
	us, err := startLocalsnap(ctx, binary, dir, b.size)
	if err != nil {
		return err
	}
	defer us.stop()
	peers := []target{newQemu(dir, us.image, "writethrough"), newQemu(dir, us.image, "writeback")}
	if b.ceph != "" {
		rbd, err := newRBD(ctx, b.ceph, us.image)
		if err != nil {
			return err
		}
		peers = append(peers, rbd)
	}
	for _, p := range peers {
		defer p.stop()
	}

	b.table = tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(b.table, "job\tlocalsnap\tp99\tCPU/op\tpeer\trate\tp99\tCPU/op\tratio\tgoal\t")
	defer b.table.Flush()
	for _, j := range jobs(b.span, b.size) {
		if !match.MatchString(j.name) {
			continue
		}
		for _, p := range peers {
			if goal, ok := j.goals[p.name()]; ok {
				if err := b.compare(ctx, j, us, p, goal); err != nil {
					return fmt.Errorf("%s against %s: %w", j.name, p.name(), err)
				}
			}
		}
		if j.goal > 0 {
			if err := b.compare(ctx, j, us, plain{us}, j.goal); err != nil {
				return fmt.Errorf("%s: %w", j.name, err)
			}
		}
	}
	for _, c := range commands() {
		if match.MatchString(c.name) {
			if err := b.time(ctx, c, us); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return nil
}

// compare runs a job on both in turn and prints a line.
func (b *bench) compare(ctx context.Context, j job, us *localsnap, peer target, goal float64) error {
	var ours, theirs []result
	var ratios []float64
	for range b.rounds {
		r, err := b.measure(ctx, j, us, j.prepare)
		if err != nil {
			return err
		}
		p, err := b.measure(ctx, j, peer, nil)
		if err != nil {
			return err
		}
		ours, theirs = append(ours, r), append(theirs, p)
		ratios = append(ratios, r.rate/p.rate)
	}
	fmt.Fprintf(b.table, "%s\t%s\t%s\t%s\t%.2f\t%.2f\t%s\n",
		j.name, summary(j, ours), peer.name(), summary(j, theirs), median(ratios), goal, verdict(median(ratios) >= goal))
	return b.table.Flush()
}

// measure runs a job once. prepare names the volume that is made for it.
func (b *bench) measure(ctx context.Context, j job, t target, prepare func(context.Context, *localsnap) (string, error)) (result, error) {
	volume := "/vol"
	if us, ok := t.(*localsnap); ok && prepare != nil {
		var err error
		if volume, err = prepare(ctx, us); err != nil {
			return result{}, err
		}
	}
	where, err := t.open(ctx, volume)
	if err != nil {
		return result{}, err
	}
	return runFio(ctx, t, append(where, j.args...))
}

// time prints how long a command takes.
func (b *bench) time(ctx context.Context, c command, us *localsnap) error {
	took, err := c.run(ctx, us)
	if err != nil {
		return err
	}
	m := percentile(took, 0.5)
	fmt.Fprintf(b.table, "%s\t%v\t%v\t\t\t\t\t\t\t%v\t%s\n", c.name, m.Round(100*time.Microsecond),
		percentile(took, 0.99).Round(100*time.Microsecond), c.goal, verdict(m <= c.goal))
	return b.table.Flush()
}

func verdict(reached bool) string {
	if reached {
		return ""
	}
	return "missed"
}

// load is what the kernel says about how busy the machine is.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown\n"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ") + "\n"
}
