package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"github.com/localsnap/localsnap/cluster"
)

// A metadata server is named by the address at which users reach it. Its
// other ports follow from that one.
const (
	raftOffset    = 10 // for the other servers
	controlOffset = 20 // for chunkservers and gateways
)

// hostPort is an address as it is written in flags.
type hostPort struct {
	host string
	port int
}

func (a *hostPort) UnmarshalText(text []byte) error {
	host, service, err := net.SplitHostPort(string(text))
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil {
		return fmt.Errorf("%q: the port must be a number from 0 to 65535", text)
	}
	*a = hostPort{host, int(port)}
	return nil
}

func (a hostPort) String() string { return net.JoinHostPort(a.host, strconv.Itoa(a.port)) }

// plus returns the address that is offset ports higher.
func (a hostPort) plus(offset int) hostPort { return hostPort{a.host, a.port + offset} }

// loopback reports whether only this machine reaches the address.
func (a hostPort) loopback() bool {
	ip := net.ParseIP(a.host)
	return a.host == "localhost" || ip != nil && ip.IsLoopback()
}

// reachable reports whether others can be told the address: that it is neither
// "all of this machine's" nor "any port".
func (a hostPort) reachable() bool {
	ip := net.ParseIP(a.host)
	return a.host != "" && a.port != 0 && (ip == nil || !ip.IsUnspecified())
}

// apiAddress is the address of a metadata server, by which it is named.
type apiAddress struct{ hostPort }

func (a *apiAddress) UnmarshalText(text []byte) error {
	if err := a.hostPort.UnmarshalText(text); err != nil {
		return err
	}
	if !a.reachable() || a.port+controlOffset > 65535 {
		return fmt.Errorf("%q is no server's address: it needs a host, and a port from 1 to %d", text, 65535-controlOffset)
	}
	return nil
}

// controls returns the addresses at which chunkservers and gateways reach the
// servers.
func controls(servers []apiAddress) []string {
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.plus(controlOffset).String())
	}
	return addresses
}

// member is a metadata server as --server names it: ID=HOST:PORT.
type member struct {
	id  string
	api apiAddress
}

func (m *member) UnmarshalText(text []byte) error {
	id, address, ok := strings.Cut(string(text), "=")
	if !ok || id == "" {
		return fmt.Errorf("%q names no server: write ID=HOST:PORT", text)
	}
	m.id = id
	return m.api.UnmarshalText([]byte(address))
}

func (m member) server() cluster.Server {
	return cluster.Server{
		ID:      m.id,
		API:     m.api.String(),
		Raft:    m.api.plus(raftOffset).String(),
		Control: m.api.plus(controlOffset).String(),
	}
}

// guard refuses an address beyond loopback unless insecure is said.
func guard(address hostPort, flag string, insecure bool) error {
	if insecure || address.loopback() {
		return nil
	}
	return fmt.Errorf("%s %s can be reached from other machines, and there is neither authentication nor encryption: "+
		"listen on 127.0.0.1, or say --insecure if the network is trusted", flag, address)
}

// listen listens on TCP; flag is what the user changes to have another port.
func listen(address hostPort, flag string) (net.Listener, error) {
	l, err := net.Listen("tcp", address.String())
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("port %d of %s is in use: stop who listens there, or choose another %s", address.port, address.host, flag)
	}
	return l, err
}

// maxSocketPath is the longest path, in bytes, that a socket can have on Linux.
const maxSocketPath = 107

// listenUnix listens on a Unix socket. It replaces one that a killed process
// has left behind.
func listenUnix(path string) (net.Listener, error) {
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("socket path %s is longer than %d bytes: choose a shorter --nbd-socket", path, maxSocketPath)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("socket %s is in use: stop who listens there, or choose another --nbd-socket", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("replace a left-over socket: %w", err)
		}
	}
	return net.Listen("unix", path)
}
