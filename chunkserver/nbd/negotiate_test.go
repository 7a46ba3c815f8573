package nbd

import (
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// twoExports has a writable export "disk" and a read-only one "iso".
func twoExports(tb testing.TB) *shelf {
	iso := newMemory(12345)
	iso.info.ReadOnly = true
	iso.info.Description = ""
	return newShelf(tb, map[string]*memory{"disk": newMemory(1 << 20), "iso": iso})
}

const (
	writable   = exportHasFlags | exportSendFlush | exportSendFUA | exportSendTrim | exportSendWriteZeroes | exportCanMultiConn | exportSendFastZero
	unwritable = exportHasFlags | exportSendFlush | exportCanMultiConn | exportReadOnly
)

func exportInfo(size uint64, flags uint16) string {
	b := binary.BigEndian.AppendUint64([]byte{0, 0}, size)
	return string(binary.BigEndian.AppendUint16(b, flags))
}

const blockSizes = "\x00\x03" + "\x00\x00\x00\x01" + "\x00\x00\x10\x00" + "\x02\x00\x00\x00"

// TestOptions sends one option to a fresh connection; none of them may end it.
func TestOptions(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, &Server{Exports: twoExports(t)})
	surplus := func(b []byte) []byte { return append(b, 0) }
	short := func(b []byte) []byte { return b[:len(b)-1] }
	type reply struct {
		Kind uint32
		Data string // of errors only that there is some text
	}
	ack := reply{Kind: repAck}
	invalid := reply{Kind: repErrInvalid}
	context := func(id string) reply { return reply{repMetaContext, id + baseAllocation} }

	tests := []struct {
		name   string
		before func(*client)
		option uint32
		data   []byte
		want   []reply
	}{
		{"LIST", nil, optList, nil, []reply{{repServer, "\x00\x00\x00\x04disk"}, {repServer, "\x00\x00\x00\x03iso"}, ack}},
		{"LIST with data", nil, optList, []byte("x"), []reply{invalid}},
		{"STARTTLS", nil, 5, nil, []reply{{Kind: repErrUnsup}}},
		{"PEEK_EXPORT", nil, 4, []byte("disk"), []reply{{Kind: repErrUnsup}}},
		{"EXTENDED_HEADERS", nil, 11, nil, []reply{{Kind: repErrUnsup}}},
		{"unknown, largest data", nil, 77777, make([]byte, maxOption), []reply{{Kind: repErrUnsup}}},
		{"unknown, too much data", nil, 77777, make([]byte, maxOption+1), []reply{{Kind: repErrTooBig}}},
		{"INFO, too much data", nil, optInfo, make([]byte, 1<<20), []reply{{Kind: repErrTooBig}}},
		{"STRUCTURED_REPLY", nil, optStructuredReply, nil, []reply{ack}},
		{"STRUCTURED_REPLY with data", nil, optStructuredReply, []byte("x"), []reply{invalid}},

		{"INFO", nil, optInfo, goData("disk"), []reply{{repInfo, exportInfo(1<<20, writable)}, {repInfo, blockSizes}, ack}},
		{"INFO of a read-only export", nil, optInfo, goData("iso", infoDescription),
			[]reply{{repInfo, exportInfo(12345, unwritable)}, {repInfo, blockSizes}, ack}},
		{"INFO with everything", nil, optInfo, goData("disk", infoExport, infoName, infoDescription, infoBlockSize, 999),
			[]reply{{repInfo, exportInfo(1<<20, writable)}, {repInfo, blockSizes}, {repInfo, "\x00\x01disk"}, {repInfo, "\x00\x02memory"}, ack}},
		{"INFO with structured replies", negotiateStructured, optInfo, goData("disk"),
			[]reply{{repInfo, exportInfo(1<<20, writable|exportSendDF)}, {repInfo, blockSizes}, ack}},
		{"INFO unknown", nil, optInfo, goData("nobody"), []reply{{Kind: repErrUnknown}}},
		{"GO unknown", nil, optGo, goData("nobody"), []reply{{Kind: repErrUnknown}}},
		{"GO empty name", nil, optGo, goData(""), []reply{{Kind: repErrUnknown}}},
		{"GO short", nil, optGo, short(goData("disk", infoName)), []reply{invalid}},
		{"GO surplus", nil, optGo, surplus(goData("disk")), []reply{invalid}},
		{"GO without data", nil, optGo, nil, []reply{invalid}},
		{"GO name beyond the data", nil, optGo, []byte("\x00\x00\x00\xffdisk\x00\x00"), []reply{invalid}},
		{"GO name of 4 GiB", nil, optGo, []byte("\xff\xff\xff\xffdisk\x00\x00"), []reply{invalid}},
		{"GO longest name", nil, optGo, goData(strings.Repeat("n", maxString)), []reply{{Kind: repErrUnknown}}},
		{"GO name too long", nil, optGo, goData(strings.Repeat("n", maxString+1)), []reply{invalid}},
		{"GO more infos than there are", nil, optGo, append(counted("disk"), 0xff, 0xff, 0, 1), []reply{invalid}},

		{"LIST_META_CONTEXT", negotiateStructured, optListMetaContext, metaQuery("disk"), []reply{context("\x00\x00\x00\x00"), ack}},
		{"LIST_META_CONTEXT base:", negotiateStructured, optListMetaContext, metaQuery("disk", "base:"), []reply{context("\x00\x00\x00\x00"), ack}},
		{"LIST_META_CONTEXT base:allocation", negotiateStructured, optListMetaContext, metaQuery("disk", "x:y", baseAllocation), []reply{context("\x00\x00\x00\x00"), ack}},
		{"LIST_META_CONTEXT others", negotiateStructured, optListMetaContext, metaQuery("disk", "qemu:", "base:other", ""), []reply{ack}},
		{"LIST_META_CONTEXT unknown export", negotiateStructured, optListMetaContext, metaQuery("nobody"), []reply{{Kind: repErrUnknown}}},
		{"LIST_META_CONTEXT, simple replies", nil, optListMetaContext, metaQuery("disk"), []reply{invalid}},
		{"SET_META_CONTEXT", negotiateStructured, optSetMetaContext, metaQuery("disk", baseAllocation), []reply{context("\x00\x00\x00\x01"), ack}},
		{"SET_META_CONTEXT twice the same", negotiateStructured, optSetMetaContext, metaQuery("disk", baseAllocation, baseAllocation), []reply{context("\x00\x00\x00\x01"), ack}},
		{"SET_META_CONTEXT of nothing", negotiateStructured, optSetMetaContext, metaQuery("disk"), []reply{ack}},
		{"SET_META_CONTEXT base: is no context", negotiateStructured, optSetMetaContext, metaQuery("disk", "base:"), []reply{ack}},
		{"SET_META_CONTEXT, simple replies", nil, optSetMetaContext, metaQuery("disk", baseAllocation), []reply{invalid}},
		{"SET_META_CONTEXT short", negotiateStructured, optSetMetaContext, short(metaQuery("disk", baseAllocation)), []reply{invalid}},
		{"SET_META_CONTEXT surplus", negotiateStructured, optSetMetaContext, surplus(metaQuery("disk", baseAllocation)), []reply{invalid}},
		{"SET_META_CONTEXT 4 Gi queries", negotiateStructured, optSetMetaContext, append(counted("disk"), 0xff, 0xff, 0xff, 0xff), []reply{invalid}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, address, modern)
			if test.before != nil {
				test.before(c)
			}
			c.option(test.option, test.data)
			var got []reply
			for _, r := range c.optionReplies(test.option) {
				if r.kind >= 1<<31 {
					r.data = nil
				}
				got = append(got, reply{r.kind, string(r.data)})
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("replies (-want +got):\n%s", diff)
			}
			c.want(optGo, goData("disk"), repInfo, repInfo, repAck) // goes on
			c.structured = test.before != nil || test.name == "STRUCTURED_REPLY"
			if a := c.call(0, cmdFlush, 0, 0, nil); a.errno != 0 {
				t.Errorf("flush: errno %d", a.errno)
			}
		})
	}
}

