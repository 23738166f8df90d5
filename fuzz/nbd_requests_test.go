package fuzz

import (
	"encoding/binary"
	"io"
	"net"
	"testing"
)

// FuzzNBDRequests sends anything in the transmission phase, over simple and over structured replies. What comes back must be well-formed
// replies to the cookies that were sent, each answered at most as often as it was sent, and no errno outside the protocol's.
func FuzzNBDRequests(f *testing.F) {
	request := func(flags, cmd uint16, cookie, off uint64, n uint32) []byte {
		p := binary.BigEndian.AppendUint32(nil, 0x25609513)
		p = binary.BigEndian.AppendUint16(p, flags)
		p = binary.BigEndian.AppendUint16(p, cmd)
		p = binary.BigEndian.AppendUint64(p, cookie)
		p = binary.BigEndian.AppendUint64(p, off)
		return binary.BigEndian.AppendUint32(p, n)
	}
	for cmd := range uint16(10) {
		for _, flags := range []uint16{0, 1, 2, 4, 16, 1 << 15} {
			seed := request(flags, cmd, 1, 100, 50)
			if cmd == 1 {
				seed = append(seed, make([]byte, 50)...)
			}
			f.Add(append(seed, request(0, 0, 2, 0, 4096)...), cmd%2 == 0, flags == 0)
		}
	}
	f.Add(append(append(request(0, 1, 1, 0, 3), "abc"...), append(request(1, 1, 2, 1, 3), "def"...)...), true, false)
	f.Add(request(0, 0, 1, 1<<64-1, 0xffffffff), true, false)
	f.Add(request(0, 1, 1, 0, 0xffffffff), false, false)
	f.Add(request(0, 1, 1, 0, 1<<20), false, false)
	f.Add(request(0, 0, 1, 0, 1)[:27], false, true)
	f.Fuzz(func(t *testing.T, input []byte, structured, slow bool) {
		s := newNBDServer(t)
		s.dev.slow = slow
		s.run(t, func(nc net.Conn) {
			attach(t, nc, structured)
			checkReplies(t, converse(nc, input), input)
		})
	})
}

// attach shakes hands.
func attach(t *testing.T, nc net.Conn, structured bool) {
	hello := "\x00\x00\x00\x03"
	expected := 18 + 10
	if structured {
		hello += "IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00"
		expected += 20
	}
	hello += "IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x04disk"
	if _, err := nc.Write([]byte(hello)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, expected)); err != nil {
		t.Fatalf("handshake: %v", err)
	}
}

// checkReplies parses what the server said. The input is only asked how many requests there can be: wherever the magic starts.
func checkReplies(t *testing.T, p, input []byte) {
	lengths := map[uint64]uint32{} // of the reads that may be meant, by cookie; ambiguous cookies keep the last
	for i := 0; i+28 <= len(input); i++ {
		if binary.BigEndian.Uint32(input[i:]) == 0x25609513 {
			lengths[binary.BigEndian.Uint64(input[i+8:])]++
		}
	}
	known := map[uint32]bool{0: true, 1: true, 5: true, 12: true, 22: true, 28: true, 75: true, 95: true}
	for len(p) >= 16 {
		cookie := binary.BigEndian.Uint64(p[8:])
		if lengths[cookie] == 0 {
			t.Fatalf("reply to cookie %d, which is nobody's or was answered before", cookie)
		}
		switch binary.BigEndian.Uint32(p) {
		case 0x67446698:
			if errno := binary.BigEndian.Uint32(p[4:]); !known[errno] {
				t.Fatalf("errno %d is not the protocol's", errno)
			}
			// A simple reply to a READ has data, whose length only the request tells; the device is filled with 0xdd so that
			// no data looks like a reply.
			lengths[cookie]--
			p = skipData(p[16:])
		case 0x668e33ef:
			if len(p) < 20 || uint64(len(p)) < 20+uint64(binary.BigEndian.Uint32(p[16:])) {
				t.Fatalf("chunk is cut short: % x", p[:min(len(p), 40)])
			}
			size := binary.BigEndian.Uint32(p[16:])
			if kind := binary.BigEndian.Uint16(p[6:]); kind == 32769 && !known[binary.BigEndian.Uint32(p[20:])] {
				t.Fatalf("errno %d is not the protocol's", binary.BigEndian.Uint32(p[20:]))
			}
			if binary.BigEndian.Uint16(p[4:])&1 != 0 {
				lengths[cookie]--
			}
			p = p[20+size:]
		default:
			t.Fatalf("not a reply: % x", p[:16])
		}
	}
	if len(p) != 0 {
		t.Fatalf("%d stray bytes at the end", len(p))
	}
}

// skipData skips the bytes of a device that nobody can write to.
func skipData(p []byte) []byte {
	for len(p) > 0 && p[0] == 0xdd {
		p = p[1:]
	}
	return p
}
