package nbd

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// shortHole is the shortest hole that a structured reply tells.
const shortHole = 64

const (
	fua, noHole, df, reqOne, fastZero = 1, 2, 4, 8, 16

	eperm, eio, enomem, einval, enospc, eoverflow, enotsup = 1, 5, 12, 22, 28, 75, 95
)

// TestAnswers sends one request of each kind, good and bad, over both kinds of replies, with the device at hand and with a worker.
func TestAnswers(t *testing.T) {
	const size = 1<<20 + 7
	cases := []struct {
		name       string
		flags, cmd uint16
		off        uint64
		len        uint32
		want       uint32
	}{
		{"write", 0, 1, 4096, 4096, 0},
		{"write, unaligned", 0, 1, 4099, 13, 0},
		{"write at the end", 0, 1, size - 3, 3, 0},
		{"write fua", fua, 1, 0, 512, 0},
		{"write nothing", 0, 1, 0, 0, 0},
		{"write past the end", 0, 1, size - 3, 4, enospc},
		{"write far past the end", 0, 1, 1 << 63, 4096, enospc},
		{"write, end overflows", 0, 1, 1<<64 - 1, 4096, enospc},
		{"write with an unknown flag", 1 << 9, 1, 0, 512, einval},
		{"write with DF", df, 1, 0, 512, einval},
		{"write with a payload length flag", 1 << 5, 1, 0, 512, einval},
		{"write, over-long", 0, 1, 0, 32<<20 + 1, einval},
		{"flush", 0, 3, 0, 0, 0},
		{"flush with fua", fua, 3, 0, 0, 0},
		{"flush with an offset", 0, 3, 4096, 0, einval},
		{"flush with a length", 0, 3, 0, 4096, einval},
		{"trim", 0, 4, 0, 8192, 0},
		{"trim fua", fua, 4, 0, 8192, 0},
		{"trim nothing", 0, 4, 0, 0, 0},
		{"trim past the end", 0, 4, 0, size + 1, einval},
		{"trim with NO_HOLE", noHole, 4, 0, 512, einval},
		{"cache", 0, 5, 0, 8192, 0},
		{"cache past the end", 0, 5, size, 1, einval},
		{"zeroes", 0, 6, 1, 8192, 0},
		{"zeroes, all flags", fua | noHole | fastZero, 6, 0, 4096, 0},
		{"zeroes past the end", 0, 6, size, 1, enospc},
		{"zeroes with REQ_ONE", reqOne, 6, 0, 512, einval},
		{"read past the end", 0, 0, size, 1, einval},
		{"read, over-long", 0, 0, 0, 32<<20 + 1, einval},
		{"read with NO_HOLE", noHole, 0, 0, 512, einval},
		{"block status", 0, 7, 0, 512, einval},
		{"resize", 0, 8, 0, 512, einval},
		{"unknown command", 0, 4711, 0, 512, einval},
	}
	for _, structured := range []bool{false, true} {
		for _, slow := range []bool{false, true} {
			t.Run(fmt.Sprintf("structured=%v,slow=%v", structured, slow), func(t *testing.T) {
				dev := newMemDevice(size)
				dev.slow.Store(slow)
				c := serveDevice(t, dev, Options{}).attach(t, structured)
				for i, tc := range cases {
					c.send(header(tc.flags, tc.cmd, uint64(i), tc.off, tc.len))
					if tc.cmd == 1 {
						c.send(make([]byte, tc.len))
					}
					got := uint32(0)
					if tc.want != 0 && structured {
						got, _ = c.errorChunk(uint64(i))
					} else {
						_, got = c.simple()
					}
					if got != tc.want {
						t.Errorf("%s: errno %d, want %d", tc.name, got, tc.want)
					}
				}
				c.send(header(0, 2, 0, 0, 0))
				c.closed()
			})
		}
	}
}

func TestReadFlagDFNeedsStructuredReplies(t *testing.T) {
	s := serveDevice(t, newMemDevice(64<<20), Options{})
	c := s.attach(t, false)
	c.send(header(df, 0, 1, 0, 512))
	c.expect(1, einval)
	c = s.attach(t, true)
	c.send(header(df, 0, 2, 0, 32<<20+1))
	if errno, _ := c.errorChunk(2); errno != eoverflow {
		t.Errorf("over-long unsplit read: errno %d, want EOVERFLOW", errno)
	}
	c.send(header(0, 0, 3, 64<<20, 0)) // reading nothing, at the very end
	if ch := c.chunk(); ch.kind != 0 || ch.flags != 1 || ch.cookie != 3 {
		t.Errorf("empty read answered %+v", ch)
	}
}

