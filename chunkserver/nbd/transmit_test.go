package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// bothReplies runs a test with simple and with structured replies.
func bothReplies(t *testing.T, test func(t *testing.T, structured bool)) {
	for _, structured := range []bool{false, true} {
		t.Run(fmt.Sprintf("structured=%t", structured), func(t *testing.T) {
			t.Parallel()
			test(t, structured)
		})
	}
}

// TestRequests sends one request to a device of 1 MiB, then checks that the
// connection is still in step.
func TestRequests(t *testing.T) {
	t.Parallel()
	const size = 1 << 20
	const simple, structured = 1, 2 // which replies a row is about; 0: both
	tests := []struct {
		name    string
		replies int
		export  string
		command uint16
		flags   uint16
		offset  uint64
		length  uint32
		errno   uint32
		calls   string // what the device sees
	}{
		{"READ", 0, "disk", cmdRead, 0, 4096, 4096, 0, "read 4096+4096"},
		{"READ of odd bytes", 0, "disk", cmdRead, 0, 511, 3, 0, "read 511+3"},
		{"READ to the end", 0, "disk", cmdRead, 0, size - 1, 1, 0, "read 1048575+1"},
		{"READ past the end", 0, "disk", cmdRead, 0, size - 1, 2, errnoInvalid, ""},
		{"READ far past the end", 0, "disk", cmdRead, 0, 1 << 63, 1, errnoInvalid, ""},
		{"READ that overflows", 0, "disk", cmdRead, 0, 1<<64 - 1, 2, errnoInvalid, ""},
		{"READ of nothing", 0, "disk", cmdRead, 0, 0, 0, errnoInvalid, ""},
		{"READ of the most", 0, "big", cmdRead, 0, 0, maxPayload, 0, "read 0+33554432"},
		{"READ of too much", 0, "big", cmdRead, 0, 0, maxPayload + 1, errnoInvalid, ""},
		{"READ of 4 GiB", 0, "big", cmdRead, 0, 0, 1<<32 - 1, errnoInvalid, ""},
		{"READ with FUA", 0, "disk", cmdRead, flagFUA, 0, 512, 0, "read 0+512"},
		{"READ with DF", structured, "disk", cmdRead, flagDF, 0, 65536, 0, "read 0+65536"},
		{"READ with DF", simple, "disk", cmdRead, flagDF, 0, 65536, errnoInvalid, ""},
		{"READ with NO_HOLE", 0, "disk", cmdRead, flagNoHole, 0, 512, errnoInvalid, ""},
		{"READ with an unknown flag", 0, "disk", cmdRead, 1 << 5, 0, 512, errnoInvalid, ""},
		{"READ of a read-only export", 0, "iso", cmdRead, 0, 0, 512, 0, "read 0+512"},

		{"WRITE", 0, "disk", cmdWrite, 0, 4096, 4096, 0, "write 4096+4096"},
		{"WRITE of odd bytes", 0, "disk", cmdWrite, 0, 511, 3, 0, "write 511+3"},
		{"WRITE with FUA", 0, "disk", cmdWrite, flagFUA, 0, 512, 0, "write 0+512 flush 0+0"},
		{"WRITE past the end", 0, "disk", cmdWrite, 0, size - 1, 2, errnoNoSpace, ""},
		{"WRITE that overflows", 0, "disk", cmdWrite, 0, 1<<64 - 1, 2, errnoNoSpace, ""},
		{"WRITE of nothing", 0, "disk", cmdWrite, 0, 0, 0, errnoInvalid, ""},
		{"WRITE of the most", 0, "big", cmdWrite, 0, 0, maxPayload, 0, "write 0+33554432"},
		{"WRITE of too much", 0, "big", cmdWrite, 0, 0, maxPayload + 1, errnoInvalid, ""},
		{"WRITE with an unknown flag", 0, "disk", cmdWrite, 1 << 15, 0, 512, errnoInvalid, ""},
		{"WRITE to a read-only export", 0, "iso", cmdWrite, 0, 0, 512, errnoPermission, ""},

		{"FLUSH", 0, "disk", cmdFlush, 0, 0, 0, 0, "flush 0+0"},
		{"FLUSH of a read-only export", 0, "iso", cmdFlush, 0, 0, 0, 0, "flush 0+0"},

		{"TRIM", 0, "disk", cmdTrim, 0, 512, 1024, 0, "discard 512+1024"},
		{"TRIM with FUA", 0, "disk", cmdTrim, flagFUA, 512, 1024, 0, "discard 512+1024 flush 0+0"},
		{"TRIM of more than a payload", 0, "big", cmdTrim, 0, 0, maxPayload + 1, 0, "discard 0+33554433"},
		{"TRIM past the end", 0, "disk", cmdTrim, 0, size, 1, errnoInvalid, ""},
		{"TRIM of nothing", 0, "disk", cmdTrim, 0, 0, 0, errnoInvalid, ""},
		{"TRIM of a read-only export", 0, "iso", cmdTrim, 0, 0, 512, errnoPermission, ""},

		{"WRITE_ZEROES", 0, "disk", cmdWriteZeroes, 0, 512, 1024, 0, "punch 512+1024"},
		{"WRITE_ZEROES with NO_HOLE", 0, "disk", cmdWriteZeroes, flagNoHole, 512, 1024, 0, "zero 512+1024"},
		{"WRITE_ZEROES with all flags", 0, "disk", cmdWriteZeroes, flagNoHole | flagFastZero | flagFUA, 0, 1, 0, "zero 0+1 flush 0+0"},
		{"WRITE_ZEROES with DF", 0, "disk", cmdWriteZeroes, flagDF, 0, 1, errnoInvalid, ""},
		{"WRITE_ZEROES of more than a payload", 0, "big", cmdWriteZeroes, flagFastZero, 0, maxPayload + 1, 0, "punch 0+33554433"},
		{"WRITE_ZEROES past the end", 0, "disk", cmdWriteZeroes, 0, size - 1, 2, errnoNoSpace, ""},
		{"WRITE_ZEROES to a read-only export", 0, "iso", cmdWriteZeroes, 0, 0, 512, errnoPermission, ""},

		{"BLOCK_STATUS", structured, "disk", cmdBlockStatus, 0, 0, size, 0, "extents 0+1048576"},
		{"BLOCK_STATUS of one extent", structured, "disk", cmdBlockStatus, flagReqOne, 0, size, 0, "extents 0+1048576"},
		{"BLOCK_STATUS past the end", structured, "disk", cmdBlockStatus, 0, 1, size, errnoInvalid, ""},
		{"BLOCK_STATUS of nothing", structured, "disk", cmdBlockStatus, 0, 1, 0, errnoInvalid, ""},
		{"BLOCK_STATUS without context", simple, "disk", cmdBlockStatus, 0, 0, size, errnoInvalid, ""},

		{"CACHE", 0, "disk", 5, 0, 0, 512, errnoInvalid, ""},
		{"RESIZE", 0, "disk", 8, 0, 512, 0, errnoInvalid, ""},
		{"unknown command", 0, "disk", 0xffff, 0xffff, 1<<64 - 1, 1<<32 - 1, errnoInvalid, ""},
	}
	bothReplies(t, func(t *testing.T, withChunks bool) {
		calls := make(chan string, 16)
		note := func(_ context.Context, op string, off, n int64) error {
			calls <- fmt.Sprintf("%s %d+%d", op, off, n)
			return nil
		}
		exports := twoExports(t)
		exports.devices["big"] = newMemory(maxPayload + 1)
		for _, m := range exports.devices {
			m.on = note
		}
		address, _ := serve(t, &Server{Exports: exports})
		for _, test := range tests {
			if test.replies == simple && withChunks || test.replies == structured && !withChunks {
				continue
			}
			c := open(t, address, test.export, withChunks)
			var data []byte
			if test.command == cmdWrite {
				data = bytes.Repeat([]byte("w"), int(test.length))
			}
			a := c.call(test.flags, test.command, test.offset, test.length, data)
			if a.errno != test.errno {
				t.Errorf("%s: errno %d, want %d", test.name, a.errno, test.errno)
			}
			if test.command == cmdRead && a.errno == 0 && len(a.data) != int(test.length) {
				t.Errorf("%s: %d bytes, want %d", test.name, len(a.data), test.length)
			}
			var seen []string
			for len(calls) > 0 {
				seen = append(seen, <-calls)
			}
			if got := strings.Join(seen, " "); got != test.calls {
				t.Errorf("%s: device saw %q, want %q", test.name, got, test.calls)
			}
			if a := c.call(0, cmdRead, 0, 1, nil); a.errno != 0 {
				t.Errorf("%s: errno %d of a good request that follows", test.name, a.errno)
			}
			<-calls
			c.conn.Close()
		}
	})
}

