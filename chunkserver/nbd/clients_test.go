package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program runs a client that nobody here wrote. A machine without it skips the
// test, unless it is the one whose verdict counts.
func program(t *testing.T, name string, args ...string) (output string, err error) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%v: CI must have it", err)
		}
		t.Skipf("%v: install libnbd-bin, qemu-utils and fio to run this test", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	return string(out), err
}

// mustRun is program for what must succeed.
func mustRun(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := program(t, name, args...)
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func uri(address, export string) string { return "nbd+unix:///" + export + "?socket=" + address }

// image makes a sparse file: a hole, 3 MiB of noise, a hole, odd bytes.
func image(t *testing.T, size int64) (path string, content []byte) {
	t.Helper()
	content = make([]byte, size)
	noise := rand.NewChaCha8([32]byte{1})
	noise.Read(content[1<<20 : 4<<20])
	noise.Read(content[size-12345 : size-1])
	path = filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err1 := f.WriteAt(content[1<<20:4<<20], 1<<20)
	_, err2 := f.WriteAt(content[size-12345:], size-12345)
	if err := errors.Join(err1, err2, f.Truncate(size), f.Close()); err != nil {
		t.Fatal(err)
	}
	return path, content
}

func TestNbdinfo(t *testing.T) {
	t.Parallel()
	exports := twoExports(t)
	exports.devices["disk"].use(4096, 8192)
	address, _ := serve(t, &Server{Exports: exports})

	var info struct {
		Protocol string
		Exports  []struct {
			Name      string `json:"export-name"`
			Size      int64  `json:"export-size"`
			Contexts  []any
			ReadOnly  bool  `json:"is_read_only"`
			MultiConn bool  `json:"can_multi_conn"`
			FastZero  bool  `json:"can_fast_zero"`
			DF        bool  `json:"can_df"`
			FUA       bool  `json:"can_fua"`
			Cache     bool  `json:"can_cache"`
			Preferred int64 `json:"block_size_preferred"`
			Maximum   int64 `json:"block_size_maximum"`
		}
	}
	out := mustRun(t, "nbdinfo", "--list", "--json", uri(address, ""))
	if err := json.Unmarshal([]byte(out), &info); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if info.Protocol != "newstyle-fixed" || len(info.Exports) != 2 {
		t.Fatalf("got %+v", info)
	}
	disk, iso := info.Exports[0], info.Exports[1]
	if disk.Name != "disk" || disk.Size != 1<<20 || disk.ReadOnly || !disk.MultiConn ||
		!disk.FastZero || !disk.DF || !disk.FUA || disk.Cache || disk.Preferred != 4096 || disk.Maximum != 32<<20 ||
		len(disk.Contexts) != 1 || disk.Contexts[0] != baseAllocation {
		t.Errorf("disk: %+v", disk)
	}
	if iso.Name != "iso" || iso.Size != 12345 || !iso.ReadOnly || iso.FUA || iso.FastZero {
		t.Errorf("iso: %+v", iso)
	}

	if out := mustRun(t, "nbdinfo", uri(address, "disk")); !strings.Contains(out, "description: memory") {
		t.Errorf("no description:\n%s", out)
	}

	var extents []struct{ Offset, Length, Type int64 }
	out = mustRun(t, "nbdinfo", "--map", "--json", uri(address, "disk"))
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(extents) != 3 || extents[1].Offset != 4096 || extents[1].Length != 8192 || extents[1].Type != 0 || extents[2].Type != 3 {
		t.Errorf("map: %+v", extents)
	}
	if out, err := program(t, "nbdinfo", uri(address, "nobody")); err == nil || !strings.Contains(out, "No such file or directory for export") {
		t.Errorf("unknown export: %v, %s", err, out)
	}
}

// TestNbdcopy copies in and out, over several connections.
func TestNbdcopy(t *testing.T) {
	t.Parallel()
	const size = 20<<20 + 512
	path, content := image(t, size)
	disk := newMemory(size)
	noise := rand.NewChaCha8([32]byte{2})
	noise.Read(disk.data) // what is there must give way
	disk.use(0, size)
	address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})

	mustRun(t, "nbdcopy", "--flush", path, uri(address, "disk"))
	disk.mu.RLock()
	if !bytes.Equal(disk.data, content) {
		t.Error("device differs from what was copied to it")
	}
	if disk.flushes == 0 {
		t.Error("no flush came")
	}
	disk.mu.RUnlock()
	copied := filepath.Join(t.TempDir(), "copy")
	mustRun(t, "nbdcopy", uri(address, "disk"), copied)
	if got, err := os.ReadFile(copied); err != nil || !bytes.Equal(got, content) {
		t.Errorf("copy differs from device: %v", err)
	}
}

