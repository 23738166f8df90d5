package e2e

import (
	"bytes"
	"net"
	"reflect"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/nbdtest"
)

const (
	nbdCache       = 5
	nbdBlockStatus = 7

	nbdReqOne   = 1 << 3
	nbdFastZero = 1 << 4

	gib = 1 << 30
	tib = 1 << 40
)

// extended opens an export for the tests' own client that speaks extended headers. The connection ends with the test.
func (d *daemon) extended(export string, contexts ...string) *nbdtest.Extended {
	d.t.Helper()
	conn, err := net.Dial("unix", d.nbdSocket())
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return nbdtest.Attach(d.t, conn, export, contexts...)
}

// change is a write, or with no data a range that was made zeroes.
type change struct {
	off, length uint64
	data        []byte
}

// changes are what was done to a volume, in order.
type changes []change

// at is what the volume must hold at off.
func (c changes) at(off uint64, n int) []byte {
	p := make([]byte, n)
	for _, ch := range c {
		lo, hi := max(off, ch.off), min(off+uint64(n), ch.off+ch.length)
		if lo >= hi {
			continue
		}
		if ch.data == nil {
			clear(p[lo-off : hi-off])
		} else {
			copy(p[lo-off:hi-off], ch.data[lo-ch.off:])
		}
	}
	return p
}

// vast is a sparse volume of 16 TiB with a little data in places far apart.
type vast struct {
	*daemon
	c      *nbdtest.Extended
	done   changes
	places []uint64 // each has vastPiece bytes
}

const (
	vastSize  = 16 * tib
	vastPiece = 8 << 10
)

// verify reads each place and what lies around it.
func (v *vast) verify(when string, c *nbdtest.Extended, want changes) {
	v.t.Helper()
	for _, at := range v.places {
		from := at - min(at, 4096)
		n := int(min(at+vastPiece+4096, vastSize) - from)
		if got, want := c.Read(from, n), want.at(from, n); !bytes.Equal(got, want) {
			v.t.Fatalf("%s: WRONG DATA at %d", when, from+uint64(differAt(got, want)))
		}
	}
}

// status asks for a whole volume, and again for what a reply has left out: hvd looks at no more than a TiB for one. Neighbours of one status are joined.
func (v *vast) status(c *nbdtest.Extended, context string) (all []nbdtest.Extent) {
	v.t.Helper()
	requests := 0
	for at := uint64(0); at < vastSize; requests++ {
		for _, e := range c.Status(0, at, vastSize-at)[context] {
			if n := len(all); n > 0 && all[n-1][1] == e[1] {
				all[n-1][0] += e[0]
			} else {
				all = append(all, e)
			}
			at += e[0]
		}
	}
	if requests > vastSize/tib {
		v.t.Errorf("it took %d requests to tell of 16 TiB", requests)
	}
	return all
}

// told checks what a block status of everything says.
func (v *vast) told(when string, c *nbdtest.Extended, context string, want []nbdtest.Extent) {
	v.t.Helper()
	if got := v.status(c, context); !reflect.DeepEqual(got, want) {
		v.t.Errorf("%s: %s is %v, want %v", when, context, got, want)
	}
}

// extents are those of a volume that has data in the given ranges alone, each an offset and a length, in order.
func extents(data, hole uint64, ranges ...[2]uint64) (all []nbdtest.Extent) {
	at := uint64(0)
	for _, r := range ranges {
		if r[0] > at {
			all = append(all, nbdtest.Extent{r[0] - at, hole})
		}
		all = append(all, nbdtest.Extent{r[1], data})
		at = r[0] + r[1]
	}
	if at < vastSize {
		all = append(all, nbdtest.Extent{vastSize - at, hole})
	}
	return all
}

// mustDo sends a request without content that must succeed.
func (v *vast) mustDo(what string, flags, command uint16, off, length uint64) {
	v.t.Helper()
	if errno := v.c.Do(flags, command, off, length); errno != 0 {
		v.t.Fatalf("%s of %d B at %d: errno %d", what, length, off, errno)
	}
}