// TestDeviceErrors: each becomes the errno of its meaning in a reply without
// data, whatever the command, and the connection goes on.
func TestDeviceErrors(t *testing.T) {
	t.Parallel()
	bothReplies(t, func(t *testing.T, structured bool) {
		disk := newMemory(1 << 20)
		var failure atomic.Pointer[error]
		disk.on = func(context.Context, string, int64, int64) error {
			if err := failure.Load(); err != nil {
				return *err
			}
			return nil
		}
		address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})
		c := open(t, address, "disk", structured)
		for _, v := range append(verdicts, otherwise) {
			err := v.err
			if err == nil {
				err = errors.New("cable pulled out")
			}
			err = fmt.Errorf("chunk 7: %w", err)
			failure.Store(&err)
			for command := range uint16(len(commands)) {
				if commands[command].name == "" || command == cmdDisc || command == cmdBlockStatus && !structured {
					continue
				}
				var data []byte
				if command == cmdWrite {
					data = make([]byte, 512)
				}
				if a := c.call(0, command, 0, 512, data); a.errno != v.errno {
					t.Errorf("%s, %v: errno %d, want %d", commands[command].name, err, a.errno, v.errno)
				}
			}
		}
		failure.Store(nil)
		if a := c.call(0, cmdRead, 0, 512, nil); a.errno != 0 {
			t.Errorf("afterwards: errno %d", a.errno)
		}
	})
}

