package nemesis

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

var long = flag.Bool("long", false, "run the stories that take minutes, with the limits that are promised")

// binaryVariable names the localsnap to run, to the test process that has
// namespaces of its own.
const binaryVariable = "LOCALSNAP_NEMESIS_BINARY"

// tools are what the fleet and its clients need beside localsnap.
var tools = []string{"ip", "nft", "fio", "mkfs.ext4", "mount", "umount"}

// TestMain runs the tests as the first process of namespaces of their own:
// the kernel removes processes, networks and mounts with them.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv(binaryVariable) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "prepare the namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	if missing() != "" {
		os.Exit(m.Run()) // those who need what is missing say so
	}
	code, err := runInside()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// runInside builds localsnap and runs this program again in new namespaces.
func runInside() (int, error) {
	dir, err := os.MkdirTemp("", "nemesis-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	binary := filepath.Join(dir, "localsnap")
	build := exec.Command("go", "build", "-race=false", "-o", binary, "github.com/localsnap/localsnap/cmd/localsnap")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		return 1, err
	}
	self, err := os.Executable()
	if err != nil {
		return 1, err
	}
	runtime.LockOSThread() // the child dies with the thread that started it
	inside := exec.Command(self, os.Args[1:]...)
	inside.Env = append(os.Environ(), binaryVariable+"="+binary, "TMPDIR="+dir)
	inside.Stdin, inside.Stdout, inside.Stderr = os.Stdin, os.Stdout, os.Stderr
	inside.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET,
		Pdeathsig:  syscall.SIGKILL,
	}
	err = inside.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		return exit.ExitCode(), nil
	}
	if err != nil {
		return 1, err
	}
	return 0, nil
}

// settle makes the new mount namespace independent of the machine's, with its
// own list of processes and of network namespaces.
func settle() error {
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return err
	}
	const named = "/run/netns" // where ip keeps them
	if err := os.MkdirAll(named, 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", named, "tmpfs", 0, ""); err != nil {
		return err
	}
	return ip("link", "set", "lo", "up")
}

// missing says what the machine lacks for namespaces, or "".
func missing() string {
	var lacks []string
	if os.Getuid() != 0 {
		lacks = append(lacks, "root's rights")
	}
	for _, tool := range tools {
		if _, err := lookPath(tool); err != nil {
			lacks = append(lacks, tool)
		}
	}
	return strings.Join(lacks, ", ")
}

// needNamespaces skips the test on a developer's machine that lacks what it
// takes, and fails it where nobody would notice.
func needNamespaces(t *testing.T) {
	t.Helper()
	lacks := missing()
	switch {
	case lacks == "":
	case os.Getenv("CI") == "true":
		t.Fatalf("missing: %s", lacks)
	default:
		t.Skipf("missing: %s (make deps installs programs)", lacks)
	}
}

func needLong(t *testing.T) {
	t.Helper()
	if !*long {
		t.Skip("takes minutes: -long, as make chaos says")
	}
}
