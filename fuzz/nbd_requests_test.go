package fuzz

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// nbdFraming is what the handshake of a fuzzed connection agrees on.
type nbdFraming uint8

const (
	nbdSimple nbdFraming = iota
	nbdStructured
	nbdExtended
	nbdFramings
)

func (f nbdFraming) request() (magic uint32, size int) {
	if f == nbdExtended {
		return 0x21e41c71, 32
	}
	return 0x25609513, 28
}

// nbdRequest encodes a request header.
func nbdRequest(f nbdFraming, flags, cmd uint16, cookie, off, n uint64) []byte {
	magic, _ := f.request()
	p := binary.BigEndian.AppendUint32(nil, magic)
	p = binary.BigEndian.AppendUint16(p, flags)
	p = binary.BigEndian.AppendUint16(p, cmd)
	p = binary.BigEndian.AppendUint64(p, cookie)
	p = binary.BigEndian.AppendUint64(p, off)
	if f == nbdExtended {
		return binary.BigEndian.AppendUint64(p, n)
	}
	return binary.BigEndian.AppendUint32(p, uint32(n))
}

// FuzzNBDRequests sends anything in the transmission phase, over all framings. What comes back must be well-formed replies to the
// cookies that were sent, each answered at most as often as it was sent, and no errno outside the protocol's.
func FuzzNBDRequests(f *testing.F) {
	for framing := range nbdFramings {
		addRequestSeeds(f, framing)
	}
	f.Fuzz(func(t *testing.T, input []byte, framing uint8, slow bool) {
		s := newNBDServer(t)
		s.dev.slow = slow
		s.run(t, func(nc net.Conn) {
			kind := nbdFraming(framing) % nbdFramings
			attach(t, nc, kind)
			checkReplies(t, converse(nc, input), input, kind)
		})
	})
}

func addRequestSeeds(f *testing.F, framing nbdFraming) {
	request := func(flags, cmd uint16, cookie, off, n uint64) []byte {
		return nbdRequest(framing, flags, cmd, cookie, off, n)
	}
	for cmd := range uint16(10) {
		for _, flags := range []uint16{0, 1, 2, 4, 8, 16, 32, 1 << 15} {
			seed := request(flags, cmd, 1, 100, 50)
			if cmd == 1 || flags == 32 {
				seed = append(seed, make([]byte, 50)...)
			}
			f.Add(append(seed, request(0, 0, 2, 0, 4096)...), uint8(framing), flags == 0)
		}
	}
	payload := uint16(0)
	if framing == nbdExtended {
		payload = 32
	}
	add := func(slow bool, parts ...[]byte) {
		var all []byte
		for _, p := range parts {
			all = append(all, p...)
		}
		f.Add(all, uint8(framing), slow)
	}
	add(false, request(payload, 1, 1, 0, 3), []byte("abc"), request(payload|1, 1, 2, 1, 3), []byte("def"))
	add(false, request(0, 0, 1, 1<<64-1, 0xffffffff))
	add(false, request(payload, 1, 1, 0, 0xffffffff))
	add(false, request(payload, 1, 1, 0, 1<<20))
	add(true, request(0, 0, 1, 0, 1)[:27])
	add(false, request(0, 6, 1, 0, 1<<63), request(0, 4, 2, 1<<63, 1<<63))
	add(false, request(0, 7, 1, 0, 1<<16+1), request(8, 7, 2, 1, 1000))
	filter := func(length uint64, ids ...uint32) []byte {
		p := binary.BigEndian.AppendUint64(nil, length)
		for _, id := range ids {
			p = binary.BigEndian.AppendUint32(p, id)
		}
		return p
	}
	add(false, request(32, 7, 1, 0, 12), filter(512, 1), request(32, 7, 2, 0, 16), filter(4096, 2, 1), request(32, 7, 3, 0, 16), filter(9, 1, 1))
	add(false, request(32, 7, 1, 0, 4000), make([]byte, 4000), request(32, 7, 2, 0, 1<<40))
}

