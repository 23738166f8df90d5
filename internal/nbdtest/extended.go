package nbdtest

import (
	"bytes"
	"encoding/binary"
	"net"
	"testing"
)

// Extended is a client in transmission that agreed on extended headers. It has any number of requests under way; replies are received by whoever waits for one.
type Extended struct {
	*Conn
	Size  uint64            // of the export, bytes
	Flags uint16            // NBD_FLAG_…, of the export
	IDs   map[string]uint32 // of the contexts that were selected

	offs   map[uint64]uint64 // of the requests under way, by cookie: a reply must repeat it
	cookie uint64            // of the last request of Do, Read, Write and Status
}

// Chunk is one reply, or a piece of one.
type Chunk struct {
	Flags, Kind uint16
	Cookie      uint64
	Data        []byte
}

// Extent is one descriptor of a block status: its length in bytes, and the status.
type Extent [2]uint64

// ownCookies is where the cookies of Do, Read, Write and Status begin, far from what a test chooses itself.
const ownCookies = 1 << 62

// Attach does the handshake on a new connection: extended headers, contexts if there are any, then the export.
func Attach(t testing.TB, nc net.Conn, export string, contexts ...string) *Extended {
	t.Helper()
	e := &Extended{Conn: NewConn(t, nc), offs: map[uint64]uint64{}, cookie: ownCookies}
	e.Greet(3)
	e.Option(11, nil)
	if kind, text := e.OptionReply(11); kind != 1 {
		t.Fatalf("extended headers refused: %#x %q", kind, text)
	}
	if len(contexts) > 0 {
		e.IDs, _ = e.MetaContexts(10, export, contexts...)
	}
	e.Option(7, InfoRequest(export))
	for {
		kind, data := e.OptionReply(7)
		switch {
		case kind == 1:
			return e
		case kind != 3:
			t.Fatalf("GO refused: %#x %q", kind, data)
		case binary.BigEndian.Uint16(data) == 0:
			e.Size, e.Flags = binary.BigEndian.Uint64(data[2:]), binary.BigEndian.Uint16(data[10:])
		}
	}
}

// ExtendedHeader is the header of a request, 32 bytes.
func ExtendedHeader(flags, cmd uint16, cookie, off, length uint64) []byte {
	return Pack(uint32(0x21e41c71), flags, cmd, cookie, off, length)
}

// Request sends a header and a payload.
func (e *Extended) Request(flags, cmd uint16, cookie, off, length uint64, payload ...byte) {
	e.t.Helper()
	e.Sent(cookie, off)
	e.Send(ExtendedHeader(flags, cmd, cookie, off, length), payload)
}

// Sent notes a request that Send puts on the wire: its reply must repeat the offset.
func (e *Extended) Sent(cookie, off uint64) { e.offs[cookie] = off }

// Reply receives one chunk and checks its header.
func (e *Extended) Reply() Chunk {
	e.t.Helper()
	p := e.Recv(32)
	ch := Chunk{Flags: binary.BigEndian.Uint16(p[4:]), Kind: binary.BigEndian.Uint16(p[6:]), Cookie: binary.BigEndian.Uint64(p[8:])}
	if binary.BigEndian.Uint32(p) != 0x6e8a278c {
		e.t.Fatalf("not an extended reply: % x", p)
	}
	if off := binary.BigEndian.Uint64(p[16:]); off != e.offs[ch.Cookie] {
		e.t.Fatalf("reply to cookie %d is for offset %d, the request was for %d", ch.Cookie, off, e.offs[ch.Cookie])
	}
	size := binary.BigEndian.Uint64(p[24:])
	if size > 33<<20 {
		e.t.Fatalf("reply of %d bytes", size)
	}
	ch.Data = e.Recv(int(size))
	return ch
}

