package coordinator

import (
	"testing"

	"github.com/google/uuid"

	"github.com/localsnap/localsnap/fsm"
)

// A volume whose writer leaves garbage of which nobody tells is purged all the
// same, but not again and again, whoever leads.
func TestErodingVolumesAreSwept(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	c, depose := r.lead()
	const chunks = 3
	id := r.makeVolume(c, "/v", chunks)
	r.do(c,
		fsm.CreateSnapshot{User: fsm.Root, Path: "/v", Name: "s", UUID: uuid.New()},
		fsm.DeleteSnapshot{User: fsm.Root, Path: "/v", Name: "s"},
	)
	r.await("the snapshot's end", r.idle)
	before := r.pool.count(id)
	// A gateway that never calls loses its attachment after some time.
	swept := func() (time uint64) {
		eroding := false
		r.node.ReadLocal(func(s *fsm.State) error {
			time, eroding = s.Swept()
			return nil
		})
		if !eroding {
			if _, err := r.node.Apply(t.Context(), fsm.Attach{Path: "/v", Gateway: "test", Session: uuid.New()}); err != nil {
				t.Fatal(err)
			}
		}
		return time
	}
	r.await("a sweep", func() bool { return swept() != 0 && r.idle() && r.pool.count(id) >= before+chunks })
	first := swept()
	for range 2 {
		term, err := c.current()
		if err != nil {
			t.Fatal(err)
		}
		if err := term.sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if swept() != first {
			t.Error("swept again at once")
		}
		depose()
		c, depose = r.lead()
	}
	longAgo := first - uint64(sweepPeriod.Microseconds())
	if _, err := r.node.Apply(t.Context(), fsm.Sweep{Time: longAgo}); err != nil {
		t.Fatal(err)
	}
	r.await("the next sweep", func() bool { return swept() > first })
}
