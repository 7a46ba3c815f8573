package fsm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"
	"go.etcd.io/bbolt"
)

const gib = 1 << 30

// id is the n-th of the UUIDs that tests use.
func id(n uint64) (u uuid.UUID) {
	binary.BigEndian.PutUint64(u[8:], n)
	return u
}

// open opens a state that doesn't wait for the disk, and checks it at the end.
func open(t testing.TB) *FSM {
	t.Helper()
	f, err := Open(filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	f.db.NoSync = true
	t.Cleanup(func() {
		if err := f.Check(); err != nil {
			t.Errorf("Check: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return f
}

// apply carries out one command, and makes sure that a refusal changes nothing.
func apply(t testing.TB, f *FSM, c Command) (any, error) {
	t.Helper()
	before := dump(f)
	r := f.Apply([]Entry{{Index: f.Applied() + 1, Data: Encode(c)}})[0]
	if r.Err != nil {
		if diff := cmp.Diff(before, dump(f)); diff != "" {
			t.Fatalf("%#v was refused (%v) but changed (-before +after):\n%s", c, r.Err, diff)
		}
	}
	return r.Value, r.Err
}

// do carries out commands that must succeed, and returns the value of the last.
func do(t testing.TB, f *FSM, commands ...Command) (value any) {
	t.Helper()
	for _, c := range commands {
		var err error
		if value, err = apply(t, f, c); err != nil {
			t.Fatalf("%#v: %v", c, err)
		}
	}
	return value
}

// dump is everything in the state but the applied index.
func dump(f *FSM) map[string]string {
	all := map[string]string{}
	f.View(func(s *State) error {
		for _, name := range buckets {
			s.bucket(name).ForEach(func(k, v []byte) error {
				all[name+" "+string(k)] = string(v)
				return nil
			})
		}
		return nil
	})
	delete(all, bucketMeta+" "+string(keyApplied))
	return all
}

// ask makes a query.
func ask[T any](t testing.TB, f *FSM, query func(*State) (T, error)) T {
	t.Helper()
	var got T
	if err := f.View(func(s *State) (err error) { got, err = query(s); return err }); err != nil {
		t.Fatal(err)
	}
	return got
}

func volume(t testing.TB, f *FSM, path string) Volume {
	t.Helper()
	return ask(t, f, func(s *State) (Volume, error) { return s.Volume(Root, path) })
}

// kind is the kind of a refusal, 0 for none.
func kind(t failer, err error) Kind {
	t.Helper()
	if err == nil {
		return 0
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("%v is no *Error", err)
	}
	if e.Detail == "" || strings.Contains(e.Detail, "%!") {
		t.Errorf("refusal of kind %d without a sentence: %q", e.Kind, e.Detail)
	}
	return e.Kind
}

func TestEntriesAreAppliedOnce(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	entries := []Entry{
		{3, Encode(CreateVolume{User: "ann", Path: "/a", Size: gib})},
		{5, Encode(CreateSnapshot{User: "ann", Path: "/a", Name: "s", UUID: id(1)})},
		{6, Encode(DeleteSnapshot{User: "ann", UUID: id(1)})},
	}
	if got := f.Apply(entries[:2]); got[0].Err != nil || got[1].Err != nil {
		t.Fatal(got)
	}
	if got := f.Apply(entries); got[0] != (Result{}) || got[1] != (Result{}) || got[2].Err != nil {
		t.Fatalf("results of entries 3 to 6 after 5: %+v", got)
	}
	want := dump(f)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if f, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Applied() != 6 {
		t.Errorf("applied %d after reopening, want 6", f.Applied())
	}
	f.Apply(entries)
	if diff := cmp.Diff(want, dump(f)); diff != "" {
		t.Errorf("entries were applied again (-want +got):\n%s", diff)
	}
}

func TestWhatIsNotUnderstoodStopsTheServer(t *testing.T) {
	t.Parallel()
	f := open(t)
	good := Encode(CreateDir{User: "ann", Path: "/d"})
	newer := append([]byte{good[0], good[1] + 1}, good[2:]...)
	for name, data := range map[string][]byte{
		"empty":         {},
		"zero type":     {0, 1, '{', '}'},
		"unknown type":  {byte(len(commands)), 1, '{', '}'},
		"newer version": newer,
		"not JSON":      {good[0], good[1], '{'},
		"unknown field": append(good[:2:2], `{"User":"ann","Path":"/d","Colour":"red"}`...),
		"more behind":   append(bytes.Clone(good), '{', '}'),
		"wrong type":    append(good[:2:2], `{"User":7}`...),
	} {
		before := dump(f)
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			f.Apply([]Entry{{f.Applied() + 1, good}, {f.Applied() + 2, data}})
		}()
		if diff := cmp.Diff(before, dump(f)); diff != "" {
			t.Errorf("%s: a part of the batch was applied:\n%s", name, diff)
		}
	}
	do(t, f, CreateDir{User: "ann", Path: "/d"}) // still works
}

func TestEveryCommandIsInTheTable(t *testing.T) {
	t.Parallel()
	for i, row := range commands[1:] {
		c, err := decode(Encode(row.command))
		if diff := cmp.Diff(row.command, c); err != nil || diff != "" {
			t.Errorf("type %d: %v, came back as (-want +got):\n%s", i+1, err, diff)
		}
	}
	if len(types) != len(commands)-1 {
		t.Errorf("%d type bytes for %d commands", len(commands)-1, len(types))
	}
}

func TestRestoreRefusesWhatIsNotWhole(t *testing.T) {
	t.Parallel()
	f := open(t)
	do(t, f, CreateVolume{User: "ann", Path: "/a", Size: gib})
	var whole bytes.Buffer
	if _, err := f.WriteTo(&whole); err != nil {
		t.Fatal(err)
	}
	do(t, f, CreateVolume{User: "ann", Path: "/b", Size: gib})
	want := dump(f)
	for _, n := range []int{0, 100, 4096, whole.Len() / 2, whole.Len() - 1} {
		if err := f.Restore(bytes.NewReader(whole.Bytes()[:n])); err == nil {
			t.Errorf("restored from the first %d of %d bytes", n, whole.Len())
		}
		if diff := cmp.Diff(want, dump(f)); diff != "" {
			t.Fatalf("changed by a copy of %d bytes:\n%s", n, diff)
		}
	}
	if err := f.Restore(&whole); err != nil {
		t.Fatal(err)
	}
	if f.Applied() != 1 {
		t.Errorf("applied %d after restoring a copy of 1", f.Applied())
	}
	if _, err := os.Stat(f.path + ".tmp"); err == nil {
		t.Error("a temporary file is left")
	}
	f.db.NoSync = true
	do(t, f, CreateVolume{User: "ann", Path: "/b", Size: 2 * gib})
}

func TestOpenRefusesForeignFiles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "state")
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	f.Apply(nil)
	err = f.db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte(bucketMeta)).Put(keyFormat, []byte(number(format+1)))
	})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if f, err := Open(path); err == nil {
		f.Close()
		t.Error("opened a file of a newer format")
	}
}

