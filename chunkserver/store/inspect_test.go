package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// killedStore returns the directory of a store that was killed: some of what
// it did is in its last checkpoint, some only in the journal.
func killedStore(t *testing.T) string {
	t.Helper()
	running := t.TempDir()
	s := mustOpen(t, running, small)
	must(t, s.Bind("11111111-2222-4333-8444-555555555555"))
	c := &client{Store: s, copyset: 7}
	c.must(t, writeOp(ref10, 1, 0, filled(10, 1)))
	c.must(t, writeOp(ref10, 2, 5, filled(2, 2)))
	c.must(t, writeOp(chunk.Ref{Volume: 9, Index: 4}, 1, 0, filled(1, 9)))
	s.Committed(7, c.lsn)
	must(t, s.Checkpoint(context.Background()))
	c.must(t, writeOp(ref10, 2, 0, filled(1, 3)))   // a block of a file that is there
	c.must(t, writeOp(ref10, 3, 100, filled(1, 4))) // a file of its own
	c.must(t, zeroOp(ref10, 3, 5, 1))               //
	c.must(t, chunk.Op{Kind: chunk.OpFlatten, Ref: chunk.Ref{Volume: 2}, Len: chunk.MaxOp, Views: []*chunk.View{cloneOf10}})
	c.must(t, chunk.Op{Kind: chunk.OpPurge, Ref: chunk.Ref{Volume: 9, Index: 4}, UpTo: chunk.MaxSeq})
	dir := filepath.Join(t.TempDir(), "killed")
	must(t, os.CopyFS(dir, os.DirFS(running)))
	return dir
}

var cloneOf10 = chunk.NewView(2, chunk.NewLineage().Freeze(1), chunk.NewView(1, chunk.NewLineage().Freeze(2), nil))

// fingerprints tells files apart by name, content, and time of change.
func fingerprints(t *testing.T, dir string) map[string]string {
	t.Helper()
	prints := make(map[string]string)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		prints[path] = fmt.Sprint(info.ModTime(), info.Mode())
		if !d.IsDir() {
			content, err := os.ReadFile(path)
			prints[path] += fmt.Sprintf(" %x", sha256.Sum256(content))
			return err
		}
		return nil
	}))
	return prints
}

func mustInspect(t *testing.T, dir string) *Inspection {
	t.Helper()
	i, err := Inspect(dir)
	must(t, err)
	t.Cleanup(func() { i.Close() })
	return i
}

func verify(t *testing.T, i *Inspection) (findings []Finding) {
	t.Helper()
	var last uint64
	must(t, i.Verify(context.Background(), func(f Finding) { findings = append(findings, f) }, func(done uint64) {
		if done < last || done > i.Used {
			t.Errorf("verified %d bytes of %d, after %d", done, i.Used, last)
		}
		last = done
	}))
	if len(findings) == 0 && last != i.Used {
		t.Errorf("verified %d bytes of %d", last, i.Used)
	}
	return findings
}

// What is shown of a store that was killed is what Open then finds, and
// nothing in the directory is touched.
func TestInspectShowsWhatOpenFinds(t *testing.T) {
	dir := killedStore(t)
	before := fingerprints(t, dir)
	i := mustInspect(t, dir)
	if findings := verify(t, i); len(findings) > 0 || i.Damage != nil {
		t.Errorf("found %v, %v", findings, i.Damage)
	}
	var layers []LayerInfo
	must(t, i.Layers(func(l LayerInfo) { layers = append(layers, l) }))
	want := []LayerInfo{{ref10, 1, 10, 0}, {ref10, 2, 3, 0}, {ref10, 3, 1, 1}, {chunk.Ref{Volume: 2}, 0, 10, 0}}
	if diff := cmp.Diff(want, layers); diff != "" {
		t.Error(diff)
	}
	if j := i.Journal; j.First != 1 || j.Last < j.First || j.SegmentBytes != small.SegmentBytes || j.Pending != 5 {
		t.Errorf("journal %+v", j)
	}
	must(t, i.Close())
	if diff := cmp.Diff(before, fingerprints(t, dir)); diff != "" {
		t.Error(diff)
	}

	s := mustOpen(t, dir, small)
	if i.ID != s.ID() || i.Cluster != "11111111-2222-4333-8444-555555555555" || i.Version != formatVersion {
		t.Errorf("store %s of cluster %s, version %d", i.ID, i.Cluster, i.Version)
	}
	opened := s.Copysets()
	for i := range opened {
		opened[i].Tail = nil
	}
	if diff := cmp.Diff(opened, i.Copysets); diff != "" || len(opened) != 1 {
		t.Error(diff)
	}
	if usage, err := s.Usage(); err != nil || usage.Used != i.Used {
		t.Errorf("used %d, %v; shown %d", usage.Used, err, i.Used)
	}
}