func TestReadOnlyRefusesChanges(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.readOnly = true
	c := serveDevice(t, dev, Options{}).attach(t, false)
	for _, cmd := range []uint16{1, 4, 6} {
		c.send(header(0, cmd, uint64(cmd), 0, 4096))
		if cmd == 1 {
			c.send(bytes.Repeat([]byte{1}, 4096))
		}
		c.expect(uint64(cmd), eperm)
	}
	c.send(header(0, 0, 9, 0, 16))
	c.expect(9, 0)
	if !isZero(c.recv(16)) {
		t.Error("a refused write changed the device")
	}
}

func TestErrnoOfDeviceErrors(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want uint32
	}{
		{&block.CorruptError{Source: "segment 1"}, eio}, {block.ErrNoSpace, enospc}, {syscall.ENOSPC, enospc}, {syscall.EDQUOT, enospc},
		{block.ErrReadOnly, eperm}, {block.ErrOutOfRange, einval}, {block.ErrInvalid, einval}, {errors.ErrUnsupported, enotsup},
		{syscall.ENOMEM, enomem}, {block.ErrClosed, eio}, {block.ErrNotFound, eio}, {syscall.ESHUTDOWN, eio}, {errors.New("else"), eio},
	} {
		dev := newMemDevice(1 << 20)
		dev.fail = func(string, block.Range) error { return fmt.Errorf("wrapped: %w", tc.err) }
		failures := make(chan Failure, 16)
		s := serveDevice(t, dev, Options{Events: Events{RequestFailed: func(_ Peer, f Failure) { failures <- f }}})
		for _, slow := range []bool{false, true} {
			dev.slow.Store(slow)
			c := s.attach(t, true)
			c.send(header(0, 0, 1, 0, 512))
			if errno, text := c.errorChunk(1); errno != tc.want || text == "" {
				t.Errorf("%v, slow=%v: read errno %d %q, want %d", tc.err, slow, errno, text, tc.want)
			}
			c.send(header(0, 1, 2, 7, 512), make([]byte, 512))
			if errno, _ := c.errorChunk(2); errno != tc.want {
				t.Errorf("%v, slow=%v: write errno %d, want %d", tc.err, slow, errno, tc.want)
			}
			if r, w := <-failures, <-failures; r.Command != CmdRead || w.Command != CmdWrite || w.Off != 7 || !errors.Is(w.Err, tc.err) {
				t.Errorf("%v: events %+v, %+v", tc.err, r, w)
			}
		}
	}
}

// TestBatchFailsOnlyTheBadWrite: when a batch fails, its good writes must not be answered with the error of the bad one.
func TestBatchFailsOnlyTheBadWrite(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.fail = failAt(8192)
	c := serveDevice(t, dev, Options{}).attach(t, false)
	var all []byte
	for i := range uint64(4) {
		all = append(all, header(0, 1, i, i*4096, 4096)...)
		all = append(all, bytes.Repeat([]byte{byte(i + 1)}, 4096)...)
	}
	c.send(all)
	got := map[uint64]uint32{}
	for range 4 {
		cookie, errno := c.simple()
		got[cookie] = errno
	}
	if got[0] != 0 || got[1] != 0 || got[2] != enospc || got[3] != 0 {
		t.Errorf("errnos by cookie: %v", got)
	}
	if dev.data[3*4096] != 4 {
		t.Error("the write behind the bad one was not done")
	}
}

// failAt fails what begins at an offset.
func failAt(off uint64) func(string, block.Range) error {
	return func(_ string, r block.Range) error {
		if r.Off == off {
			return block.ErrNoSpace
		}
		return nil
	}
}

