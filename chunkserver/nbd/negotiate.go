package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// session is what a client has negotiated.
type session struct {
	export     string
	device     Device // nil until opened
	info       Info
	structured bool // replies to requests are structured
	allocation bool // BLOCK_STATUS may be asked for base:allocation
}

// negotiation is a connection's first phase: the session in the making.
type negotiation struct {
	session
	exports Exports
	in      *bufio.Reader
	out     *bufio.Writer // its first error sticks and shows in Flush

	noZeroes bool    // the client wants no padding after EXPORT_NAME
	selected *string // export for which base:allocation has been selected
}

// errAborted ends a negotiation in which the client has changed its mind.
var errAborted = errors.New("client aborted the negotiation")

// run answers options until a device is open.
func (n *negotiation) run(ctx context.Context) error {
	if err := n.greet(); err != nil {
		return err
	}
	for n.device == nil {
		option, data, err := n.next()
		if err != nil {
			return err
		}
		err = n.answer(ctx, option, data)
		if err := errors.Join(err, n.out.Flush()); err != nil {
			return fmt.Errorf("option %d: %w", option, err)
		}
	}
	return nil
}

// greet exchanges the handshake flags.
func (n *negotiation) greet() error {
	const offered = handshakeFixedNewstyle | handshakeNoZeroes
	n.number64(magicServer)
	n.number64(magicOption)
	n.number16(offered)
	if err := n.out.Flush(); err != nil {
		return err
	}
	var raw [4]byte
	if _, err := io.ReadFull(n.in, raw[:]); err != nil {
		return err
	}
	flags := binary.BigEndian.Uint32(raw[:])
	if flags&^offered != 0 {
		return fmt.Errorf("client has unknown flags %#x", flags)
	}
	n.noZeroes = flags&handshakeNoZeroes != 0
	return nil
}

// next reads an option and its data. Options with more data than any of them
// needs are refused here.
func (n *negotiation) next() (option uint32, data []byte, err error) {
	for {
		var header [16]byte
		if _, err := io.ReadFull(n.in, header[:]); err != nil {
			return 0, nil, err
		}
		if magic := binary.BigEndian.Uint64(header[:]); magic != magicOption {
			return 0, nil, fmt.Errorf("option begins with %#x", magic)
		}
		option = binary.BigEndian.Uint32(header[8:])
		length := binary.BigEndian.Uint32(header[12:])
		switch {
		case length <= maxOption:
			data = make([]byte, length)
			_, err := io.ReadFull(n.in, data)
			return option, data, midMessage(err)
		case length > maxDiscard, option == optExportName: // which has no error reply
			return 0, nil, fmt.Errorf("option %d has %d bytes of data", option, length)
		}
		if _, err := n.in.Discard(int(length)); err != nil {
			return 0, nil, midMessage(err)
		}
		n.reply(option, repErrTooBig, nil)
		if err := n.out.Flush(); err != nil {
			return 0, nil, err
		}
	}
}

// answer queues the replies to an option. An error ends the connection.
func (n *negotiation) answer(ctx context.Context, option uint32, data []byte) error {
	d := decoder{rest: data}
	var err error
	switch option {
	case optExportName:
		return n.exportName(ctx, string(data))
	case optAbort:
		n.reply(option, repAck, nil)
		return errAborted
	case optList:
		err = n.list(ctx, &d)
	case optInfo, optGo:
		err = n.describe(ctx, option, &d)
	case optStructuredReply:
		if err = d.end(); err == nil {
			n.structured = true
		}
	case optListMetaContext, optSetMetaContext:
		err = n.metaContexts(ctx, option, &d)
	default:
		n.reply(option, repErrUnsup, nil)
		return nil
	}
	if err != nil {
		n.reply(option, judge(err).option, []byte(message(err)))
	} else {
		n.reply(option, repAck, nil)
	}
	return nil
}

// exportName opens an export in the old way, which knows no refusal.
func (n *negotiation) exportName(ctx context.Context, name string) error {
	if len(name) > maxString {
		return fmt.Errorf("export name of %d bytes", len(name))
	}
	if err := n.open(ctx, name); err != nil {
		return fmt.Errorf("open %q: %w", name, err)
	}
	n.number64(uint64(n.info.Size))
	n.number16(n.transmissionFlags(n.info))
	if !n.noZeroes {
		n.out.Write(make([]byte, 124))
	}
	return nil
}

func (n *negotiation) list(ctx context.Context, d *decoder) error {
	if err := d.end(); err != nil {
		return err
	}
	names, err := n.exports.List(ctx)
	if err != nil {
		return err
	}
	for _, name := range names {
		length := binary.BigEndian.AppendUint32(nil, uint32(len(name)))
		n.reply(optList, repServer, append(length, name...))
	}
	return nil
}

