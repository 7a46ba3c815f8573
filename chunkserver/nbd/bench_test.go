package nbd

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// BenchmarkRead and BenchmarkWrite move 4 KiB per operation over a unix
// socket, with a given number of requests in flight. BenchmarkSocket is what
// they are to be compared with: the bytes of a read, from a peer that doesn't
// look at them.
func BenchmarkRead(b *testing.B)  { benchmark(b, cmdRead) }
func BenchmarkWrite(b *testing.B) { benchmark(b, cmdWrite) }

const benchmarkBlock = 4096

func benchmark(b *testing.B, command uint16) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			device := newMemory(1 << 20)
			address, _ := serve(b, &Server{Exports: newShelf(b, map[string]*memory{"m": device})})
			c := open(b, address, "m", false)
			request := requestHeader(0, command, 1, 8192, benchmarkBlock)
			reply := make([]byte, 16)
			if command == cmdWrite {
				request = append(request, make([]byte, benchmarkBlock)...)
			} else {
				reply = append(reply, make([]byte, benchmarkBlock)...)
			}
			exchange(b, c, depth, request, reply)
			if errno := binary.BigEndian.Uint32(reply[4:]); errno != 0 {
				b.Fatalf("errno %d", errno)
			}
		})
	}
}

func BenchmarkSocket(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			l, err := net.Listen("unix", filepath.Join(b.TempDir(), "s"))
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			request, reply := make([]byte, requestSize), make([]byte, 16+benchmarkBlock)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				in, out := make([]byte, requestSize), make([]byte, len(reply))
				for err == nil {
					if _, err = io.ReadFull(conn, in); err == nil {
						_, err = conn.Write(out)
					}
				}
			}()
			conn, err := net.Dial("unix", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			exchange(b, &client{tb: b, conn: conn, in: bufio.NewReaderSize(conn, 256<<10)}, depth, request, reply)
		})
	}
}

// exchange sends b.N requests and takes as many replies.
func exchange(b *testing.B, c *client, depth int, request, reply []byte) {
	c.conn.SetDeadline(time.Time{})
	b.ReportAllocs()
	b.SetBytes(benchmarkBlock)
	b.ResetTimer()
	if depth == 1 {
		for range b.N {
			c.write(request)
			if _, err := io.ReadFull(c.in, reply); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	window := make(chan struct{}, depth)
	sent := make(chan error, 1)
	go func() {
		for range b.N {
			window <- struct{}{}
			if _, err := c.conn.Write(request); err != nil {
				sent <- err
				return
			}
		}
		sent <- nil
	}()
	for range b.N {
		if _, err := io.ReadFull(c.in, reply); err != nil {
			b.Fatal(err)
		}
		<-window
	}
	if err := <-sent; err != nil {
		b.Fatal(err)
	}
}
