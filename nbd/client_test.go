package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/nbdtest"
)

// client is the tests' own client, which can send what a good one never would, with simple and structured replies.
type client struct {
	*nbdtest.Conn
	t  testing.TB
	nc net.Conn
}

func newClient(t testing.TB, nc net.Conn) *client {
	return &client{nbdtest.NewConn(t, nc), t, nc}
}

// goOn has the client go on with another connection, such as TLS over its first.
func (c *client) goOn(nc net.Conn) { c.Conn, c.nc = nbdtest.NewConn(c.t, nc), nc }

// served is a server on a unix socket.
type served struct {
	*Server
	addr  string
	table *table
}

func serveTable(t testing.TB, tab *table, opts Options) *served {
	t.Helper()
	s, err := NewServer(tab, opts)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir would be too long for a socket and has a # in it, which a URI takes amiss
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	addr := filepath.Join(dir, "nbd.sock")
	l, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		_ = s.Close()
		// A test that needs no listener may be over before Serve has begun.
		if err := <-ended; err != nil && !errors.Is(err, block.ErrClosed) {
			t.Errorf("Serve: %v", err)
		}
		tab.mu.Lock()
		defer tab.mu.Unlock()
		for name, n := range tab.held {
			if n != 0 {
				t.Errorf("export %q: %d references left after Close", name, n)
			}
		}
	})
	return &served{Server: s, addr: addr, table: tab}
}

// serveDevice serves dev as the export "disk".
func serveDevice(t testing.TB, dev Device, opts Options) *served {
	return serveTable(t, newTable(Export{Name: "disk", Description: "a test disk", Device: dev}), opts)
}

func (s *served) dial(t testing.TB) *client {
	t.Helper()
	nc, err := net.Dial("unix", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	_ = nc.SetDeadline(time.Now().Add(2 * time.Minute)) // a hang is a failure with a stack, not a timeout of the whole run
	return newClient(t, nc)
}

// attach dials and enters transmission on "disk".
func (s *served) attach(t testing.TB, structured bool) *client {
	t.Helper()
	c := s.dial(t)
	c.greet(3)
	if structured {
		c.sendOption(8, nil)
		if kind, _ := c.optionReply(8); kind != 1 {
			t.Fatalf("structured replies refused: %#x", kind)
		}
	}
	c.sendOption(7, infoRequest("disk"))
	for {
		kind, data := c.optionReply(7)
		if kind == 1 {
			return c
		}
		if kind != 3 {
			t.Fatalf("GO refused: %#x %q", kind, data)
		}
	}
}

// What nbdtest does, under the names that it has in this package's tests.
var pack, infoRequest, metaQuery = nbdtest.Pack, nbdtest.InfoRequest, nbdtest.MetaQuery

func (c *client) send(parts ...any)                  { c.t.Helper(); c.Send(parts...) }
func (c *client) recv(n int) []byte                  { c.t.Helper(); return c.Recv(n) }
func (c *client) closed()                            { c.t.Helper(); c.Closed() }
func (c *client) greet(flags uint32)                 { c.t.Helper(); c.Greet(flags) }
func (c *client) sendOption(opt uint32, data []byte) { c.t.Helper(); c.Option(opt, data) }
func (c *client) optionReply(opt uint32) (kind uint32, data []byte) {
	c.t.Helper()
	return c.OptionReply(opt)
}

func (c *client) metaContexts(opt uint32, export string, queries ...string) (ids map[string]uint32, names []string) {
	c.t.Helper()
	return c.MetaContexts(opt, export, queries...)
}

// header is a request header.
func header(flags, cmd uint16, cookie, off uint64, length uint32) []byte {
	return pack(uint32(0x25609513), flags, cmd, cookie, off, length)
}

// simple receives a simple reply.
func (c *client) simple() (cookie uint64, errno uint32) {
	c.t.Helper()
	p := c.recv(16)
	if binary.BigEndian.Uint32(p) != 0x67446698 {
		c.t.Fatalf("not a simple reply: % x", p)
	}
	return binary.BigEndian.Uint64(p[8:]), binary.BigEndian.Uint32(p[4:])
}

// expect receives a simple reply and checks it.
func (c *client) expect(cookie uint64, errno uint32) {
	c.t.Helper()
	if gotCookie, gotErrno := c.simple(); gotCookie != cookie || gotErrno != errno {
		c.t.Fatalf("reply: cookie %d errno %d, want %d and %d", gotCookie, gotErrno, cookie, errno)
	}
}

// chunk is one piece of a structured reply.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	data        []byte
}

func (c *client) chunk() chunk {
	c.t.Helper()
	p := c.recv(20)
	if binary.BigEndian.Uint32(p) != 0x668e33ef {
		c.t.Fatalf("not a structured reply: % x", p)
	}
	return chunk{
		flags: binary.BigEndian.Uint16(p[4:]), kind: binary.BigEndian.Uint16(p[6:]), cookie: binary.BigEndian.Uint64(p[8:]),
		data: c.recv(int(binary.BigEndian.Uint32(p[16:]))),
	}
}

// readChunks receives a structured reply to a READ of n bytes at off and returns its data and the kinds of its chunks.
func (c *client) readChunks(cookie, off uint64, n int) (data []byte, kinds []uint16) {
	c.t.Helper()
	data = bytes.Repeat([]byte{0xee}, n)
	covered := 0
	for {
		ch := c.chunk()
		if ch.cookie != cookie {
			c.t.Fatalf("chunk for cookie %d, want %d", ch.cookie, cookie)
		}
		kinds = append(kinds, ch.kind)
		switch ch.kind {
		case 1:
			at := binary.BigEndian.Uint64(ch.data) - off
			covered += copy(data[at:], ch.data[8:])
		case 2:
			at, size := binary.BigEndian.Uint64(ch.data)-off, int(binary.BigEndian.Uint32(ch.data[8:]))
			clear(data[at:][:size])
			covered += size
		default:
			c.t.Fatalf("chunk of type %d: % x", ch.kind, ch.data)
		}
		if ch.flags == 1 {
			break
		}
	}
	if covered != n {
		c.t.Fatalf("chunks cover %d bytes of %d", covered, n)
	}
	return data, kinds
}

// errorChunk receives a structured error.
func (c *client) errorChunk(cookie uint64) (errno uint32, text string) {
	c.t.Helper()
	ch := c.chunk()
	if ch.cookie != cookie || ch.kind != 32769 || ch.flags != 1 || int(binary.BigEndian.Uint16(ch.data[4:])) != len(ch.data)-6 {
		c.t.Fatalf("not a well-formed error for cookie %d: %+v", cookie, ch)
	}
	return binary.BigEndian.Uint32(ch.data), string(ch.data[6:])
}