func negotiateStructured(c *client) { c.want(optStructuredReply, nil, repAck) }

// TestRefusals: what Exports returns becomes the error reply of its meaning.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want uint32
	}{
		{ErrBusy, repErrPolicy},
		{ErrShutdown, repErrShutdown},
		{ErrUnknownExport, repErrUnknown},
		{errors.New("metadata is away"), repErrUnknown},
	} {
		exports := newShelf(t, nil)
		exports.openErr = test.err
		address, _ := serve(t, &Server{Exports: exports})
		c := dial(t, address, modern)
		for option, data := range map[uint32][]byte{optList: nil, optInfo: goData("disk"), optGo: goData("disk")} {
			replies := c.want(option, data, test.want)
			if got := string(replies[0].data); got != test.err.Error() {
				t.Errorf("option %d, %v: text %q", option, test.err, got)
			}
		}
	}
}

func TestExportName(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, &Server{Exports: twoExports(t)})
	for _, test := range []struct {
		name    string
		flags   uint32
		padding int
	}{
		{"padded", handshakeFixedNewstyle, 124},
		{"no zeroes", modern, 0},
		{"not fixed", 0, 124},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, address, test.flags)
			c.option(optExportName, []byte("iso"))
			if size := c.uint64(); size != 12345 {
				t.Errorf("size %d", size)
			}
			if flags := c.uint16(); flags != unwritable {
				t.Errorf("flags %#x", flags)
			}
			if string(c.read(test.padding)) != strings.Repeat("\x00", test.padding) {
				t.Error("padding is not zero")
			}
			if a := c.call(0, cmdRead, 12344, 1, nil); a.errno != 0 {
				t.Errorf("read: errno %d", a.errno)
			}
		})
	}
}

