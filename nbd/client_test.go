package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// client is a raw NBD client that shares no code with the server: it can send what a good client never would.
type client struct {
	t  testing.TB
	nc net.Conn
}

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
	return &client{t: t, nc: nc}
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

func (c *client) send(parts ...any) {
	c.t.Helper()
	if _, err := c.nc.Write(pack(parts...)); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// pack joins fixed-size integers, byte slices and strings in network order.
func pack(parts ...any) []byte {
	var b bytes.Buffer
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			b.WriteString(p)
		case []byte:
			b.Write(p)
		default:
			if err := binary.Write(&b, binary.BigEndian, p); err != nil {
				panic(err)
			}
		}
	}
	return b.Bytes()
}

func (c *client) recv(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.nc, p); err != nil {
		c.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return p
}

// closed checks that the server has hung up and sent nothing more.
func (c *client) closed() {
	c.t.Helper()
	_ = c.nc.SetReadDeadline(time.Now().Add(2 * time.Minute))
	var p [64]byte
	n, err := c.nc.Read(p[:])
	if n != 0 {
		c.t.Fatalf("server sent % x instead of closing", p[:n])
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatal("server did not close the connection")
	}
}

func (c *client) greet(flags uint32) {
	c.t.Helper()
	hello := c.recv(18)
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(hello[16:]) != 3 {
		c.t.Fatalf("greeting is % x", hello)
	}
	c.send(flags)
}

func (c *client) sendOption(opt uint32, data []byte) {
	c.t.Helper()
	c.send("IHAVEOPT", opt, uint32(len(data)), data)
}

func (c *client) optionReply(opt uint32) (kind uint32, data []byte) {
	c.t.Helper()
	h := c.recv(20)
	if binary.BigEndian.Uint64(h) != 0x3e889045565a9 || binary.BigEndian.Uint32(h[8:]) != opt {
		c.t.Fatalf("reply to option %d is % x", opt, h)
	}
	return binary.BigEndian.Uint32(h[12:]), c.recv(int(binary.BigEndian.Uint32(h[16:])))
}

func infoRequest(name string, kinds ...uint16) []byte {
	return pack(uint32(len(name)), name, uint16(len(kinds)), kinds)
}

// metaQuery is the data of LIST_META_CONTEXT and SET_META_CONTEXT.
func metaQuery(name string, queries ...string) []byte {
	p := pack(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		p = append(p, pack(uint32(len(q)), q)...)
	}
	return p
}

// metaContexts sends LIST_META_CONTEXT (9) or SET_META_CONTEXT (10) and receives the names that come back, with their ids.
func (c *client) metaContexts(opt uint32, export string, queries ...string) (ids map[string]uint32, names []string) {
	c.t.Helper()
	c.sendOption(opt, metaQuery(export, queries...))
	ids = map[string]uint32{}
	for {
		kind, data := c.optionReply(opt)
		switch kind {
		case 1:
			return ids, names
		case 4:
			name := string(data[4:])
			ids[name] = binary.BigEndian.Uint32(data)
			names = append(names, name)
		default:
			c.t.Fatalf("meta context option answered %#x %q", kind, data)
		}
	}
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
