package main

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
)

// Copies that many kinds of changes have been made to are found to be
// identical; a chunkserver that is away is seen, and brought up to date.
func TestCopiesAreIdentical(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	v := f.views(ctx)
	v.create("/v", 1)
	v.fill("/v", 0, 8, 1)
	v.snapshot("/v", "s")
	v.fill("/v", 4, 8, 2)
	v.clone("/v", "s", "/c")
	v.fill("/c", 2, 2, 3)
	v.snapshot("/v", "t")
	v.deleteSnapshot("/v", "t")
	v.flatten("/c")
	servers := "--servers=" + f.addresses[0].String()

	text, _ := localsnap(t, 0, "copyset", "verify", servers)
	if want := "64 of 64 copysets: all copies in sync are identical\n"; text != want {
		t.Errorf("got %q, want %q", text, want)
	}
	text, _ = localsnap(t, 0, "copyset", "verify", servers, "--json")
	var sets []client.Copyset
	if err := json.Unmarshal([]byte(text), &sets); err != nil || len(sets) != 64 || sets[63].Copies != client.CopiesIdentical {
		t.Errorf("%v in %s", err, text)
	}
	text, _ = localsnap(t, 0, "copyset", "list", servers)
	if lines := strings.Split(text, "\n"); len(lines) != 66 || !strings.Contains(lines[1], "1*, 2, 3") {
		t.Errorf("the list is %s", text)
	}
	text, _ = localsnap(t, 0, "chunkserver", "list", servers)
	if strings.Count(text, "connected") != 3 || strings.Count(text, " 64 ") != 3 {
		t.Errorf("the list is %s", text)
	}

	f.stop(&f.chunkservers[1])
	f.await("the chunkserver to be missed", func() bool {
		text, _ = localsnap(t, 0, "chunkserver", "list", servers)
		return strings.Count(text, "connected") == 2 && strings.Count(text, "away") == 1
	})
	f.await("the copysets to go on without it", func() bool {
		text, _ = localsnap(t, 0, "copyset", "verify", servers)
		return strings.Contains(text, "64 of 64 copysets: all copies in sync are identical") &&
			strings.Contains(text, "64 copysets have members that are not in sync")
	})
	f.startChunkserver(1)
	f.await("all copies to be in sync", func() bool {
		text, _ = localsnap(t, 0, "copyset", "verify", servers)
		return text == "64 of 64 copysets: all copies in sync are identical\n"
	})
}
