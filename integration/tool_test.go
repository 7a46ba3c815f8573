package integration

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/api/client"
)

func TestBar(t *testing.T) {
	var out strings.Builder
	bar := (&Story{Out: &out}).bar()
	for _, percent := range []int{0, 3, 19, 25, 39, 40, 99, 100, 100} {
		bar(percent)
	}
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.TrimSpace(line))
	}
	want := []string{
		"[........................................]   0%",
		"[##########..............................]  25%",
		"[################........................]  40%",
		"[#######################################.]  99%",
		"[########################################] 100%",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("bars (-want +got):\n%s", diff)
	}
}

func TestBrief(t *testing.T) {
	for d, want := range map[time.Duration]string{
		1234567 * time.Nanosecond:   "1.2ms",
		1234567 * time.Microsecond:  "1.23s",
		61234567 * time.Microsecond: "1m1.23s",
	} {
		if got := brief(d); got != want {
			t.Errorf("brief(%d) = %s, want %s", d, got, want)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want bool
	}{
		{nil, false},
		{errors.New("broken"), false},
		{&client.Error{Code: client.NotExist}, false},
		{&client.Error{Code: client.Occupied}, true},
	} {
		if got := client.Refused(tc.err, client.Occupied); got != tc.want {
			t.Errorf("client.Refused(%v) = %t, want %t", tc.err, got, tc.want)
		}
	}
}

func TestWait(t *testing.T) {
	broken := errors.New("broken")
	left := 3
	soon := func() (bool, error) { left--; return left == 0, nil }
	if err := wait(t.Context(), "soon", soon); err != nil || left != 0 {
		t.Errorf("soon: %v with %d looks left", err, left)
	}
	if err := wait(t.Context(), "an error", func() (bool, error) { return false, broken }); !errors.Is(err, broken) {
		t.Errorf("an error: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	err := wait(ctx, "a miracle", func() (bool, error) { return false, nil })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "a miracle") {
		t.Errorf("never: %v", err)
	}
}

func TestRunSaysWhatWentWrong(t *testing.T) {
	if out, err := run(t.Context(), t.TempDir(), "sh", "-c", "pwd"); err != nil || !strings.HasPrefix(out, "/") {
		t.Errorf("pwd: %q, %v", out, err)
	}
	_, err := run(t.Context(), t.TempDir(), "sh", "-c", "echo out; echo err >&2; exit 3")
	for _, want := range []string{"exit status 3", "out\n", "err\n"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v lacks %q", err, want)
		}
	}
	if _, err := run(t.Context(), t.TempDir(), "no-such-tool"); err == nil {
		t.Error("a missing tool ran")
	}
}

// TestStartFails starts what is no localsnap.
func TestStartFails(t *testing.T) {
	for _, tc := range []struct{ name, script, want string }{
		{"ends at once", "echo cannot listen; exit 1", "cannot listen"},
		{"is never ready", "echo still thinking; exec sleep 60", "still thinking"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := t.TempDir()
			script := filepath.Join(dir, "script")
			if err := os.WriteFile(script, []byte("#!/bin/sh\n"+tc.script+"\n"), 0o755); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			began := time.Now()
			_, err := Start(ctx, script, dir)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("Start: %v, want %q in it", err, tc.want)
			}
			if took := time.Since(began); took > startLimit/2 {
				t.Errorf("Start took %v", took)
			}
		})
	}
}

func TestFreePorts(t *testing.T) {
	first, err := freePorts()
	if err != nil {
		t.Fatal(err)
	}
	if first%portBlock != 0 || first < 1024 || first+portBlock > 32768 {
		t.Errorf("the block begins at %d", first)
	}
}
