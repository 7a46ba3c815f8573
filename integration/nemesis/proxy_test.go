package nemesis

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// A proxy stands between a gateway and one chunkserver, at the chunkserver's
// address as the gateway sees it. It can hold back what the gateway sends and
// deliver it later, even when the gateway is long gone.
type proxy struct {
	t        *testing.T
	target   string
	listener net.Listener
	conns    sync.WaitGroup

	mu      sync.Mutex
	ups     []net.Conn
	held    int           // bytes that are held back now
	holding bool          // what the gateway sends is held back
	release chan struct{} // closed when it need no longer be
}

// mostHeld bounds what a connection holds back.
const mostHeld = 64 << 20

// startProxy stands between until the test ends. The gateway must not have
// connected to the chunkserver yet.
func startProxy(t *testing.T, gateway, chunkserver *process) *proxy {
	t.Helper()
	// The gateway alone is to take it for the chunkserver, not who asks the network.
	must(t, ip("netns", "exec", gateway.name, "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/all/arp_ignore"))
	must(t, ip("-n", gateway.name, "addr", "add", chunkserver.address+"/32", "dev", "lo"))
	target := chunkserver.address + ":" + chunkPort
	l, err := gateway.listen(target)
	must(t, err)
	p := &proxy{t: t, target: target, listener: l, release: make(chan struct{})}
	p.conns.Go(p.accept)
	t.Cleanup(func() {
		l.Close()
		p.letGo()
		p.closeAll()
		p.conns.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		down, err := p.listener.Accept()
		if err != nil {
			return
		}
		up, err := net.DialTimeout("tcp", p.target, toolLimit)
		if err != nil {
			down.Close()
			continue
		}
		p.mu.Lock()
		p.ups = append(p.ups, down, up)
		p.mu.Unlock()
		p.conns.Go(func() { p.forward(up.(*net.TCPConn), down) })
		p.conns.Go(func() {
			io.Copy(down, up) // until the chunkserver ends it, having read all
			down.Close()
		})
	}
}

// forward sends to the chunkserver what comes from the gateway. What is held
// back arrives later, and the end of the connection after it.
func (p *proxy) forward(up *net.TCPConn, down net.Conn) {
	defer up.CloseWrite()
	b := make([]byte, 64<<10)
	for {
		n, err := down.Read(b)
		if n > 0 && p.holds() {
			p.deliverLate(up, down, b[:n])
			return
		}
		if _, failed := up.Write(b[:n]); failed != nil || err != nil {
			p.awaitRelease(err)
			return
		}
	}
}

// awaitRelease keeps the chunkserver from noticing that a connection has
// ended while things are held back.
func (p *proxy) awaitRelease(ended error) {
	if ended != nil && p.holds() {
		<-p.release
	}
}

// deliverLate collects what the gateway sends until that is to be released.
func (p *proxy) deliverLate(up, down net.Conn, first []byte) {
	late := append([]byte(nil), first...)
	p.count(len(first))
	reading := make(chan struct{})
	go func() {
		defer close(reading)
		b := make([]byte, 64<<10)
		for len(late) < mostHeld {
			n, err := down.Read(b)
			late = append(late, b[:n]...)
			p.count(n)
			if err != nil {
				return
			}
		}
	}()
	<-p.release
	down.SetReadDeadline(time.Now()) // what it sends from now on is not awaited
	<-reading
	up.Write(late)
}

func (p *proxy) holds() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.holding
}

func (p *proxy) count(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held += n
}

// hold holds back what the gateway sends from now on.
func (p *proxy) hold() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holding = true
}

// heldBack is how many bytes were held back.
func (p *proxy) heldBack() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held
}

// letGo releases what was held back, once.
func (p *proxy) letGo() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.release:
	default:
		close(p.release)
	}
}

func (p *proxy) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.ups {
		c.Close()
	}
}

// deliver releases what was held back, and waits until the chunkserver has
// read all of it and ended the connections.
func (p *proxy) deliver() {
	p.t.Helper()
	p.listener.Close()
	p.letGo()
	read := make(chan struct{})
	go func() { p.conns.Wait(); close(read) }()
	select {
	case <-read:
	case <-time.After(patient):
		p.t.Fatal("the chunkserver does not end the old connections")
	}
}

// What a proxy holds back arrives after its sender is gone, whole.
func TestProxyDeliversLate(t *testing.T) {
	n := newNetwork(t)
	gateway := &process{host: n.newHost("gateway")}
	chunks := &process{host: n.newHost("chunkserver")}
	l, err := chunks.listen(chunks.address + ":" + chunkPort)
	must(t, err)
	defer l.Close()
	p := startProxy(t, gateway, chunks)
	sender, err := gateway.command("bash", "-c", "exec 3<>/dev/tcp/"+chunks.address+"/"+chunkPort+
		" && echo early >&3 && read -t 30 -u 3 && echo late >&3")
	must(t, err)
	must(t, sender.Start())
	conn, err := l.Accept()
	must(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(toolLimit))
	b := make([]byte, 6)
	_, err = io.ReadFull(conn, b)
	must(t, err)
	p.hold()
	_, err = io.WriteString(conn, "go on\n")
	must(t, err)
	must(t, sender.Wait())
	await(t, toolLimit, "something to be held back", func() bool { return p.heldBack() == len("late\n") })
	conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := conn.Read(b); n > 0 || err == io.EOF {
		t.Fatalf("%q, %v arrived early", b[:n], err)
	}
	conn.SetReadDeadline(time.Now().Add(toolLimit))
	p.letGo()
	late, err := io.ReadAll(conn)
	must(t, err)
	if string(late) != "late\n" {
		t.Errorf("%q arrived late", late)
	}
	conn.Close()
	p.deliver()
}
