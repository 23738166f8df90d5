package nbdtest

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"testing"
	"time"
)

// hangup is how long a server may take to close a connection before a test calls that a hang.
const hangup = 2 * time.Minute

// Conn is a connection to a server. Deadlines are up to whoever dialled.
type Conn struct {
	t  testing.TB
	nc net.Conn
}

// NewConn returns a client on a connection that nothing was read from yet. The caller closes the connection.
func NewConn(t testing.TB, nc net.Conn) *Conn { return &Conn{t: t, nc: nc} }

// Pack joins fixed-size integers, slices of them, byte slices and strings in network order.
func Pack(parts ...any) []byte {
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

// Send writes what Pack makes of the parts.
func (c *Conn) Send(parts ...any) {
	c.t.Helper()
	if _, err := c.nc.Write(Pack(parts...)); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// Recv reads n bytes.
func (c *Conn) Recv(n int) []byte {
	c.t.Helper()
	p := make([]byte, n)
	if _, err := io.ReadFull(c.nc, p); err != nil {
		c.t.Fatalf("receive %d bytes: %v", n, err)
	}
	return p
}

// Close hangs up.
func (c *Conn) Close() { _ = c.nc.Close() }

// Closed checks that the server has hung up and sent nothing more.
func (c *Conn) Closed() {
	c.t.Helper()
	_ = c.nc.SetReadDeadline(time.Now().Add(hangup))
	var p [64]byte
	n, err := c.nc.Read(p[:])
	if n != 0 {
		c.t.Fatalf("server sent % x instead of closing", p[:n])
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatal("server did not close the connection")
	}
}

// Greet takes the greeting of a fixed newstyle server that can leave out the zeroes, and answers with the client's flags.
func (c *Conn) Greet(flags uint32) {
	c.t.Helper()
	hello := c.Recv(18)
	if string(hello[:16]) != "NBDMAGICIHAVEOPT" || binary.BigEndian.Uint16(hello[16:]) != 3 {
		c.t.Fatalf("greeting is % x", hello)
	}
	c.Send(flags)
}

// Option sends an option.
func (c *Conn) Option(opt uint32, data []byte) {
	c.t.Helper()
	c.Send("IHAVEOPT", opt, uint32(len(data)), data)
}

// OptionReply receives one reply to an option.
func (c *Conn) OptionReply(opt uint32) (kind uint32, data []byte) {
	c.t.Helper()
	h := c.Recv(20)
	if binary.BigEndian.Uint64(h) != 0x3e889045565a9 || binary.BigEndian.Uint32(h[8:]) != opt {
		c.t.Fatalf("reply to option %d is % x", opt, h)
	}
	return binary.BigEndian.Uint32(h[12:]), c.Recv(int(binary.BigEndian.Uint32(h[16:])))
}

// InfoRequest is the data of NBD_OPT_INFO and NBD_OPT_GO.
func InfoRequest(name string, kinds ...uint16) []byte {
	return Pack(uint32(len(name)), name, uint16(len(kinds)), kinds)
}

// MetaQuery is the data of NBD_OPT_LIST_META_CONTEXT and NBD_OPT_SET_META_CONTEXT.
func MetaQuery(name string, queries ...string) []byte {
	p := Pack(uint32(len(name)), name, uint32(len(queries)))
	for _, q := range queries {
		p = append(p, Pack(uint32(len(q)), q)...)
	}
	return p
}

// MetaContexts sends LIST_META_CONTEXT (9) or SET_META_CONTEXT (10) and receives the names that come back, in their order and with their ids.
func (c *Conn) MetaContexts(opt uint32, export string, queries ...string) (ids map[string]uint32, names []string) {
	c.t.Helper()
	c.Option(opt, MetaQuery(export, queries...))
	ids = map[string]uint32{}
	for {
		kind, data := c.OptionReply(opt)
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
