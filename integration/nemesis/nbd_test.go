package nemesis

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The words of the NBD protocol that a client needs.
const (
	nbdMagic       = 0x4e42444d41474943
	nbdOptionMagic = 0x49484156454f5054
	nbdReplyMagic  = 0x3e889045565a9
	nbdRequest     = 0x25609513
	nbdSimpleReply = 0x67446698

	nbdFlags  = 3 // fixed newstyle, no zeroes
	nbdGo     = 7
	nbdAck    = 1
	nbdInfo   = 3
	nbdRefuse = 1 << 31

	nbdRead  = 0
	nbdWrite = 1
)

// A disk is an export that is open, over one connection. Calls may overlap.
type disk struct {
	conn net.Conn
	size uint64
	done chan struct{} // closed when no reply will come any more

	mu      sync.Mutex // also orders what is sent
	cookie  uint64
	waiting map[uint64]*call
	broken  error // why no more calls are taken
}

// call is a request without a reply yet.
type call struct {
	into []byte // takes what is read
	done chan error
}

var errRefused = errors.New("the export is refused")

// openDisk opens an export of a gateway. The caller closes it.
func openDisk(socket, export string) (*disk, error) {
	conn, err := net.DialTimeout("unix", socket, toolLimit)
	if err != nil {
		return nil, err
	}
	d := &disk{conn: conn, done: make(chan struct{}), waiting: make(map[uint64]*call)}
	replies := bufio.NewReaderSize(conn, 64<<10)
	conn.SetDeadline(time.Now().Add(toolLimit))
	if d.size, err = negotiate(conn, replies, export); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open %s: %w", export, err)
	}
	conn.SetDeadline(time.Time{})
	go d.receive(replies)
	return d, nil
}

func negotiate(conn net.Conn, replies io.Reader, export string) (size uint64, err error) {
	var hello struct {
		Magic, Option uint64
		Flags         uint16
	}
	if err := binary.Read(replies, binary.BigEndian, &hello); err != nil {
		return 0, err
	}
	if hello.Magic != nbdMagic || hello.Option != nbdOptionMagic {
		return 0, fmt.Errorf("no NBD server: it said %+v", hello)
	}
	b := binary.BigEndian.AppendUint32(nil, nbdFlags)
	b = binary.BigEndian.AppendUint64(b, nbdOptionMagic)
	b = binary.BigEndian.AppendUint32(b, nbdGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(append(b, export...), 0, 0) // no information is asked for
	if _, err := conn.Write(b); err != nil {
		return 0, err
	}
	for {
		var reply struct {
			Magic                uint64
			Option, Kind, Length uint32
		}
		if err := binary.Read(replies, binary.BigEndian, &reply); err != nil {
			return 0, err
		}
		if reply.Magic != nbdReplyMagic || reply.Length > 64<<10 {
			return 0, fmt.Errorf("no reply to an option: %+v", reply)
		}
		data := make([]byte, reply.Length)
		if _, err := io.ReadFull(replies, data); err != nil {
			return 0, err
		}
		switch {
		case reply.Kind&nbdRefuse != 0:
			return 0, fmt.Errorf("%w: %s", errRefused, data)
		case reply.Kind == nbdAck:
			return size, nil
		case reply.Kind == nbdInfo && len(data) >= 10 && binary.BigEndian.Uint16(data) == 0:
			size = binary.BigEndian.Uint64(data[2:])
		}
	}
}

// readAt fills p.
func (d *disk) readAt(p []byte, off uint64) error { return d.call(nbdRead, p, nil, off) }

// writeAt writes p. It is durable when that returns.
func (d *disk) writeAt(p []byte, off uint64) error { return d.call(nbdWrite, nil, p, off) }

// call sends a request and waits for its reply, however long that takes: it
// ends with the connection at the latest.
func (d *disk) call(command uint16, into, data []byte, off uint64) error {
	c := &call{into: into, done: make(chan error, 1)}
	if err := d.send(c, command, data, off); err != nil {
		return err
	}
	return <-c.done
}

func (d *disk) send(c *call, command uint16, data []byte, off uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.broken != nil {
		return d.broken
	}
	d.cookie++
	b := make([]byte, 0, 28+len(data))
	b = binary.BigEndian.AppendUint32(b, nbdRequest)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint16(b, command)
	b = binary.BigEndian.AppendUint64(b, d.cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	b = binary.BigEndian.AppendUint32(b, uint32(len(c.into)+len(data)))
	d.waiting[d.cookie] = c
	// What can't be sent breaks the connection, and then receive ends the call.
	if _, err := d.conn.Write(append(b, data...)); err != nil {
		d.conn.Close()
	}
	return nil
}

// receive takes replies until the connection ends.
func (d *disk) receive(replies io.Reader) {
	defer close(d.done)
	var err error
	for err == nil {
		err = d.reply(replies)
	}
	d.conn.Close()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken = fmt.Errorf("the gateway is gone: %w", err)
	for _, c := range d.waiting {
		c.done <- d.broken
	}
	d.waiting = nil
}

func (d *disk) reply(replies io.Reader) error {
	var header struct {
		Magic, Errno uint32
		Cookie       uint64
	}
	if err := binary.Read(replies, binary.BigEndian, &header); err != nil {
		return err
	}
	d.mu.Lock()
	c := d.waiting[header.Cookie]
	delete(d.waiting, header.Cookie)
	d.mu.Unlock()
	if header.Magic != nbdSimpleReply || c == nil {
		return fmt.Errorf("no reply to a request: %+v", header)
	}
	if header.Errno != 0 {
		c.done <- fmt.Errorf("NBD error %d", header.Errno)
		return nil
	}
	_, err := io.ReadFull(replies, c.into)
	c.done <- err
	return err
}

// close breaks the connection off and waits until nobody uses it.
func (d *disk) close() {
	d.conn.Close()
	<-d.done
}