// TestBlockStatus compares descriptors, as pairs of length and flags.
func TestBlockStatus(t *testing.T) {
	t.Parallel()
	const block, hole = memoryBlock, allocationHole | allocationZero
	disk := newMemory(3 * maxExtents * block)
	disk.use(2*block, 3*block)                          // blocks 2, 3, 4
	for b := int64(100); b < 100+2*maxExtents; b += 2 { // every other one
		disk.use(b*block, block)
	}
	var answers atomic.Pointer[[]Extent]
	odd := newMemory(1 << 20)
	address, _ := serve(t, &Server{Exports: extentsOf{
		shelf: newShelf(t, map[string]*memory{"disk": disk, "odd": odd}),
		odd:   func() []Extent { return *answers.Load() },
	}})
	descriptors := func(export string, flags uint16, offset uint64, length uint32) (pairs []uint32, errno uint32) {
		c := open(t, address, export, true)
		defer c.conn.Close()
		a := c.call(flags, cmdBlockStatus, offset, length, nil)
		for b := a.status; len(b) > 0; b = b[4:] {
			pairs = append(pairs, binary.BigEndian.Uint32(b))
		}
		return pairs, a.errno
	}
	for _, test := range []struct {
		name   string
		flags  uint16
		offset uint64
		length uint32
		want   []uint32
	}{
		{"whole start", 0, 0, 10 * block, []uint32{2 * block, hole, 3 * block, 0, 5 * block, hole}},
		{"one extent", flagReqOne, 0, 10 * block, []uint32{2 * block, hole}},
		{"inside of one", 0, 2*block + 1, block, []uint32{block, 0}},
		{"across an edge", 0, 5*block - 1, 2, []uint32{1, 0, 1, hole}},
	} {
		got, errno := descriptors("disk", test.flags, test.offset, test.length)
		if diff := cmp.Diff(test.want, got); errno != 0 || diff != "" {
			t.Errorf("%s: errno %d, descriptors (-want +got):\n%s", test.name, errno, diff)
		}
	}
	if got, _ := descriptors("disk", 0, 100*block, 2*maxExtents*block); len(got) != 2*maxExtents {
		t.Errorf("%d descriptors of a fragmented range, want the %d that a reply may have", len(got)/2, maxExtents)
	}

	for _, test := range []struct {
		name    string
		answers []Extent
		want    []uint32
		errno   uint32
	}{
		{"longer than asked", []Extent{{Length: 1 << 40, Hole: true}}, []uint32{100, allocationHole}, 0},
		{"shorter than asked", []Extent{{Length: 10, Zero: true}}, []uint32{10, allocationZero}, 0},
		{"nothing", nil, nil, errnoIO},
		{"of no length", []Extent{{}}, nil, errnoIO},
	} {
		answers.Store(&test.answers)
		got, errno := descriptors("odd", 0, 0, 100)
		if diff := cmp.Diff(test.want, got); errno != test.errno || diff != "" {
			t.Errorf("%s: errno %d, descriptors (-want +got):\n%s", test.name, errno, diff)
		}
	}
}

// extentsOf has a device "odd" that answers Extents as a test says.
type extentsOf struct {
	*shelf
	odd func() []Extent
}

type oddDevice struct {
	Device
	extents func() []Extent
}

func (e extentsOf) Open(ctx context.Context, name string) (Device, error) {
	d, err := e.shelf.Open(ctx, name)
	if name == "odd" {
		d = oddDevice{d, e.odd}
	}
	return d, err
}

func (d oddDevice) Extents(context.Context, int64, int64) ([]Extent, error) {
	return d.extents(), nil
}