// attach shakes hands.
func attach(t *testing.T, nc net.Conn, framing nbdFraming) {
	hello := "\x00\x00\x00\x03"
	expected := 18
	if framing != nbdSimple {
		hello += "IHAVEOPT\x00\x00\x00" + map[nbdFraming]string{nbdStructured: "\x08", nbdExtended: "\x0b"}[framing] + "\x00\x00\x00\x00"
		hello += "IHAVEOPT\x00\x00\x00\x0a\x00\x00\x00\x2c\x00\x00\x00\x04disk\x00\x00\x00\x02" +
			"\x00\x00\x00\x0fbase:allocation\x00\x00\x00\x09x-hv:heat"
		expected += 20 + 20 + 4 + 15 + 20 + 4 + 9 + 20
	}
	hello += "IHAVEOPT\x00\x00\x00\x07\x00\x00\x00\x0a\x00\x00\x00\x04disk\x00\x00"
	expected += 20 + 12 + 20 + 14 + 20
	if _, err := nc.Write([]byte(hello)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, expected)); err != nil {
		t.Fatalf("handshake: %v", err)
	}
}

// checkReplies parses what the server said. The input is only asked how many requests there can be: wherever the magic starts.
func checkReplies(t *testing.T, p, input []byte, framing nbdFraming) {
	magic, size := framing.request()
	left := map[uint64]uint32{} // how often each cookie may be answered
	for i := 0; i+size <= len(input); i++ {
		if binary.BigEndian.Uint32(input[i:]) == magic {
			left[binary.BigEndian.Uint64(input[i+8:])]++
		}
	}
	for len(p) >= 16 {
		cookie := binary.BigEndian.Uint64(p[8:])
		if left[cookie] == 0 {
			t.Fatalf("reply to cookie %d, which is nobody's or was answered before", cookie)
		}
		last := true
		switch binary.BigEndian.Uint32(p) {
		case 0x67446698:
			if framing == nbdExtended {
				t.Fatal("simple reply to an extended request")
			}
			checkErrno(t, binary.BigEndian.Uint32(p[4:]))
			// A simple reply to a READ has data, whose length only the request tells; the device is filled with 0xdd so that
			// no data looks like a reply.
			p = skipData(p[16:])
		case 0x668e33ef:
			if framing != nbdStructured || len(p) < 20 {
				t.Fatalf("a structured reply that is cut short, or that nobody agreed on: % x", p[:min(len(p), 40)])
			}
			last, p = checkChunk(t, p, p[20:], uint64(binary.BigEndian.Uint32(p[16:])))
		case 0x6e8a278c:
			if framing != nbdExtended || len(p) < 32 {
				t.Fatalf("an extended reply that is cut short, or that nobody agreed on: % x", p[:min(len(p), 40)])
			}
			last, p = checkChunk(t, p, p[32:], binary.BigEndian.Uint64(p[24:]))
		default:
			t.Fatalf("not a reply: % x", p[:16])
		}
		if last {
			left[cookie]--
		}
	}
	if len(p) != 0 {
		t.Fatalf("%d stray bytes at the end", len(p))
	}
}

// checkChunk checks a chunk that begins at header, with size bytes of payload in body, and returns what follows it.
func checkChunk(t *testing.T, header, body []byte, size uint64) (last bool, rest []byte) {
	if size > uint64(len(body)) {
		t.Fatalf("chunk is cut short: % x", header[:min(len(header), 40)])
	}
	payload := body[:size]
	switch kind := binary.BigEndian.Uint16(header[6:]); kind {
	case 0:
		if size != 0 {
			t.Fatalf("NONE chunk with %d bytes", size)
		}
	case 1:
		if size < 9 {
			t.Fatalf("OFFSET_DATA chunk with %d bytes", size)
		}
	case 5, 6:
		checkStatus(t, kind, payload)
	case 32769:
		checkErrno(t, binary.BigEndian.Uint32(payload))
	default:
		t.Fatalf("chunk of type %d", kind)
	}
	return binary.BigEndian.Uint16(header[4:])&1 != 0, body[size:]
}

// checkStatus wants at least one extent, and none that is empty.
func checkStatus(t *testing.T, kind uint16, p []byte) {
	head, each := 4, 8
	if kind == 6 {
		head, each = 8, 16
	}
	if len(p) < head+each || (len(p)-head)%each != 0 {
		t.Fatalf("status chunk of %d bytes", len(p))
	}
	for p = p[head:]; len(p) > 0; p = p[each:] {
		if isZero(p[:each/2]) {
			t.Fatal("extent of no length")
		}
	}
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func checkErrno(t *testing.T, errno uint32) {
	switch errno {
	case 0, 1, 5, 12, 22, 28, 75, 95:
	default:
		t.Fatalf("errno %d is not the protocol's", errno)
	}
}

// skipData skips the bytes of a device that nobody can write to.
func skipData(p []byte) []byte {
	for len(p) > 0 && p[0] == 0xdd {
		p = p[1:]
	}
	return p
}