// TestLengthsOf64Bits sends requests of TiB to the engine, each of which no compact header could hold, and reads what has become of the data: at once, in segments, after a
// kill, and in the snapshot that was taken before. The clients of Debian 12 cannot do that; TestExtendedHeaders has those that can.
func TestLengthsOf64Bits(t *testing.T) {
	const allocation, depth = "base:allocation", "qemu:allocation-depth"
	v := &vast{daemon: startDaemon(t), places: []uint64{0, 4*gib - 4096, tib - 4096, 5 * tib, 9*tib - 4096, vastSize - vastPiece}}
	v.disk("vast", "16TiB", "--chunking", "fixed:4KiB") // so that what is told of segments is known to the block
	v.c = v.extended("vast", allocation, depth)
	if v.c.Size != vastSize {
		t.Fatalf("the export has %d bytes", v.c.Size)
	}
	v.told("empty", v.c, allocation, extents(0, 3))
	v.told("empty", v.c, depth, extents(1, 0))
	var written [][2]uint64
	for i, at := range v.places {
		p := randomBytes(i, vastPiece)
		if errno := v.c.Write(at, p); errno != 0 {
			t.Fatalf("write at %d: errno %d", at, errno)
		}
		v.done = append(v.done, change{at, vastPiece, p})
		written = append(written, [2]uint64{at, vastPiece})
	}
	for _, where := range []string{"in the log", "in segments"} {
		v.verify(where, v.c, v.done)
		v.told(where, v.c, allocation, extents(0, 3, written...))
		v.told(where, v.c, depth, extents(1, 0, written...))
		// The end of the one extent that REQ_ONE asks for is 3 TiB away.
		if got := v.c.Status(nbdReqOne, 2*tib, 8*tib)[allocation]; len(got) != 1 || got[0][0] <= 1<<32 || got[0][0] > 3*tib || got[0][1] != 3 {
			t.Errorf("%s: the one extent at 2 TiB is %v", where, got)
		}
		v.settle()
	}
	v.run("snapshot", "create", "vast@s")
	old := v.done

	v.mustDo("zeroes", nbdFUA|nbdFastZero, nbdZeroes, tib+100, 8*tib) // to the byte
	v.done = append(v.done[:len(v.done):len(v.done)], change{off: tib + 100, length: 8 * tib})
	v.verify("zeroed", v.c, v.done)
	v.mustDo("cache", 0, nbdCache, 0, 5*gib)
	v.verify("cached", v.c, v.done)
	v.kill()
	v.start()
	v.c = v.extended("vast", allocation, depth, "qemu:dirty-bitmap:s")
	v.verify("zeroed, after a kill", v.c, v.done)

	v.mustDo("trim", 0, nbdTrim, 0, 4*gib)                  // half of a piece
	v.mustDo("trim", nbdFUA, nbdTrim, 8*tib+100, 8*tib-100) // whole blocks only, of which there are none with data before 8 TiB + 4 KiB
	v.done = append(v.done, change{off: 0, length: 4 * gib}, change{off: 8*tib + 100, length: 8*tib - 100})
	left := [][2]uint64{{4 * gib, 4096}, {tib - 4096, vastPiece}}
	for _, where := range []string{"trimmed", "trimmed, in segments"} {
		v.verify(where, v.c, v.done)
		v.told(where, v.c, allocation, extents(0, 3, left...))
		dirty := v.status(v.c, "qemu:dirty-bitmap:s")
		for at, want := range map[uint64]uint64{0: 1, 4*gib - 4096: 1, 4 * gib: 0, tib - 4096: 0, tib: 1, 5 * tib: 1, 9 * tib: 1, vastSize - 1: 1} {
			if got := statusAt(dirty, at); got != want {
				t.Errorf("%s: dirty at %d: %d, want %d", where, at, got, want)
			}
		}
		v.settle()
	}
	s := v.extended("vast@s", allocation)
	v.verify("the snapshot", s, old)
	v.told("the snapshot", s, allocation, extents(0, 3, written...))
	for _, command := range []uint16{nbdTrim, nbdZeroes} {
		if errno := s.Do(0, command, 0, vastSize); errno != 1 {
			t.Errorf("command %d of all of a snapshot: errno %d, want EPERM", command, errno)
		}
	}
	v.refusesBeyond()
	v.mustDo("trim", 0, nbdTrim, 0, vastSize)
	v.verify("all trimmed", v.c, nil)
	v.told("all trimmed", v.c, allocation, extents(0, 3))
	v.verify("the snapshot, at last", s, old)
	v.stop()
	v.check()
}

// statusAt is the status of the byte at off.
func statusAt(extents []nbdtest.Extent, off uint64) uint64 {
	for _, e := range extents {
		if off < e[0] {
			return e[1]
		}
		off -= e[0]
	}
	return 1 << 63 // not told
}

// refusesBeyond asks for what lies behind the end, or behind the end of all numbers.
func (v *vast) refusesBeyond() {
	v.t.Helper()
	const invalid, noSpace = uint32(errInvalid), uint32(errNoSpace)
	for _, r := range []struct {
		command     uint16
		off, length uint64
		want        uint32
	}{
		{nbdTrim, vastSize - 4096, 4097, invalid},
		{nbdTrim, 4096, 1<<64 - 1, invalid},
		{nbdZeroes, vastSize - 4096, 1 << 63, noSpace},
		{nbdZeroes, 1<<64 - 4096, 8192, noSpace},
		{nbdCache, 1, vastSize, invalid},
		{nbdBlockStatus, vastSize - 512, 1 << 40, invalid},
	} {
		if errno := v.c.Do(0, r.command, r.off, r.length); errno != r.want {
			v.t.Errorf("command %d of %d B at %d: errno %d, want %d", r.command, r.length, r.off, errno, r.want)
		}
	}
	v.verify("after what was refused", v.c, v.done)
}

// TestDetachDuringALongCache: a CACHE of 16 TiB is a lot of work, and nobody's who has hung up. It holds up no detach, neither then nor for longer than hvd waits for a client.
func TestDetachDuringALongCache(t *testing.T) {
	d := startDaemon(t, "--nbd-drain-timeout", "1s")
	d.run("volume", "create", "vast", "--size", "16TiB")
	for _, stays := range []bool{false, true} {
		d.attach("vast")
		c := d.extended("vast")
		p := randomBytes(1, 4096)
		if errno := c.Write(tib, p); errno != 0 {
			t.Fatalf("write: errno %d", errno)
		}
		c.Request(0, nbdCache, 1, 0, vastSize)
		c.Request(0, nbdRead, 2, tib, 4096)
		for ch := c.Reply(); ch.Cookie != 2; ch = c.Reply() { // so hvd has read the request before
			if ch.Cookie == 1 && ch.Kind != 0 {
				t.Errorf("cache of everything: %+v", ch)
			}
		}
		if !stays {
			c.Close()
		}
		began := time.Now()
		d.run("volume", "detach", "vast", "--force")
		// The machine may be slow, but not as slow as this: there is nothing to wait for but the second above.
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("with a client that stays: %v, detach took %v", stays, took)
		}
		d.attach("vast")
		if got := d.extended("vast").Read(tib, 4096); !bytes.Equal(got, p) {
			t.Errorf("with a client that stays: %v, wrong data afterwards", stays)
		}
		d.run("volume", "detach", "vast", "--force")
	}
}