func TestQemuImg(t *testing.T) {
	t.Parallel()
	const size = 20 << 20
	path, content := image(t, size)
	disk := newMemory(size)
	address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})
	target := "nbd:unix:" + address + ":exportname=disk"

	mustRun(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", path, target)
	disk.mu.RLock()
	if !bytes.Equal(disk.data, content) {
		t.Error("device differs from what was converted to it")
	}
	if used := bytes.Count(boolBytes(disk.used), []byte{1}); used > 4<<20/memoryBlock {
		t.Errorf("%d blocks are in use: the copy is not sparse", used)
	}
	disk.mu.RUnlock()
	mustRun(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", path, target)

	var extents []struct {
		Start, Length int64
		Zero, Data    bool
	}
	out := mustRun(t, "qemu-img", "map", "-f", "raw", "--output=json", target)
	if err := json.Unmarshal([]byte(out), &extents); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if len(extents) < 3 || extents[0].Length != 1<<20 || !extents[0].Zero || extents[0].Data || !extents[1].Data {
		t.Errorf("map: %+v", extents)
	}
}

func boolBytes(bs []bool) []byte {
	out := make([]byte, len(bs))
	for i, b := range bs {
		if b {
			out[i] = 1
		}
	}
	return out
}

// TestQemuIO writes patterns, zeroes with and without unmap, discards and
// meets errors of the device.
func TestQemuIO(t *testing.T) {
	t.Parallel()
	disk := newMemory(8 << 20)
	disk.on = func(_ context.Context, op string, off, _ int64) error {
		if op == "write" && off == 7<<20 {
			return ErrNoSpace
		}
		return nil
	}
	address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})
	target := "nbd:unix:" + address + ":exportname=disk"
	script := []string{"-f", "raw", "--discard=unmap"}
	for _, c := range []string{
		"write -P 17 512 1M", "read -P 17 512 1M", "read -P 0 0 512", // unaligned to our blocks
		"write -f -P 18 4M 64k", "read -P 18 4M 64k",
		"write -z 512k 64k", "read -P 0 512k 64k", "write -z -u 640k 64k", "read -P 0 640k 64k",
		"discard 4M 64k", "flush", "aio_write -P 19 2M 1M", "aio_flush", "read -P 19 2M 1M",
	} {
		script = append(script, "-c", c)
	}
	out := mustRun(t, "qemu-io", append(script, target)...)
	if strings.Contains(out, "failed") {
		t.Error(out)
	}
	out, _ = program(t, "qemu-io", "-f", "raw", "-c", "write 7M 64k", "-c", "read 7M 64k", target)
	if !strings.Contains(out, "No space left on device") || !strings.Contains(out, "read 65536/65536") {
		t.Errorf("an error of the device, then a good request:\n%s", out)
	}
}

func TestFio(t *testing.T) {
	t.Parallel()
	disk := newMemory(16 << 20)
	address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})
	mustRun(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri(address, "disk"), "--rw=randrw", "--bsrange=512-64k",
		"--iodepth=32", "--size=16M", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--fsync=50", "--randseed=1")
}
