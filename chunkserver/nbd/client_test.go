package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// serve runs the server on a unix socket until the test ends, or stop.
func serve(tb testing.TB, s *Server) (address string, stop func()) {
	tb.Helper()
	dir, err := os.MkdirTemp("", "nbd") // shorter than TempDir, as a socket's path must be
	if err != nil {
		tb.Fatal(err)
	}
	address = filepath.Join(dir, "s")
	l, err := net.Listen("unix", address)
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	stopped := false
	stop = func() {
		cancel()
		if stopped {
			return
		}
		stopped = true
		select {
		case err := <-done:
			if err != nil {
				tb.Errorf("Serve: %v", err)
			}
		case <-time.After(patience):
			tb.Error("Serve does not end")
		}
		os.RemoveAll(dir)
	}
	tb.Cleanup(stop)
	return address, stop
}

// client speaks the protocol as raw as a test wants it.
type client struct {
	tb         testing.TB
	conn       net.Conn
	in         *bufio.Reader
	structured bool
}

// dial connects and exchanges handshake flags.
func dial(tb testing.TB, address string, flags uint32) *client {
	tb.Helper()
	conn, err := net.Dial("unix", address)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	c := &client{tb: tb, conn: conn, in: bufio.NewReaderSize(conn, 256<<10)}
	if got := c.uint64(); got != magicServer {
		tb.Fatalf("server begins with %#x", got)
	}
	if got := c.uint64(); got != magicOption {
		tb.Fatalf("server goes on with %#x", got)
	}
	if got := c.uint16(); got != handshakeFixedNewstyle|handshakeNoZeroes {
		tb.Fatalf("handshake flags %#x", got)
	}
	c.write(binary.BigEndian.AppendUint32(nil, flags))
	return c
}

const modern = handshakeFixedNewstyle | handshakeNoZeroes

// open negotiates as libnbd does, and opens an export.
func open(tb testing.TB, address, export string, structured bool) *client {
	tb.Helper()
	c := dial(tb, address, modern)
	if structured {
		c.want(optStructuredReply, nil, repAck)
		c.structured = true
		c.want(optSetMetaContext, metaQuery(export, baseAllocation), repMetaContext, repAck)
	}
	c.want(optGo, goData(export), repInfo, repInfo, repAck)
	return c
}

func (c *client) write(b []byte) {
	c.tb.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.tb.Fatalf("write: %v", err)
	}
}

func (c *client) read(n int) []byte {
	c.tb.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.in, b); err != nil {
		c.tb.Fatalf("read: %v", err)
	}
	return b
}

func (c *client) uint16() uint16 { c.tb.Helper(); return binary.BigEndian.Uint16(c.read(2)) }
func (c *client) uint32() uint32 { c.tb.Helper(); return binary.BigEndian.Uint32(c.read(4)) }
func (c *client) uint64() uint64 { c.tb.Helper(); return binary.BigEndian.Uint64(c.read(8)) }

// wantEnd waits for the server to close the connection without another byte.
func (c *client) wantEnd() {
	c.tb.Helper()
	b, err := c.in.ReadByte()
	if err == nil {
		c.tb.Fatalf("got byte %#x, want end of connection", b)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.tb.Fatal("the server does not close the connection")
	}
}

// optionReply is one reply to an option.
type optionReply struct {
	kind uint32
	data []byte
}

// option sends an option.
func (c *client) option(option uint32, data []byte) {
	c.tb.Helper()
	c.write(optionBytes(option, data))
}