// Each kind of damage is found, where it is, and read-only.
func TestVerifyFindsDamage(t *testing.T) {
	file := func(id layerID) string { return filepath.FromSlash(id.name()) }
	first := layerID{ref10, 1}
	change := func(t *testing.T, name string, off int64, data []byte) {
		f, err := os.OpenFile(name, os.O_RDWR, 0)
		must(t, err)
		_, err = f.WriteAt(data, off)
		must(t, errors.Join(err, f.Close()))
	}
	for name, test := range map[string]struct {
		damage func(t *testing.T, dir string)
		want   string // in the one finding; "": none
	}{
		"block": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file(first)), 3*chunk.BlockSize+100, []byte("x"))
		}, "block 3 of layer 1 of chunk 1/0: content does not match"},
		"block that the journal has": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, file(layerID{ref10, 2})), 100, []byte("x"))
		}, ""},
		"file that the journal has": {func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, file(layerID{ref10, 3}))))
		}, ""},
		"record": {func(t *testing.T, dir string) {
			change(t, filepath.Join(dir, segmentName(1)), segmentHeader+chunk.BlockSize+recordHeader+200, []byte("x"))
		}, "record at offset 8192 of journal/0000000000000001.seg"},
		"lost file": {func(t *testing.T, dir string) {
			must(t, os.Remove(filepath.Join(dir, file(first))))
		}, "the file of the layer is missing"},
		"orphan": {func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, file(layerID{ref10, 77})), filled(1, 1), 0o600))
		}, "layer 77 of chunk 1/0: file of a layer that does not exist"},
		"stray file": {func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, filepath.Dir(file(first)), "notes"), nil, 0o600))
		}, `file "notes" is not a layer's`},
		"database": {func(t *testing.T, dir string) {
			// All pages but the first two, by which the database is opened.
			name := filepath.Join(dir, metaFile)
			info, err := os.Stat(name)
			must(t, err)
			change(t, name, 2*4096, make([]byte, info.Size()-2*4096))
		}, metaFile},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := killedStore(t)
			test.damage(t, dir)
			before := fingerprints(t, dir)
			i, err := Inspect(dir)
			var told string
			if err == nil {
				told = fmt.Sprint(verify(t, i))
				must(t, i.Close())
			} else if told = err.Error(); !errors.Is(err, ErrDamaged) {
				t.Errorf("inspect: %v", err)
			}
			if test.want == "" && told != "[]" || !strings.Contains(told, test.want) {
				t.Errorf("found %s, want %q", told, test.want)
			}
			if diff := cmp.Diff(before, fingerprints(t, dir)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What is not a stopped store of this version is refused, and left alone.
func TestInspectRefuses(t *testing.T) {
	empty, foreign, other := t.TempDir(), t.TempDir(), killedStore(t)
	must(t, os.WriteFile(filepath.Join(foreign, "holiday.jpg"), nil, 0o600))
	f, err := os.ReadFile(filepath.Join(other, formatFile))
	must(t, err)
	f[8] = 99
	must(t, os.WriteFile(filepath.Join(other, formatFile), f, 0o600))
	running := t.TempDir()
	mustOpen(t, running, small)
	for dir, want := range map[string]string{
		empty:                           `it has no file "format"`,
		foreign:                         "holiday.jpg",
		other:                           "version 99",
		running:                         "in use: stop its chunkserver first",
		filepath.Join(empty, "nothing"): "no such file",
	} {
		before := fingerprints(t, filepath.Dir(dir))
		if _, err := Inspect(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %q", err, want)
		}
		if diff := cmp.Diff(before, fingerprints(t, filepath.Dir(dir))); diff != "" {
			t.Error(diff)
		}
	}
	// A look keeps stores out, not other looks.
	dir := killedStore(t)
	i := mustInspect(t, dir)
	must(t, mustInspect(t, dir).Close())
	if s, err := Open(dir, small); err == nil {
		s.Close()
		t.Error("opened while somebody was looking")
	}
	must(t, i.Close())
	mustOpen(t, dir, small)
}
