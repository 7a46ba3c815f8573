package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/localsnap/localsnap/api/client"
	"github.com/localsnap/localsnap/chunkserver/chunk"
	"github.com/localsnap/localsnap/cluster/coordinator"
)

// A volume is written all the time, while a fourth chunkserver joins and gets its
// share, and the second one is drained and removed, with the metadata leader
// failing half way through both. Everything is there, in three equal copies.
func TestChunkserversJoinAndLeave(t *testing.T) {
	t.Parallel()
	f := startFleet(t, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := f.users.CreateFile(ctx, client.CreateFileRequest{User: "ann", File: "/v", Size: 1}); err != nil {
		t.Fatal(err)
	}
	v, err := f.session.Attach(ctx, "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(ctx, t, v)
	w.goOn(f)

	f.chunkservers = append(f.chunkservers, nil)
	f.startChunkserver(3)
	f.await("a part of the fourth one's share", func() bool { n, _ := f.share(4); return n > 12 })
	f.failLeader()
	f.await("equal shares", func() bool {
		for id := range chunk.NodeID(4) {
			if members, primaries := f.share(id + 1); members != 48 || primaries < 15 || primaries > 17 {
				return false
			}
		}
		return true
	})
	t.Logf("one joined: longest write %v", w.goOn(f))

	servers := "--servers=" + f.addresses[0].String()
	localsnap(t, 0, "chunkserver", "drain", "2", servers)
	text, _ := localsnap(t, 0, "chunkserver", "list", servers)
	if !strings.Contains(text, "connected, draining") {
		t.Errorf("the list is %s", text)
	}
	f.await("a part of its copies to have moved", func() bool { n, _ := f.share(2); return n < 36 })
	localsnap(t, 1, "chunkserver", "remove", "2", servers)
	f.failLeader()
	f.await("the chunkserver to be empty", func() bool { n, _ := f.share(2); return n == 0 })
	f.stop(&f.chunkservers[1])
	f.await("the chunkserver to be forgotten", func() bool {
		return f.users.RemoveChunkserver(ctx, client.RemoveChunkserverRequest{ID: 2}) == nil
	})
	text, _ = localsnap(t, 0, "chunkserver", "list", servers)
	if strings.Count(text, "connected") != 3 || strings.Count(text, " 64 ") != 3 {
		t.Errorf("the list is %s", text)
	}
	t.Logf("one left: longest write %v", w.goOn(f))
	w.stop()
	w.compare()
	f.await("all copies to be identical", func() bool { return f.identical(ctx) })
	if err := v.Close(ctx); err != nil {
		t.Error(err)
	}
}

// A chunkserver stays away, and another one gets its copies while a volume is
// written and the metadata leader fails. When it is back, on what has become of
// its disk, it gets its share anew.
func TestAChunkserverThatStaysAwayIsReplaced(t *testing.T) {
	t.Parallel()
	f := startFleetWith(t, coordinator.Config{ReplaceAfter: 3 * time.Second}, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := f.users.CreateFile(ctx, client.CreateFileRequest{User: "ann", File: "/v", Size: 1}); err != nil {
		t.Fatal(err)
	}
	v, err := f.session.Attach(ctx, "/v", "", false)
	if err != nil {
		t.Fatal(err)
	}
	w := newWriter(ctx, t, v)
	f.chunkservers = append(f.chunkservers, nil)
	f.startChunkserver(3)
	f.await("a share of the fourth one", func() bool { n, _ := f.share(4); return n > 0 })
	w.goOn(f)

	f.stop(&f.chunkservers[0])
	f.await("some of its copies to be replaced", func() bool { n, _ := f.share(1); return n < 40 })
	f.failLeader()
	f.await("three copies of all without it", func() bool {
		return !slices.ContainsFunc(f.copysets(), func(set chunk.Copyset) bool { return !whole(set) || set.Member(1) != nil })
	})
	w.goOn(f)
	f.startChunkserver(0)
	f.await("its share", func() bool {
		n, _ := f.share(1)
		return n == 48 && !slices.ContainsFunc(f.copysets(), func(set chunk.Copyset) bool { return !whole(set) })
	})
	w.goOn(f)
	w.stop()
	w.compare()
	f.await("all copies to be identical", func() bool { return f.identical(ctx) })
	if err := v.Close(ctx); err != nil {
		t.Error(err)
	}
}

// whole reports whether a copyset has three members in sync and no others.
func whole(set chunk.Copyset) bool {
	return len(set.Members) == 3 && !slices.ContainsFunc(set.Members, func(m chunk.Member) bool { return m.State != chunk.InSync })
}

// identical reports whether all copies are, of three of everything.
func (f *fleet) identical(ctx context.Context) bool {
	reply, err := f.users.ListCopysets(ctx, client.ListCopysetsRequest{Verify: true})
	return err == nil && !slices.ContainsFunc(reply.Copysets, func(c client.Copyset) bool {
		return c.Copies != client.CopiesIdentical || len(c.Members) != 3
	})
}

// share is of how many copysets a chunkserver is a member, and of how many the
// primary.
func (f *fleet) share(id chunk.NodeID) (members, primaries int) {
	for _, set := range f.copysets() {
		if set.Member(id) != nil {
			members++
		}
		if set.Primary == id {
			primaries++
		}
	}
	return members, primaries
}

// failLeader has another server lead.
func (f *fleet) failLeader() {
	f.t.Helper()
	leader := f.leader()
	f.stop(&f.servers[leader])
	f.startServer(leader)
}