func optionBytes(option uint32, data []byte) []byte {
	b := binary.BigEndian.AppendUint64(nil, magicOption)
	b = binary.BigEndian.AppendUint32(b, option)
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// optionReplies returns the replies to an option up to ACK or an error.
func (c *client) optionReplies(option uint32) []optionReply {
	c.tb.Helper()
	var all []optionReply
	for {
		if magic := c.uint64(); magic != magicReply {
			c.tb.Fatalf("reply begins with %#x", magic)
		}
		if got := c.uint32(); got != option {
			c.tb.Fatalf("reply to option %d, want %d", got, option)
		}
		r := optionReply{kind: c.uint32()}
		r.data = c.read(int(c.uint32()))
		all = append(all, r)
		if r.kind == repAck || r.kind >= 1<<31 {
			return all
		}
	}
}

// want sends an option and wants replies of these types.
func (c *client) want(option uint32, data []byte, kinds ...uint32) []optionReply {
	c.tb.Helper()
	c.option(option, data)
	replies := c.optionReplies(option)
	ok := len(replies) == len(kinds)
	for i := 0; ok && i < len(kinds); i++ {
		ok = replies[i].kind == kinds[i]
	}
	if !ok {
		c.tb.Fatalf("option %d: got %x, want types %x", option, replies, kinds)
	}
	return replies
}

func counted(s string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...)
}

// goData is the data of INFO and GO.
func goData(export string, wanted ...uint16) []byte {
	b := binary.BigEndian.AppendUint16(counted(export), uint16(len(wanted)))
	for _, w := range wanted {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

// metaQuery is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaQuery(export string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(counted(export), uint32(len(queries)))
	for _, q := range queries {
		b = append(b, counted(q)...)
	}
	return b
}

// requestHeader encodes the fixed part of a request.
func requestHeader(flags, command uint16, cookie, offset uint64, length uint32) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicRequest)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, length)
}

// answer is a reply to a request.
type answer struct {
	cookie uint64
	errno  uint32
	data   []byte // of a READ
	status []byte // of a BLOCK_STATUS: descriptors
}

// answer reads a reply; dataLength says how much data the simple reply to a
// READ with that cookie has.
func (c *client) answer(dataLength func(cookie uint64) int) (a answer) {
	c.tb.Helper()
	if !c.structured {
		if magic := c.uint32(); magic != magicSimple {
			c.tb.Fatalf("simple reply begins with %#x", magic)
		}
		a.errno, a.cookie = c.uint32(), c.uint64()
		if a.errno == 0 {
			a.data = c.read(dataLength(a.cookie))
		}
		return a
	}
	if magic := c.uint32(); magic != magicStructured {
		c.tb.Fatalf("structured reply begins with %#x", magic)
	}
	if flags := c.uint16(); flags != chunkDone {
		c.tb.Fatalf("chunk with flags %#x", flags)
	}
	kind := c.uint16()
	a.cookie = c.uint64()
	body := c.read(int(c.uint32()))
	switch kind {
	case chunkNone:
		if len(body) > 0 {
			c.tb.Fatalf("NONE has %d bytes", len(body))
		}
	case chunkOffsetData:
		a.data = body[8:]
	case chunkBlockStatus:
		if id := binary.BigEndian.Uint32(body); id != allocationID {
			c.tb.Fatalf("status of context %d", id)
		}
		a.status = body[4:]
	case chunkError:
		a.errno = binary.BigEndian.Uint32(body)
		if n := int(binary.BigEndian.Uint16(body[4:])); n != len(body)-6 {
			c.tb.Fatalf("message of %d bytes in a chunk of %d", n, len(body))
		}
	default:
		c.tb.Fatalf("chunk of type %d", kind)
	}
	return a
}

// call sends a request and returns its reply. The length of a WRITE is that
// of its data.
func (c *client) call(flags, command uint16, offset uint64, length uint32, data []byte) answer {
	c.tb.Helper()
	const cookie = 0x0123456789abcdef
	if command == cmdWrite {
		length = uint32(len(data))
	}
	c.write(append(requestHeader(flags, command, cookie, offset, length), data...))
	a := c.answer(func(uint64) int {
		if command == cmdRead {
			return int(length)
		}
		return 0
	})
	if a.cookie != cookie {
		c.tb.Fatalf("reply has cookie %#x", a.cookie)
	}
	return a
}