// TestWritesInOneBufferAreOneBatch also checks that a read behind them sees them.
func TestWritesInOneBufferAreOneBatch(t *testing.T) {
	dev := newMemDevice(1 << 20)
	c := serveDevice(t, dev, Options{}).attach(t, true)
	var all []byte
	for i := range uint64(8) {
		all = append(all, header(0, 1, i, i*512, 512)...)
		all = append(all, bytes.Repeat([]byte{byte(i + 1)}, 512)...)
	}
	c.send(all, header(0, 0, 8, 0, 4096))
	for i := range uint64(8) {
		c.expect(i, 0)
	}
	data, _ := c.readChunks(8, 0, 4096)
	if !bytes.Equal(data, dev.data[:4096]) || data[4095] != 8 {
		t.Error("read behind the writes returned something else")
	}
	if dev.batches.Load() != 1 || dev.largestBatch.Load() != 8 {
		t.Errorf("%d batches, the largest of %d writes; want one of 8", dev.batches.Load(), dev.largestBatch.Load())
	}
}

func TestHolesAreChunks(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.holes = true
	copy(dev.data[8192:], bytes.Repeat([]byte{7}, 4096))
	copy(dev.data[20480:], bytes.Repeat([]byte{8}, 4096))
	c := serveDevice(t, dev, Options{}).attach(t, true)
	for i, tc := range []struct {
		flags uint16
		off   uint64
		len   int
		want  []uint16
	}{
		{0, 0, 32768, []uint16{2, 1, 2, 1, 2}},
		{0, 8192, 4096, []uint16{1}},
		{0, 0, 8192, []uint16{2}},
		{0, 8192 - shortHole, 4096, []uint16{2, 1}},
		{0, 8192 - shortHole + 1, 4096, []uint16{1}}, // the hole is shorter than what would announce it
		{0, 9000, 12000, []uint16{1, 2, 1}},
		{df, 0, 32768, []uint16{1}},
		{df, 0, 8192, []uint16{2}},
		{0, 0, 1 << 20, []uint16{2, 1, 2, 1, 2}}, // longer than the output buffer
	} {
		for _, slow := range []bool{false, true} {
			dev.slow.Store(slow)
			c.send(header(tc.flags, 0, uint64(i), tc.off, uint32(tc.len)))
			data, kinds := c.readChunks(uint64(i), tc.off, tc.len)
			if !slices.Equal(kinds, tc.want) {
				t.Errorf("read %+v, slow=%v: chunks %v", tc, slow, kinds)
			}
			if !bytes.Equal(data, dev.data[tc.off:][:tc.len]) {
				t.Errorf("read %+v, slow=%v: wrong data", tc, slow)
			}
		}
	}
}

// TestEncodeReadInPlace checks the in-place encoder against random holes of any length and place, in both framings that have chunks.
func TestEncodeReadInPlace(t *testing.T) {
	for _, f := range []framing{structuredReplies, extendedHeaders} {
		testEncodeRead(t, f)
	}
}

func testEncodeRead(t *testing.T, f framing) {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		n := 1 + rng.IntN(3000)
		want := make([]byte, n)
		for i := range want {
			want[i] = byte(1 + rng.IntN(255))
		}
		off := rng.Uint64N(1 << 40)
		var holes []block.Range
		for at := rng.IntN(n + 1); at < n; {
			size := min(1+rng.IntN(200), n-at)
			holes = append(holes, block.Range{Off: off + uint64(at), Len: uint64(size)})
			clear(want[at : at+size])
			at += size + 1 + rng.IntN(200)
		}
		p := append(make([]byte, f.dataHeader()), want...)
		p = p[:encodeRead(p, &request{off: off, len: uint64(n)}, f, holes)]
		if got := decodeRead(t, f, p, off, n); !bytes.Equal(got, want) {
			t.Fatalf("seed %d: %d bytes with holes %v do not come back", seed, n, holes)
		}
	}
}

// decodeRead parses chunks from memory.
func decodeRead(t *testing.T, f framing, p []byte, off uint64, n int) []byte {
	got := bytes.Repeat([]byte{0xee}, n)
	for len(p) > 0 {
		header, size := 20, int(be.Uint32(p[16:]))
		if f == extendedHeaders {
			header, size = 32, int(be.Uint64(p[24:]))
			if be.Uint64(p[16:]) != off {
				t.Fatalf("extended reply for a request at %d, want %d", be.Uint64(p[16:]), off)
			}
		}
		body := p[header : header+size]
		at := be.Uint64(body) - off
		switch be.Uint16(p[6:]) {
		case 1:
			copy(got[at:], body[8:])
		case 2:
			clear(got[at:][:be.Uint32(body[8:])])
		}
		if last := be.Uint16(p[4:]) == 1; last != (len(p) == header+size) {
			t.Fatalf("DONE flag is %v with %d bytes to go", last, len(p)-header-size)
		}
		p = p[header+size:]
	}
	return got
}