// Done receives a reply without content and returns its errno.
func (e *Extended) Done(cookie uint64) uint32 {
	e.t.Helper()
	ch := e.Reply()
	switch {
	case ch.Cookie != cookie || ch.Flags != 1:
		e.t.Fatalf("not the end of the reply to cookie %d: %+v", cookie, ch)
	case ch.Kind == 0 && len(ch.Data) == 0:
		return 0
	case ch.Kind == 32769 && len(ch.Data) >= 6 && int(binary.BigEndian.Uint16(ch.Data[4:])) == len(ch.Data)-6:
		return binary.BigEndian.Uint32(ch.Data)
	}
	e.t.Fatalf("reply to cookie %d is a chunk of type %d with %d bytes", cookie, ch.Kind, len(ch.Data))
	return 0
}

// Content receives the chunks of a READ of n bytes at off.
func (e *Extended) Content(cookie, off uint64, n int) []byte {
	e.t.Helper()
	data, covered := bytes.Repeat([]byte{0xee}, n), 0
	for {
		ch := e.Reply()
		if ch.Cookie != cookie {
			e.t.Fatalf("chunk for cookie %d, want %d", ch.Cookie, cookie)
		}
		switch ch.Kind {
		case 1:
			covered += copy(data[binary.BigEndian.Uint64(ch.Data)-off:], ch.Data[8:])
		case 2:
			size := int(binary.BigEndian.Uint32(ch.Data[8:]))
			clear(data[binary.BigEndian.Uint64(ch.Data)-off:][:size])
			covered += size
		default:
			e.t.Fatalf("chunk of type %d: % x", ch.Kind, ch.Data)
		}
		if ch.Flags == 1 {
			break
		}
	}
	if covered != n {
		e.t.Fatalf("chunks cover %d bytes of %d", covered, n)
	}
	return data
}

// Statuses receives a reply to BLOCK_STATUS: extents by context id.
func (e *Extended) Statuses(cookie uint64) map[uint32][]Extent {
	e.t.Helper()
	got := map[uint32][]Extent{}
	for {
		ch := e.Reply()
		if ch.Cookie != cookie || ch.Kind != 6 || len(ch.Data) < 24 || len(ch.Data) != 8+16*int(binary.BigEndian.Uint32(ch.Data[4:])) {
			e.t.Fatalf("not a status chunk for cookie %d: %+v", cookie, ch)
		}
		id := binary.BigEndian.Uint32(ch.Data)
		for p := ch.Data[8:]; len(p) > 0; p = p[16:] {
			got[id] = append(got[id], Extent{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])})
		}
		if ch.Flags == 1 {
			return got
		}
	}
}

// next is a cookie that no test chooses.
func (e *Extended) next() uint64 {
	e.cookie++
	return e.cookie
}

// Do sends a request without content and returns its errno. No other may be under way, as with Read, Write and Status.
func (e *Extended) Do(flags, cmd uint16, off, length uint64) uint32 {
	e.t.Helper()
	cookie := e.next()
	e.Request(flags, cmd, cookie, off, length)
	return e.Done(cookie)
}

// Read reads n bytes at off.
func (e *Extended) Read(off uint64, n int) []byte {
	e.t.Helper()
	cookie := e.next()
	e.Request(0, 0, cookie, off, uint64(n))
	return e.Content(cookie, off, n)
}

// Write writes p at off and returns the errno.
func (e *Extended) Write(off uint64, p []byte) uint32 {
	e.t.Helper()
	cookie := e.next()
	e.Request(1<<5, 1, cookie, off, uint64(len(p)), p...)
	return e.Done(cookie)
}

// Status asks for a range in one request and returns what came, by the names of the contexts.
func (e *Extended) Status(flags uint16, off, length uint64) map[string][]Extent {
	e.t.Helper()
	cookie := e.next()
	e.Request(flags, 7, cookie, off, length)
	got, named := e.Statuses(cookie), map[string][]Extent{}
	for name, id := range e.IDs {
		named[name] = got[id]
	}
	return named
}
