package store

import (
	"bytes"
	"errors"
	"io/fs"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/localsnap/localsnap/chunkserver/chunk"
)

// Both file systems do what the interface says: the one that stores run on,
// and the one that tests lose power on.
func TestFileSystems(t *testing.T) {
	for name, make := range map[string]func() FS{
		"OSFS": func() FS { return OSFS(t.TempDir()) },
		"disk": func() FS { return newDisk() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Run("names", func(t *testing.T) { testNames(t, make()) })
			t.Run("content", func(t *testing.T) { testContent(t, make()) })
			t.Run("copy", func(t *testing.T) { testCopy(t, make()) })
			t.Run("lock", func(t *testing.T) { testLock(t, make()) })
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustCreate(t *testing.T, f FS, name string) File {
	t.Helper()
	file, err := f.Create(name)
	must(t, err)
	t.Cleanup(func() { file.Close() })
	return file
}

func mustReadFile(t *testing.T, file File, off int64, n int) []byte {
	t.Helper()
	p := bytes.Repeat([]byte{0xee}, n)
	must(t, file.ReadAt(p, off))
	return p
}

func testNames(t *testing.T, f FS) {
	if _, err := f.Open("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("open of nothing: %v", err)
	}
	if _, err := f.Create("d/a"); err == nil {
		t.Error("created a file in a directory that does not exist")
	}
	if names, err := f.List("d"); err != nil || len(names) != 0 {
		t.Errorf("list of nothing: %v, %v", names, err)
	}
	must(t, f.Mkdir("d"))
	must(t, f.Mkdir("d"))
	must(t, mustCreate(t, f, "d/a").WriteAt(0, []byte("a")))
	must(t, mustCreate(t, f, "d/b").WriteAt(0, []byte("b")))
	must(t, f.Rename("d/b", "d/a"))
	must(t, f.SyncDir("d"))
	names, err := f.List("d")
	if diff := cmp.Diff([]string{"a"}, names); diff != "" || err != nil {
		t.Errorf("after the rename: %s %v", diff, err)
	}
	file, err := f.Open("d/a")
	must(t, err)
	defer file.Close()
	if got := mustReadFile(t, file, 0, 1); got[0] != 'b' {
		t.Errorf("the rename left %q", got)
	}
	if f.Remove("d") == nil {
		t.Error("removed a directory that is not empty")
	}
	must(t, f.Remove("d/a"))
	if err := f.Remove("d/a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed twice: %v", err)
	}
	must(t, f.Remove("d"))
	if names, _ := f.List("."); len(names) != 0 {
		t.Errorf("left over: %v", names)
	}
}

func testContent(t *testing.T, f FS) {
	file := mustCreate(t, f, "a")
	must(t, file.WriteAt(chunk.BlockSize, filled(1, 1), filled(2, 2), nil, filled(1, 3)))
	must(t, file.Sync())
	if size, err := file.Size(); err != nil || size != 5*chunk.BlockSize {
		t.Errorf("size %d, %v", size, err)
	}
	want := bytes.Join([][]byte{filled(1, 0), filled(1, 1), filled(2, 2), filled(1, 3), filled(2, 0)}, nil)
	if !bytes.Equal(mustReadFile(t, file, 0, 7*chunk.BlockSize), want) {
		t.Error("read differs from what was written")
	}
	must(t, file.Punch(2*chunk.BlockSize, chunk.BlockSize))
	copy(want[2*chunk.BlockSize:], filled(1, 0))
	file.Uncache(0, 5*chunk.BlockSize)
	if !bytes.Equal(mustReadFile(t, file, 0, 7*chunk.BlockSize), want) {
		t.Error("read after the punch differs")
	}
	if got := mustReadFile(t, file, 100*chunk.BlockSize, 10); !bytes.Equal(got, make([]byte, 10)) {
		t.Error("what lies behind the end is not zeros")
	}
	many := make([][]byte, 3000)
	for i := range many {
		many[i] = []byte{byte(i), byte(i >> 8)}
	}
	must(t, file.WriteAt(3, many...))
	if !bytes.Equal(mustReadFile(t, file, 3, 6000), bytes.Join(many, nil)) {
		t.Error("many buffers are not written in order")
	}
	again := mustCreate(t, f, "a")
	if size, err := again.Size(); err != nil || size != 0 {
		t.Errorf("created again: size %d, %v", size, err)
	}
}

func testCopy(t *testing.T, f FS) {
	from, to := mustCreate(t, f, "a"), mustCreate(t, f, "b")
	must(t, from.WriteAt(0, filled(300, 1)))
	must(t, to.WriteAt(0, filled(300, 2)))
	must(t, from.CopyTo(to, 5*chunk.BlockSize, 260*chunk.BlockSize))
	want := bytes.Join([][]byte{filled(5, 2), filled(260, 1), filled(35, 2)}, nil)
	if !bytes.Equal(mustReadFile(t, to, 0, len(want)), want) {
		t.Error("the copy differs")
	}
}

func testLock(t *testing.T, f FS) {
	unlock, err := f.Lock("lock")
	must(t, err)
	if _, err := f.Lock("lock"); err == nil {
		t.Error("locked twice")
	}
	must(t, unlock())
	unlock, err = f.Lock("lock")
	must(t, err)
	must(t, unlock())
	if free, err := f.Free(); err != nil || free == 0 {
		t.Errorf("free: %d, %v", free, err)
	}
}

// What was not synced may be lost with the power, and what was is kept.
func TestDiskLosesWhatWasNotSynced(t *testing.T) {
	outcomes := make(map[string]bool)
	for seed := range uint64(200) {
		d := newDisk()
		file := mustCreate(t, d, "a")
		must(t, file.WriteAt(0, filled(1, 1)))
		must(t, file.Sync())
		must(t, d.SyncDir("."))
		must(t, file.WriteAt(0, filled(1, 2)))
		mustCreate(t, d, "b")
		d.lose(newRand(seed))
		file, err := d.Open("a")
		must(t, err)
		switch p := mustReadFile(t, file, 0, chunk.BlockSize); {
		case bytes.Equal(p, filled(1, 1)):
			outcomes["old"] = true
		case bytes.Equal(p, filled(1, 2)):
			outcomes["new"] = true
		default:
			outcomes["torn"] = true
		}
		if _, err := d.Open("b"); err == nil {
			outcomes["name kept"] = true
		} else {
			outcomes["name lost"] = true
		}
	}
	if len(outcomes) != 5 {
		t.Errorf("of old, new, torn, name kept and name lost, only %v were seen", outcomes)
	}
}
