package nemesis

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// smallDisk has room for a chunkserver's journal and the volumes of a story.
const smallDisk = 4 << 30

// mountSmall mounts a small file system at dir until the test ends.
func mountSmall(t *testing.T, dir string) {
	t.Helper()
	image := dir + ".img"
	f, err := os.Create(image)
	must(t, err)
	must(t, errors.Join(f.Truncate(smallDisk), f.Close()))
	must(t, tool("", "mkfs.ext4", "-q", "-F", image))
	must(t, tool("", "mount", "-o", "loop", image, dir))
	t.Cleanup(func() {
		if err := tool("", "umount", dir); err != nil {
			t.Error(err)
		}
	})
}

// ballast is the file that fills a disk.
const ballast = "ballast"

// fillDisk leaves no room on the file system that is mounted at dir.
func fillDisk(dir string) error {
	f, err := os.Create(filepath.Join(dir, ballast))
	if err != nil {
		return err
	}
	defer f.Close()
	size := int64(0)
	for step := int64(1 << 30); step >= 4<<10; {
		if err := syscall.Fallocate(int(f.Fd()), 0, size, step); errors.Is(err, syscall.ENOSPC) {
			step /= 2
		} else if err != nil {
			return err
		} else {
			size += step
		}
	}
	return nil
}

func emptyDisk(dir string) error { return os.Remove(filepath.Join(dir, ballast)) }

func TestFullDisk(t *testing.T) {
	needNamespaces(t)
	dir := filepath.Join(t.TempDir(), "disk")
	must(t, os.Mkdir(dir, 0o755))
	mountSmall(t, dir)
	file := filepath.Join(dir, "file")
	must(t, fillDisk(dir))
	if err := os.WriteFile(file, make([]byte, 64<<10), 0o644); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full disk: %v", err)
	}
	must(t, emptyDisk(dir))
	must(t, os.WriteFile(file, make([]byte, 64<<10), 0o644))
}
