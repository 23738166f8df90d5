package nbd

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// wide is a client that speaks extended headers, which the clients of Debian 12 do not. It shares no code with the server.
type wide struct {
	*client
	offs map[uint64]uint64 // of the requests under way, by cookie: a reply must repeat it
}

// attachWide dials, agrees on extended headers, selects contexts and enters transmission. It returns the transmission flags.
func (s *served) attachWide(t testing.TB, contexts ...string) (w *wide, ids map[string]uint32, flags uint16) {
	t.Helper()
	w = &wide{client: s.dial(t), offs: map[uint64]uint64{}}
	w.greet(3)
	w.sendOption(11, nil)
	if kind, text := w.optionReply(11); kind != 1 {
		t.Fatalf("extended headers refused: %#x %q", kind, text)
	}
	if len(contexts) > 0 {
		ids, _ = w.metaContexts(10, "disk", contexts...)
	}
	w.sendOption(7, infoRequest("disk"))
	for {
		kind, data := w.optionReply(7)
		switch {
		case kind == 1:
			return w, ids, flags
		case kind != 3:
			t.Fatalf("GO refused: %#x %q", kind, data)
		case binary.BigEndian.Uint16(data) == 0:
			flags = binary.BigEndian.Uint16(data[10:])
		}
	}
}

// wideHeader is an extended request header.
func wideHeader(flags, cmd uint16, cookie, off, length uint64) []byte {
	return pack(uint32(0x21e41c71), flags, cmd, cookie, off, length)
}

// request sends a header and a payload.
func (w *wide) request(flags, cmd uint16, cookie, off, length uint64, payload ...byte) {
	w.t.Helper()
	w.offs[cookie] = off
	w.send(wideHeader(flags, cmd, cookie, off, length), payload)
}

// reply receives one chunk and checks its header.
func (w *wide) reply() chunk {
	w.t.Helper()
	p := w.recv(32)
	ch := chunk{flags: binary.BigEndian.Uint16(p[4:]), kind: binary.BigEndian.Uint16(p[6:]), cookie: binary.BigEndian.Uint64(p[8:])}
	if binary.BigEndian.Uint32(p) != 0x6e8a278c {
		w.t.Fatalf("not an extended reply: % x", p)
	}
	if off := binary.BigEndian.Uint64(p[16:]); off != w.offs[ch.cookie] {
		w.t.Fatalf("reply to cookie %d is for offset %d, the request was for %d", ch.cookie, off, w.offs[ch.cookie])
	}
	size := binary.BigEndian.Uint64(p[24:])
	if size > 33<<20 {
		w.t.Fatalf("reply of %d bytes", size)
	}
	ch.data = w.recv(int(size))
	return ch
}

// done receives a reply without content and returns its errno.
func (w *wide) done(cookie uint64) uint32 {
	w.t.Helper()
	ch := w.reply()
	switch {
	case ch.cookie != cookie || ch.flags != 1:
		w.t.Fatalf("not the end of the reply to cookie %d: %+v", cookie, ch)
	case ch.kind == 0 && len(ch.data) == 0:
		return 0
	case ch.kind == 32769 && len(ch.data) >= 6 && int(binary.BigEndian.Uint16(ch.data[4:])) == len(ch.data)-6:
		return binary.BigEndian.Uint32(ch.data)
	}
	w.t.Fatalf("reply to cookie %d is a chunk of type %d with %d bytes", cookie, ch.kind, len(ch.data))
	return 0
}

// content receives the chunks of a READ of n bytes at off.
func (w *wide) content(cookie, off uint64, n int) []byte {
	w.t.Helper()
	data, covered := bytes.Repeat([]byte{0xee}, n), 0
	for {
		ch := w.reply()
		if ch.cookie != cookie {
			w.t.Fatalf("chunk for cookie %d, want %d", ch.cookie, cookie)
		}
		at := binary.BigEndian.Uint64(ch.data) - off
		switch ch.kind {
		case 1:
			covered += copy(data[at:], ch.data[8:])
		case 2:
			size := int(binary.BigEndian.Uint32(ch.data[8:]))
			clear(data[at:][:size])
			covered += size
		default:
			w.t.Fatalf("chunk of type %d: % x", ch.kind, ch.data)
		}
		if ch.flags == 1 {
			break
		}
	}
	if covered != n {
		w.t.Fatalf("chunks cover %d bytes of %d", covered, n)
	}
	return data
}

// statuses receives a reply to BLOCK_STATUS: extents by context id.
func (w *wide) statuses(cookie uint64) map[uint32][]extent {
	w.t.Helper()
	got := map[uint32][]extent{}
	for {
		ch := w.reply()
		if ch.cookie != cookie || ch.kind != 6 || len(ch.data) < 24 || len(ch.data) != 8+16*int(binary.BigEndian.Uint32(ch.data[4:])) {
			w.t.Fatalf("not a status chunk for cookie %d: %+v", cookie, ch)
		}
		id := binary.BigEndian.Uint32(ch.data)
		for p := ch.data[8:]; len(p) > 0; p = p[16:] {
			if p[8]|p[9]|p[10]|p[11] != 0 {
				w.t.Fatalf("status % x does not fit in 32 bits", p[8:16])
			}
			got[id] = append(got[id], extent{binary.BigEndian.Uint64(p), binary.BigEndian.Uint32(p[12:])})
		}
		if ch.flags == 1 {
			return got
		}
	}
}