// A copy that is being written while commands are applied is of one moment.
func TestCopiesAndViewsAreConsistent(t *testing.T) {
	t.Parallel()
	f, g := open(t), open(t)
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			do(t, f, CreateVolume{User: "ann", Path: fmt.Sprintf("/%d", i%50), Size: gib}, Delete{User: "ann", Path: fmt.Sprintf("/%d", i%50)})
		}
	})
	for range 20 {
		var copied bytes.Buffer
		if _, err := f.WriteTo(&copied); err != nil {
			t.Error(err)
		}
		if err := g.Restore(&copied); err != nil {
			t.Error(err)
		}
		if err := g.Check(); err != nil {
			t.Error(err)
		}
		if err := f.Check(); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	wg.Wait()
}

// Servers agree: the log applied one by one, in batches, twice, and through a
// copy midway gives one digest.
func TestEqualLogsGiveEqualStates(t *testing.T) {
	t.Parallel()
	seed := testSeed(t)
	log := randomLog(t, rand.New(rand.NewPCG(seed, 1)), 1500)
	rng := rand.New(rand.NewPCG(seed, 2))

	single := open(t)
	for _, e := range log {
		single.Apply([]Entry{e})
	}
	want, err := single.Digest()
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]*FSM{"batches": open(t), "repetition": open(t), "copy": open(t)} {
		for at := 0; at < len(log); {
			end := min(len(log), at+1+rng.IntN(30))
			start := at
			if name == "repetition" {
				start = max(0, at-rng.IntN(30))
			}
			f.Apply(log[start:end])
			at = end
			if name == "copy" && rng.IntN(5) == 0 {
				other := open(t)
				var copied bytes.Buffer
				if _, err := f.WriteTo(&copied); err != nil {
					t.Fatal(err)
				}
				if err := other.Restore(&copied); err != nil {
					t.Fatal(err)
				}
				other.db.NoSync = true
				f = other
			}
		}
		if got, err := f.Digest(); err != nil || got != want {
			t.Errorf("%s: digest %x, %v, want %x", name, got, err, want)
		}
	}
	do(t, single, CreateDir{User: "ann", Path: "/one-more"})
	if got, _ := single.Digest(); got == want {
		t.Error("a change does not change the digest")
	}
}
