package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"time"
)

// result is what one run of fio measured.
type result struct {
	rate float64       // operations per second
	p99  time.Duration // of an operation
	cpu  time.Duration // of an operation, over all processes of the target
}

// runFio runs one job and asks the target for what it cost.
func runFio(ctx context.Context, t target, args []string) (result, error) {
	before, err := t.cpu()
	if err != nil {
		return result{}, err
	}
	args = append([]string{"--name=bench", "--output-format=json", "--thread", "--randrepeat=0"}, args...)
	cmd := exec.CommandContext(ctx, "fio", args...)
	var out, diagnosis bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diagnosis
	if err := cmd.Run(); err != nil {
		return result{}, fmt.Errorf("fio %q: %w\n%s%s", args, err, diagnosis.Bytes(), out.Bytes())
	}
	after, err := t.cpu()
	if err != nil {
		return result{}, err
	}
	// The nbd engine may print lines of its own before the JSON.
	text := out.Bytes()
	if i := bytes.IndexByte(text, '{'); i > 0 {
		text = text[i:]
	}
	type side struct {
		Total   int     `json:"total_ios"`
		Runtime float64 `json:"runtime"` // ms
		Latency struct {
			Percentile map[string]float64 `json:"percentile"`
		} `json:"clat_ns"`
	}
	var report struct {
		Jobs []struct {
			Error       int
			Read, Write side
		}
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return result{}, fmt.Errorf("read fio's report: %w", err)
	}
	if len(report.Jobs) != 1 || report.Jobs[0].Error != 0 {
		return result{}, fmt.Errorf("fio reports an error: %s%s", diagnosis.Bytes(), text)
	}
	s := report.Jobs[0].Read
	if s.Total == 0 {
		s = report.Jobs[0].Write
	}
	return result{
		rate: float64(s.Total) / s.Runtime * 1e3,
		p99:  time.Duration(s.Latency.Percentile["99.000000"]),
		cpu:  (after - before) / time.Duration(max(1, s.Total)),
	}, nil
}

// summary is three columns: the rate, the slowest percent, and the CPU time.
func summary(j job, results []result) string {
	var rates, tails, costs []float64
	for _, r := range results {
		rates, tails, costs = append(rates, r.rate), append(tails, float64(r.p99)), append(costs, float64(r.cpu))
	}
	return fmt.Sprintf("%.0f %s\t%v\t%v", median(rates), j.unit(),
		time.Duration(median(tails)).Round(time.Microsecond), time.Duration(median(costs)).Round(100*time.Nanosecond))
}

func median(values []float64) float64 { return percentile(values, 0.5) }

// percentile is the smallest value that the given part of all does not exceed.
func percentile[V cmp.Ordered](values []V, part float64) V {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(part*float64(len(sorted))), len(sorted)-1)]
}
