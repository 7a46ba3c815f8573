package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = `goos: linux
pkg: example.org/a/store
cpu: some
BenchmarkWrite/4_KiB_random,_QD1-2         	      76	    260989 ns/op	  15.69 MB/s	         0.8000 goal	         0.8746 high	         0.5667 low	         0.7184 x-of-pwrite+fdatasync	   27400 B/op	     384 allocs/op
BenchmarkStore/start-16      	     100	  11351510 ns/op	         1.000 limit	         0.002270 x-of-5-seconds
BenchmarkRead-2      	     100	  1400 ns/op	         0.87 x-of-pread
PASS
ok  	example.org/a/store	13.985s
pkg: example.org/a/wire
BenchmarkEcho-2   	  1000	  22 ns/op
PASS
`

func TestTable(t *testing.T) {
	figures, rest := parse(strings.NewReader(sample))
	var table strings.Builder
	printTable(&table, figures)
	const want = `
what                             goal          reached                        absolute        how measured
store: write, 4 KiB random, QD1  at least 0.8  0.718 (0.567 to 0.875) MISSED  261µs, 16 MB/s  times pwrite+fdatasync
store: store, start              at most 1     0.00227                        11.4ms          times 5 seconds
store: read                      -             0.87                           1.4µs           times pread
`
	if diff := cmp.Diff(want, "\n"+table.String()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"\nexample.org/a/wire", "BenchmarkEcho-2   \t  1000\t  22 ns/op"}, rest); diff != "" {
		t.Error(diff)
	}
}

// What others use of the machine is what neither the benchmarks used nor was idle.
func TestBusyMachine(t *testing.T) {
	p := exec.Command(os.Args[0], "-test.run=^$")
	if err := p.Run(); err != nil {
		t.Fatal(err)
	}
	before := machine{busy: 1000, total: 5000, load: "1 1 1", cores: 2}
	for used, warned := range map[float64]bool{900: true, 300: false} {
		after := machine{busy: 1000 + used, total: 5000 + 4000, load: "2 2 2", cores: 2}
		text := after.since(before, p.ProcessState)
		if strings.Contains(text, "may be off") != warned || !strings.Contains(text, "load average 1 1 1 before, 2 2 2 after") {
			t.Errorf("%v of 4000 ticks used: %s", used, text)
		}
	}
	if m, err := readMachine(); err != nil || m.cores == 0 || m.busy <= 0 || m.busy > m.total {
		t.Errorf("this machine: %+v, %v", m, err)
	}
}
