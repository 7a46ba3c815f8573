package wire

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// silence is how long a peer's host may say nothing, neither to what was sent
// nor to a probe, before the connection is given up. Without it a connection
// to a host that lost its power lingers for a quarter of an hour, and one
// across a link that was cut comes back only minutes after the link.
const silence = 10 * time.Second

// watch bounds the silence of a TCP connection's peer.
func watch(nc net.Conn) error {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: silence / 2, Interval: time.Second, Count: int(silence / 2 / time.Second)})
	if err != nil {
		return err
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return failure
}