// TestNegotiationEnds lists what makes the server hang up, without a word.
func TestNegotiationEnds(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, &Server{Exports: twoExports(t)})
	header := func(option, length uint32) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, option)
		return binary.BigEndian.AppendUint32(b, length)
	}
	name := strings.Repeat("n", maxString+1)
	for _, test := range []struct {
		name  string
		flags uint32
		data  []byte
	}{
		{"unknown flags", 1 << 2, nil},
		{"garbage", modern, []byte("GET / HTTP/1.1\r\n\r\n")},
		{"unknown EXPORT_NAME", modern, append(header(optExportName, 6), "nobody"...)},
		{"long EXPORT_NAME", modern, append(header(optExportName, uint32(len(name))), name...)},
		{"enormous EXPORT_NAME", modern, header(optExportName, maxOption+1)},
		{"data beyond all bounds", modern, header(optInfo, maxDiscard+1)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, address, test.flags)
			c.conn.Write(test.data) // may meet a connection that is closed already
			c.wantEnd()
		})
	}
}

func TestAbort(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, &Server{Exports: twoExports(t)})
	c := dial(t, address, modern)
	c.want(optAbort, nil, repAck)
	c.wantEnd()
}

// TestSelectionIsForOneExport: a context counts only if it was selected last,
// successfully, for the export that is then opened.
func TestSelectionIsForOneExport(t *testing.T) {
	t.Parallel()
	address, _ := serve(t, &Server{Exports: twoExports(t)})
	set := func(data []byte, kinds ...uint32) func(*client) {
		return func(c *client) { c.want(optSetMetaContext, data, kinds...) }
	}
	good := set(metaQuery("disk", baseAllocation), repMetaContext, repAck)
	for _, test := range []struct {
		name  string
		steps []func(*client)
		errno uint32
	}{
		{"never", nil, errnoInvalid},
		{"selected", []func(*client){good}, 0},
		{"of another export", []func(*client){set(metaQuery("iso", baseAllocation), repMetaContext, repAck)}, errnoInvalid},
		{"replaced by none", []func(*client){good, set(metaQuery("disk"), repAck)}, errnoInvalid},
		{"replaced by an error", []func(*client){good, set(nil, repErrInvalid)}, errnoInvalid},
		{"not replaced by a list", []func(*client){good, func(c *client) {
			c.want(optListMetaContext, metaQuery("iso"), repMetaContext, repAck)
		}}, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			c := dial(t, address, modern)
			negotiateStructured(c)
			for _, step := range test.steps {
				step(c)
			}
			c.want(optGo, goData("disk"), repInfo, repInfo, repAck)
			c.structured = true
			if a := c.call(0, cmdBlockStatus, 0, 4096, nil); a.errno != test.errno {
				t.Errorf("errno %d, want %d", a.errno, test.errno)
			}
		})
	}
}

// TestHandshakeTimeout: a client that says nothing is let go, with its place.
func TestHandshakeTimeout(t *testing.T) {
	t.Parallel()
	ours, theirs := net.Pipe()
	defer theirs.Close()
	done := make(chan error, 1)
	s := &Server{Exports: twoExports(t), HandshakeTimeout: 20 * time.Millisecond}
	go func() { done <- s.ServeConn(t.Context(), ours) }()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "deadline") {
			t.Errorf("ServeConn: %v, want an expired deadline", err)
		}
	case <-time.After(patience):
		t.Fatal("the server waits forever")
	}
}