// describe answers INFO and GO, which differ in that GO opens the export.
// Block sizes are told to all clients, asked for or not, name and description
// only on demand.
func (n *negotiation) describe(ctx context.Context, option uint32, d *decoder) error {
	name := d.string()
	var wanted []uint16
	for range d.uint16() {
		wanted = append(wanted, d.uint16())
	}
	if err := d.end(); err != nil {
		return err
	}

	var info Info
	var err error
	if option == optGo {
		err = n.open(ctx, name)
		info = n.info
	} else {
		info, err = n.exports.Stat(ctx, name)
	}
	if err != nil {
		return err
	}

	export := binary.BigEndian.AppendUint64(nil, uint64(info.Size))
	n.info16(option, infoExport, binary.BigEndian.AppendUint16(export, n.transmissionFlags(info)))
	var sizes []byte
	for _, size := range []uint32{minBlock, preferredBlock, maxPayload} {
		sizes = binary.BigEndian.AppendUint32(sizes, size)
	}
	n.info16(option, infoBlockSize, sizes)
	if slices.Contains(wanted, infoName) {
		n.info16(option, infoName, []byte(name))
	}
	if slices.Contains(wanted, infoDescription) && info.Description != "" {
		n.info16(option, infoDescription, []byte(info.Description))
	}
	return nil
}

// open makes the export the session's.
func (n *negotiation) open(ctx context.Context, name string) error {
	device, err := n.exports.Open(ctx, name)
	if err != nil {
		return err
	}
	n.export, n.device, n.info = name, device, device.Info()
	n.allocation = n.selected != nil && *n.selected == name
	return nil
}

// metaContexts lists or selects contexts. Queries of other namespaces than
// ours are passed over, as the protocol wants it.
func (n *negotiation) metaContexts(ctx context.Context, option uint32, d *decoder) error {
	if option == optSetMetaContext {
		n.selected = nil // also if this fails
	}
	name := d.string()
	count := d.uint32()
	found := option == optListMetaContext && count == 0
	for i := uint32(0); i < count && d.err == nil; i++ {
		query := d.string()
		found = found || query == baseAllocation ||
			query == baseNamespace && option == optListMetaContext
	}
	if err := d.end(); err != nil {
		return err
	}
	if !n.structured {
		return fmt.Errorf("%w: metadata contexts need structured replies", ErrInvalid)
	}
	if _, err := n.exports.Stat(ctx, name); err != nil {
		return err
	}
	if !found {
		return nil
	}
	id := uint32(0) // of no meaning in a list
	if option == optSetMetaContext {
		id, n.selected = allocationID, &name
	}
	n.reply(option, repMetaContext, append(binary.BigEndian.AppendUint32(nil, id), baseAllocation...))
	return nil
}

// transmissionFlags tells what requests may be sent to an export.
func (n *negotiation) transmissionFlags(info Info) uint16 {
	flags := exportHasFlags | exportSendFlush | exportCanMultiConn
	if info.ReadOnly {
		flags |= exportReadOnly
	} else {
		flags |= exportSendFUA | exportSendTrim | exportSendWriteZeroes | exportSendFastZero
	}
	if n.structured {
		flags |= exportSendDF
	}
	return uint16(flags)
}

func (n *negotiation) info16(option uint32, kind uint16, data []byte) {
	n.reply(option, repInfo, append(binary.BigEndian.AppendUint16(nil, kind), data...))
}

func (n *negotiation) reply(option, kind uint32, data []byte) {
	n.number64(magicReply)
	n.number32(option)
	n.number32(kind)
	n.number32(uint32(len(data)))
	n.out.Write(data)
}

func (n *negotiation) number16(v uint16) {
	n.out.Write(binary.BigEndian.AppendUint16(n.out.AvailableBuffer(), v))
}

func (n *negotiation) number32(v uint32) {
	n.out.Write(binary.BigEndian.AppendUint32(n.out.AvailableBuffer(), v))
}

func (n *negotiation) number64(v uint64) {
	n.out.Write(binary.BigEndian.AppendUint64(n.out.AvailableBuffer(), v))
}

// decoder takes the data of an option apart. After its first error it returns
// zero values only.
type decoder struct {
	rest []byte
	err  error
}

func (d *decoder) take(n int) []byte {
	if d.err == nil && n > len(d.rest) {
		d.err = fmt.Errorf("%w: option data ends early", ErrInvalid)
	}
	if d.err != nil {
		return make([]byte, n) // at most maxString
	}
	taken := d.rest[:n]
	d.rest = d.rest[n:]
	return taken
}

func (d *decoder) uint16() uint16 { return binary.BigEndian.Uint16(d.take(2)) }
func (d *decoder) uint32() uint32 { return binary.BigEndian.Uint32(d.take(4)) }

func (d *decoder) string() string {
	length := d.uint32()
	if d.err == nil && length > maxString {
		d.err = fmt.Errorf("%w: string of %d bytes", ErrInvalid, length)
	}
	if d.err != nil {
		return ""
	}
	return string(d.take(int(length)))
}

// end returns the first error, which may be that there is data left.
func (d *decoder) end() error {
	if d.err == nil && len(d.rest) > 0 {
		d.err = fmt.Errorf("%w: %d surplus bytes of option data", ErrInvalid, len(d.rest))
	}
	return d.err
}

// midMessage marks the end of the stream as unexpected.
func midMessage(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
