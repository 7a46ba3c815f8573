package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/api/client"
)

func TestSizes(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]gib{
		"1G": 1, "10g": 10, "512GiB": 512, "1Ti": 1024, "1.5T": 1536, "2048M": 2, "0.5T": 512, "1P": 1 << 20,
		"": 0, "G": 0, "B": 0, "iB": 0, "10": 0, "10K": 0, "1GB": 0, "1.5G": 0, "1M": 0, "0G": 0, "-1G": 0, "1e400G": 0,
		"NaNG": 0, "InfG": 0, "99999999999999P": 0, "1 G": 0,
	} {
		var g gib
		if err := g.UnmarshalText([]byte(text)); (err == nil) != (want != 0) || g != want {
			t.Errorf("%q: %d, %v; want %d", text, uint64(g), err, uint64(want))
		}
	}
	for bytes, want := range map[uint64]string{0: "0 B", 512: "512 B", 4096: "4 KiB", 10 << 30: "10 GiB", 1536 << 30: "1.5 TiB", 20480 << 30: "20 TiB"} {
		if got := bytesText(bytes); got != want {
			t.Errorf("%d bytes are %q, want %q", bytes, got, want)
		}
	}
	if got := aboutText(73<<30 + 1<<28); got != "73.2 GiB" {
		t.Errorf("about 73.25 GiB are %q", got)
	}
}

// Lists are asked for in pages, and no further than is wanted.
func TestCollect(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		window window
		total  uint64
		want   []client.Page
	}{
		{window{}, 0, []client.Page{{Limit: 1000}}},
		{window{}, 999, []client.Page{{Limit: 1000}}},
		{window{}, 1000, []client.Page{{Limit: 1000}, {Limit: 1000, Offset: 1000}}},
		{window{Offset: 5}, 1001, []client.Page{{Limit: 1000, Offset: 5}}},
		{window{Limit: 1500}, 4000, []client.Page{{Limit: 1000}, {Limit: 500, Offset: 1000}}},
		{window{Limit: 1000, Offset: 1}, 4000, []client.Page{{Limit: 1000, Offset: 1}}},
	} {
		var asked []client.Page
		got, err := collect(tt.window, func(p client.Page) ([]uint64, error) {
			asked = append(asked, p)
			var page []uint64
			for i := p.Offset; i < min(p.Offset+p.Limit, tt.total); i++ {
				page = append(page, i)
			}
			return page, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(tt.want, asked); diff != "" {
			t.Errorf("%+v of %d: %s", tt.window, tt.total, diff)
		}
		for i, v := range got {
			if v != tt.window.Offset+uint64(i) {
				t.Fatalf("%+v of %d: element %d is %d", tt.window, tt.total, i, v)
			}
		}
	}
	if _, err := collect(window{}, func(client.Page) ([]int, error) { return nil, errUnreachable }); !errors.Is(err, errUnreachable) {
		t.Errorf("failing list: %v", err)
	}
}

func TestAdvice(t *testing.T) {
	t.Parallel()
	refusal := func(code client.Code) error { return fmt.Errorf("DeleteFile: %w", &client.Error{Code: code}) }
	for code, want := range map[client.Code]string{
		client.Occupied: "disconnect its NBD client", client.InvalidUser: "--user", client.UnderSnapshot: "snapshot list /v",
	} {
		err := advise(refusal(code), "/v")
		if !strings.Contains(err.Error(), want) || !client.Refused(err, code) || exitCode(err) != exitFailed {
			t.Errorf("%d: %v", code, err)
		}
	}
	for _, err := range []error{nil, refusal(client.NotExist), errUnreachable} {
		if got := advise(err, "/v"); got != err {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// A bar is drawn over itself on a terminal; elsewhere there is a line now and
// then, the first and the last in any case.
func TestProgress(t *testing.T) {
	t.Parallel()
	for terminal, want := range map[bool]string{
		true: "\rit [..............................]   0%\rit [###############...............]  50%" +
			"\rit [##############################] 100%\n",
		false: "it: 0%\nit: 100%\n",
	} {
		var out bytes.Buffer
		p := progress{w: &out, what: "it", terminal: terminal}
		p.at(0, false)
		p.at(50, false)
		p.at(100, true)
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Error(diff)
		}
	}
}

func TestFollowIsInterruptible(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	a := &access{err: &out}
	ctx, cancel := context.WithCancel(t.Context())
	err := a.follow(ctx, "flattening of /v", "volume show /v", func(context.Context) (int, bool, error) {
		cancel()
		return 40, false, nil
	})
	if err == nil || !strings.Contains(err.Error(), "goes on without you; look at it with: localsnap volume show /v") {
		t.Errorf("interrupted: %v", err)
	}
	failure := errors.New("gone")
	if err := a.follow(t.Context(), "it", "x", func(context.Context) (int, bool, error) { return 0, false, failure }); err != failure {
		t.Errorf("failed: %v", err)
	}
}
