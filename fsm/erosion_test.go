package fsm

import (
	"testing"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// game is a player that plays by hand.
func game(t *testing.T) *player {
	t.Helper()
	return newPlayer(t, func(int) int { return 1 }, open(t))
}

// erosion is what a test asks about a volume: whether it is eroding, whether it
// is to be purged, and how many blocks its layers hold.
type erosion struct {
	eroding, purge bool
	blocks         int
}

func (p *player) erosion(t *testing.T, path string) erosion {
	t.Helper()
	v := volume(t, p.f, path)
	purges := ask(t, p.f, func(s *State) ([]chunk.VolumeID, error) { return s.Purges(), nil })
	e := erosion{eroding: v.Eroding}
	for _, id := range purges {
		e.purge = e.purge || id == v.ID
	}
	for _, layer := range p.layers[v.ID] {
		for _, value := range layer {
			if value != 0 {
				e.blocks++
			}
		}
	}
	return e
}

// fill lets the writer of a volume write all blocks.
func (p *player) fill(t *testing.T, path string) {
	t.Helper()
	v := volume(t, p.f, path)
	for b := range blocks {
		p.stamp++
		p.put(v.ID, v.Seq, b, p.stamp)
	}
}

// purgeOnce does what there is to purge.
func (p *player) purgeOnce(t *testing.T, path string) {
	t.Helper()
	work := ask(t, p.f, func(s *State) (Purge, error) { return s.Purge(volume(t, p.f, path).ID) })
	p.free(work)
	do(t, p.f, work.Done())
}

// What a writer writes over after the purge of the snapshot that had frozen it
// comes back: by a sweep, when it lets go, and after the next snapshot.
func TestErosion(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]Command{
		"sweep":    Sweep{Time: 7},
		"detach":   Detach{Attachment: 1},
		"snapshot": CreateSnapshot{User: "ann", Path: "/v", Name: "next", UUID: id(901), Attachment: 1, Turn: 1},
		"clone":    Clone{User: "ann", Path: "/v", Destination: "/w", Lazy: true, UUID: id(902), Hidden: id(903), Attachment: 1, Turn: 1},
	} {
		p := game(t)
		do(t, p.f, CreateVolume{User: "ann", Path: "/v", Size: gib}, Attach{Path: "/v"})
		p.fill(t, "/v")
		do(t, p.f, CreateSnapshot{User: "ann", Path: "/v", Name: "s", UUID: id(900), Attachment: 1, Turn: 1})
		expect := func(when string, want erosion) {
			t.Helper()
			if got := p.erosion(t, "/v"); got != want {
				t.Fatalf("%s: %s: %+v, want %+v", name, when, got, want)
			}
		}
		expect("while the snapshot is there", erosion{false, false, blocks})
		do(t, p.f, DeleteSnapshot{User: "ann", UUID: id(900)})
		expect("while the snapshot is being deleted", erosion{true, true, blocks})
		p.purgeOnce(t, "/v")
		expect("when it is gone", erosion{true, false, blocks})
		p.fill(t, "/v")
		expect("when all is written over", erosion{true, false, 2 * blocks})
		do(t, p.f, end)
		expect("after the end", erosion{name == "sweep", true, 2 * blocks})
		p.purgeOnce(t, "/v")
		expect("after its purge", erosion{name == "sweep", false, blocks})
	}
}

// What flattening copied for the head is older than what the head writes.
func TestFlattenedClonesErode(t *testing.T) {
	t.Parallel()
	for name, early := range map[string]bool{"written while it is flattened": true, "written later": false} {
		p := game(t)
		do(t, p.f, CreateVolume{User: "ann", Path: "/v", Size: gib})
		p.fill(t, "/v")
		do(t, p.f, Clone{User: "ann", Path: "/v", Destination: "/w", Lazy: true, UUID: id(900), Hidden: id(901)})
		w := volume(t, p.f, "/w").ID
		expect := func(when string, want erosion) {
			t.Helper()
			if got := p.erosion(t, "/w"); got != want {
				t.Fatalf("%s: %s: %+v, want %+v", name, when, got, want)
			}
		}
		if early {
			do(t, p.f, Attach{Path: "/w"})
		}
		expect("before", erosion{false, false, 0})
		do(t, p.f, Flatten{User: "ann", Path: "/w"})
		expect("while it is flattened", erosion{early, false, 0})
		p.copyUp(flattening{w, ask(t, p.f, func(s *State) ([]*chunk.View, error) { return s.FlattenViews(w) })})
		if early {
			p.fill(t, "/w")
			do(t, p.f, Detach{Attachment: 1})
			expect("when the writer is gone", erosion{false, true, 2 * blocks})
			p.purgeOnce(t, "/w")
			do(t, p.f, FlattenDone{Volume: w})
		} else {
			do(t, p.f, FlattenDone{Volume: w}, Attach{Path: "/w"})
			p.fill(t, "/w")
			expect("when all is written over", erosion{true, false, 2 * blocks})
			do(t, p.f, Sweep{Time: 7})
			expect("after a sweep", erosion{true, true, 2 * blocks})
			p.purgeOnce(t, "/w")
			do(t, p.f, Detach{Attachment: 1})
			p.purgeOnce(t, "/w")
		}
		expect("in the end", erosion{false, false, blocks})
	}
}

// The state tells when the last sweep was, and whether another is worth while.
func TestSweptIsRemembered(t *testing.T) {
	t.Parallel()
	f := open(t)
	swept := func() (time uint64, eroding bool) {
		f.View(func(s *State) error { time, eroding = s.Swept(); return nil })
		return time, eroding
	}
	do(t, f, CreateVolume{User: "ann", Path: "/v", Size: gib}, Attach{Path: "/v"})
	if time, eroding := swept(); time != 0 || eroding {
		t.Errorf("at first: %d, %v", time, eroding)
	}
	do(t, f,
		CreateSnapshot{User: "ann", Path: "/v", Name: "s", UUID: id(1), Attachment: 1, Turn: 1},
		DeleteSnapshot{User: "ann", UUID: id(1)},
	)
	if n := do(t, f, Sweep{Time: 9}); n != 1 {
		t.Errorf("%v volumes were eroding, want 1", n)
	}
	if time, eroding := swept(); time != 9 || !eroding {
		t.Errorf("after a sweep: %d, %v", time, eroding)
	}
	do(t, f, Detach{Attachment: 1})
	if n := do(t, f, Sweep{Time: 10}); n != 0 {
		t.Errorf("%v volumes were eroding, want 0", n)
	}
}
