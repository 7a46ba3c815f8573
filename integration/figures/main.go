// Command figures runs the benchmarks of packages and prints what they have
// reached as one table, for people. A benchmark is in the table if it reports
// a ratio as a metric x-of-<what it is compared with>; goal, the least ratio
// aimed at, or limit, the most; and low and high, between which most single
// measurements lie. The others follow as they are.
//
// A ratio of work done in turns stands up to a machine that drifts, but not to
// one whose cores others use. So it also tells how busy they have been.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "figures:", err)
		os.Exit(1)
	}
}

// run benchmarks what args, of go test, name.
func run(args []string, out io.Writer) error {
	test := exec.Command("go", append([]string{"test", "-run", "^$", "-bench", ".", "-benchmem"}, args...)...)
	test.Stderr = os.Stderr
	var text bytes.Buffer
	test.Stdout = io.MultiWriter(&text, os.Stderr) // so that one sees it going on
	before, err := readMachine()
	if err != nil {
		return err
	}
	failure := test.Run()
	after, err := readMachine()
	if err != nil {
		return err
	}
	figures, rest := parse(&text)
	fmt.Fprintln(out)
	printTable(out, figures)
	fmt.Fprintf(out, "\n%s\n", after.since(before, test.ProcessState))
	for _, line := range rest {
		fmt.Fprintln(out, line)
	}
	return failure
}

// A figure is one row of the table.
type figure struct {
	what    string
	metrics map[string]float64
}

// parse divides the output of go test into figures and other benchmarks, the
// latter with headings.
func parse(text io.Reader) (figures []figure, rest []string) {
	pkg, heading := "", ""
	for lines := bufio.NewScanner(text); lines.Scan(); {
		line := lines.Text()
		if name, ok := strings.CutPrefix(line, "pkg: "); ok {
			pkg = path.Base(name)
			heading = "\n" + name
			continue
		}
		f, ok := parseFigure(pkg, line)
		if !ok {
			continue
		}
		if _, compared := f.comparison(); compared {
			figures = append(figures, f)
			continue
		}
		if heading != "" {
			rest, heading = append(rest, heading), ""
		}
		rest = append(rest, line)
	}
	return figures, rest
}

func parseFigure(pkg, line string) (figure, bool) {
	fields := strings.Fields(line)
	name, ok := strings.CutPrefix(line, "Benchmark")
	if !ok || len(fields) < 4 {
		return figure{}, false
	}
	name, _, _ = strings.Cut(name, " ")
	name, _, _ = strings.Cut(name, "\t")
	if i := strings.LastIndexByte(name, '-'); i >= 0 { // the number of cores
		name = name[:i]
	}
	name = strings.ToLower(name[:1]) + name[1:]
	f := figure{
		what:    pkg + ": " + strings.NewReplacer("_", " ", "/", ", ").Replace(name),
		metrics: make(map[string]float64),
	}
	for i := 2; i+1 < len(fields); i += 2 {
		value, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return figure{}, false
		}
		f.metrics[fields[i+1]] = value
	}
	return f, true
}

const comparisonPrefix = "x-of-"

// comparison returns the name of the metric that is the ratio.
func (f figure) comparison() (unit string, ok bool) {
	for unit := range f.metrics {
		if strings.HasPrefix(unit, comparisonPrefix) {
			return unit, true
		}
	}
	return "", false
}

func printTable(out io.Writer, figures []figure) {
	table := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "what\tgoal\treached\tabsolute\thow measured")
	for _, f := range figures {
		unit, _ := f.comparison()
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\ttimes %s\n", f.what, f.goal(), f.reached(unit), f.absolute(),
			strings.ReplaceAll(strings.TrimPrefix(unit, comparisonPrefix), "-", " "))
	}
	table.Flush()
}

func (f figure) goal() string {
	if goal, ok := f.metrics["goal"]; ok {
		return fmt.Sprintf("at least %.3g", goal)
	}
	if limit, ok := f.metrics["limit"]; ok {
		return fmt.Sprintf("at most %.3g", limit)
	}
	return "-"
}

func (f figure) reached(unit string) string {
	ratio := f.metrics[unit]
	text := fmt.Sprintf("%.3g", ratio)
	if low, ok := f.metrics["low"]; ok {
		text += fmt.Sprintf(" (%.3g to %.3g)", low, f.metrics["high"])
	}
	goal, aimed := f.metrics["goal"]
	limit, limited := f.metrics["limit"]
	if aimed && ratio < goal || limited && ratio > limit {
		text += " MISSED"
	}
	return text
}

func (f figure) absolute() string {
	each := time.Duration(f.metrics["ns/op"])
	digit := time.Duration(1)
	for each/digit >= 1000 {
		digit *= 10
	}
	text := each.Round(digit).String()
	if rate, ok := f.metrics["MB/s"]; ok {
		text += fmt.Sprintf(", %.0f MB/s", rate)
	}
	return text
}

// machine is what the kernel has counted up to a moment.
type machine struct {
	busy, total float64 // ticks, of all cores
	load        string  // averages of the last 1, 5 and 15 minutes
	cores       int
}

func readMachine() (machine, error) {
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return machine{}, err
	}
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machine{}, err
	}
	m := machine{load: strings.Join(strings.Fields(string(load))[:3], " ")}
	for line := range strings.Lines(string(stat)) {
		fields := strings.Fields(line)
		switch {
		case fields[0] == "cpu":
			for i, field := range fields[1:min(len(fields), 9)] { // guests' time is in the user's already
				ticks, err := strconv.ParseFloat(field, 64)
				if err != nil {
					return machine{}, fmt.Errorf("/proc/stat: %w", err)
				}
				m.total += ticks
				if i != 3 && i != 4 { // idle, waiting for I/O
					m.busy += ticks
				}
			}
		case strings.HasPrefix(fields[0], "cpu"):
			m.cores++
		}
	}
	return m, nil
}

// quiet is the part of the machine that others may use without a warning.
const quiet = 0.1

// since tells what else the machine has done while p ran.
func (m machine) since(before machine, p *os.ProcessState) string {
	const ticks = 100 // a second, as Linux shows them to programs
	own := (p.UserTime() + p.SystemTime()).Seconds() * ticks
	others := max(0, m.busy-before.busy-own) / max(1, m.total-before.total)
	text := fmt.Sprintf("%d cores, of which other processes used %.0f%%; load average %s before, %s after.",
		m.cores, 100*others, before.load, m.load)
	if others > quiet {
		text += "\nThe machine was busy with other work: the ratios may be off. Repeat when it is idle."
	}
	return text
}