func TestWrongMagicHangsUpAfterTheRepliesDue(t *testing.T) {
	c := serveDevice(t, newMemDevice(1<<20), Options{}).attach(t, false)
	c.send(header(0, 1, 1, 0, 4), "data", "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
	c.expect(1, 0)
	c.closed()
}

func TestAbsurdWriteHangsUp(t *testing.T) {
	c := serveDevice(t, newMemDevice(1<<20), Options{}).attach(t, false)
	c.send(header(0, 1, 1, 0, 0xffffffff))
	c.closed()
}

func TestTruncatedRequestIsNotDone(t *testing.T) {
	for _, n := range []uint32{512, 100 << 10, 4 << 20} {
		dev := newMemDevice(8 << 20)
		s := serveDevice(t, dev, Options{})
		c := s.attach(t, false)
		c.send(header(0, 1, 1, 0, n), bytes.Repeat([]byte{1}, int(n)-1))
		_ = c.nc.(interface{ CloseWrite() error }).CloseWrite()
		c.closed()
		_ = s.Close()
		if !isZero(dev.data) {
			t.Errorf("half a write of %d bytes reached the device", n)
		}
	}
}

// TestHalfClosedClientGetsItsReplies: a client that closes for writing after its last request still reads all replies.
func TestHalfClosedClientGetsItsReplies(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.slow.Store(true)
	c := serveDevice(t, dev, Options{}).attach(t, false)
	c.send(header(0, 0, 1, 0, 64), header(0, 3, 2, 0, 0))
	_ = c.nc.(interface{ CloseWrite() error }).CloseWrite()
	for range 2 {
		if cookie, errno := c.simple(); errno != 0 {
			t.Errorf("cookie %d: errno %d", cookie, errno)
		} else if cookie == 1 {
			c.recv(64)
		}
	}
	c.closed()
}

// TestRandomTrafficAgainstAByteSlice runs seeded requests of all sizes, one at a time, cut into random pieces on their way, and compares
// every read with a plain slice.
func TestRandomTrafficAgainstAByteSlice(t *testing.T) {
	const size, seed = 3 << 20, 42
	for i := range 4 {
		structured, small := i&1 != 0, i&2 != 0
		rng := rand.New(rand.NewPCG(seed, 0))
		dev := newMemDevice(size)
		dev.holes = true
		s := serveDevice(t, dev, Options{})
		s.memory.onlySmall.Store(small)
		c := s.attach(t, structured)
		model := make([]byte, size)
		for i := range uint64(400) {
			dev.slow.Store(rng.IntN(3) == 0)
			n := 1 + rng.IntN(1<<(3+rng.IntN(18)))
			off := uint64(rng.IntN(size - n + 1))
			var msg []byte
			switch cmd := []uint16{0, 1, 1, 4, 6}[rng.IntN(5)]; cmd {
			case 0:
				c.send(header(0, 0, i, off, uint32(n)))
				var got []byte
				if structured {
					got, _ = c.readChunks(i, off, n)
				} else {
					c.expect(i, 0)
					got = c.recv(n)
				}
				if !bytes.Equal(got, model[off:][:n]) {
					t.Fatalf("seed %d, request %d: read of %d at %d differs", seed, i, n, off)
				}
				continue
			case 1:
				data := make([]byte, n)
				for j := range data {
					data[j] = byte(rng.Uint32())
				}
				copy(model[off:], data)
				msg = append(header(uint16(rng.IntN(2)), 1, i, off, uint32(n)), data...)
			default:
				clear(model[off:][:n])
				msg = header(uint16(rng.IntN(2)), cmd, i, off, uint32(n))
			}
			for len(msg) > 0 {
				m := 1 + rng.IntN(len(msg))
				c.send(msg[:m])
				msg = msg[m:]
			}
			c.expect(i, 0)
		}
	}
}