// TestWrongRequestsEndTheConnection lists what leaves the sides out of step.
func TestWrongRequestsEndTheConnection(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, &Server{Exports: twoExports(t)})
	for name, data := range map[string][]byte{
		"wrong magic":      append([]byte("garbage!"), make([]byte, requestSize)...),
		"WRITE of 4 GiB":   requestHeader(0, cmdWrite, 1, 0, 1<<32-1),
		"refused by bound": requestHeader(0, cmdWrite, 1, 0, maxDiscard+1),
	} {
		c := open(t, address, "disk", false)
		c.write(data)
		c.wantEnd()
		t.Log(name)
	}
	for name, data := range map[string][]byte{
		"half a header": requestHeader(0, cmdRead, 1, 0, 512)[:20],
		"half of data":  append(requestHeader(0, cmdWrite, 1, 0, 512), make([]byte, 100)...),
	} {
		c := open(t, address, "disk", false)
		c.write(data)
		c.conn.(interface{ CloseWrite() error }).CloseWrite()
		c.wantEnd()
		t.Log(name)
	}
}

// TestSequencesMatchModel runs random requests against an array of bytes.
func TestSequencesMatchModel(t *testing.T) {
	t.Parallel()
	bothReplies(t, func(t *testing.T, structured bool) {
		const size = 3*memoryBlock + 5
		rapid.Check(t, func(rt *rapid.T) {
			disk := newMemory(size)
			address, stop := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})
			defer stop()
			c := open(t, address, "disk", structured)
			defer c.conn.Close()
			model := make([]byte, size)
			for range rapid.IntRange(1, 30).Draw(rt, "steps") {
				off := rapid.IntRange(0, size-1).Draw(rt, "offset")
				n := rapid.IntRange(1, size-off).Draw(rt, "length")
				area := model[off : off+n]
				switch rapid.SampledFrom([]uint16{cmdRead, cmdWrite, cmdWriteZeroes}).Draw(rt, "command") {
				case cmdRead:
					if a := c.call(0, cmdRead, uint64(off), uint32(n), nil); a.errno != 0 || !bytes.Equal(a.data, area) {
						rt.Fatalf("read %d+%d: errno %d, or wrong data", off, n, a.errno)
					}
				case cmdWrite:
					copy(area, rapid.SliceOfN(rapid.Byte(), n, n).Draw(rt, "data"))
					if a := c.call(flagFUA, cmdWrite, uint64(off), 0, area); a.errno != 0 {
						rt.Fatalf("write: errno %d", a.errno)
					}
				case cmdWriteZeroes:
					clear(area)
					if a := c.call(0, cmdWriteZeroes, uint64(off), uint32(n), nil); a.errno != 0 {
						rt.Fatalf("zero: errno %d", a.errno)
					}
				}
			}
			disk.mu.RLock()
			defer disk.mu.RUnlock()
			if !bytes.Equal(disk.data, model) {
				rt.Fatal("device differs from model")
			}
		})
	})
}

// TestPanicIsNotSwallowed runs itself in a process that must die of it.
func TestPanicIsNotSwallowed(t *testing.T) {
	const asChild = "NBD_TEST_PANIC"
	if os.Getenv(asChild) != "" {
		disk := newMemory(4096)
		disk.on = func(context.Context, string, int64, int64) error { panic("broken invariant") }
		address, _ := serve(t, &Server{Exports: newShelf(t, map[string]*memory{"disk": disk})})
		open(t, address, "disk", false).call(0, cmdRead, 0, 1, nil)
		return
	}
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	child := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestPanicIsNotSwallowed$")
	child.Env = append(os.Environ(), asChild+"=1", "TMPDIR="+t.TempDir())
	out, err := child.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("panic: broken invariant")) {
		t.Errorf("process survived: %v\n%s", err, out)
	}
}

// TestOneWarningPerConnection: a broken device doesn't fill the log.
func TestOneWarningPerConnection(t *testing.T) {
	t.Parallel()
	disk := newMemory(4096)
	disk.on = func(context.Context, string, int64, int64) error { return errors.New("on fire") }
	log, lines := logTo(t)
	address, stop := serve(t, &Server{Log: log, Exports: newShelf(t, map[string]*memory{"disk": disk})})
	c := open(t, address, "disk", false)
	for range 50 {
		c.call(0, cmdRead, 0, 1, nil)
	}
	c.conn.Close()
	stop()
	text := lines()
	for want, count := range map[string]int{"on fire": 1, "count=50": 1, "level=WARN": 2} {
		if got := strings.Count(text, want); got != count {
			t.Errorf("%q is logged %d times, want %d:\n%s", want, got, count, text)
		}
	}
}

// eventually waits for a condition that has no event to wait for.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}
