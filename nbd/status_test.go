package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// extent is one descriptor as the client sees it.
type extent struct {
	length uint64
	status uint32
}

// attachWith dials, selects contexts and enters transmission with structured replies.
func (s *served) attachWith(t testing.TB, contexts ...string) (*client, map[string]uint32) {
	t.Helper()
	c := s.dial(t)
	c.greet(3)
	c.sendOption(8, nil)
	c.optionReply(8)
	ids, _ := c.metaContexts(10, "disk", contexts...)
	if len(ids) != len(contexts) {
		t.Fatalf("selected %v of %v", ids, contexts)
	}
	c.sendOption(7, infoRequest("disk"))
	for kind := uint32(3); kind != 1; {
		kind, _ = c.optionReply(7)
	}
	return c, ids
}

// statuses receives a reply to BLOCK_STATUS: extents by context id.
func (c *client) statuses(cookie uint64) map[uint32][]extent {
	c.t.Helper()
	got := map[uint32][]extent{}
	for {
		ch := c.chunk()
		if ch.cookie != cookie || ch.kind != 5 || len(ch.data) < 12 || (len(ch.data)-4)%8 != 0 {
			c.t.Fatalf("not a status chunk for cookie %d: type %d, %d bytes", cookie, ch.kind, len(ch.data))
		}
		id := binary.BigEndian.Uint32(ch.data)
		if got[id] != nil {
			c.t.Fatalf("two chunks for context %d", id)
		}
		for p := ch.data[4:]; len(p) > 0; p = p[8:] {
			got[id] = append(got[id], extent{uint64(binary.BigEndian.Uint32(p)), binary.BigEndian.Uint32(p[4:])})
		}
		if ch.flags == 1 {
			return got
		}
	}
}

// extentsOf joins what the device says about [off, end), from block to block.
func extentsOf(d *memDevice, name string, off, end uint64) []extent {
	var got []extent
	for at := off; at < end; {
		next := min((at/block.Size+1)*block.Size, end)
		status, err := d.status(name, at, d.data[at:min((at/block.Size+1)*block.Size, d.Size())])
		if err != nil {
			panic(err)
		}
		if n := len(got); n > 0 && got[n-1].status == status {
			got[n-1].length += next - at
		} else {
			got = append(got, extent{next - at, status})
		}
		at = next
	}
	return got
}

// sparseDevice has data in random blocks.
func sparseDevice(size int) *memDevice {
	dev := newMemDevice(size)
	rng := rand.New(rand.NewPCG(3, 0))
	for at := 0; at < size; at += block.Size {
		if rng.IntN(3) == 0 {
			dev.data[at] = 1
		}
	}
	return dev
}

func TestBlockStatus(t *testing.T) {
	dev := sparseDevice(4<<20 + 512)
	s := serveDevice(t, dev, Options{})
	c, ids := s.attachWith(t, allContexts...)
	for i, r := range []block.Range{{Off: 0, Len: 4<<20 + 512}, {Off: 4096, Len: 4096}, {Off: 1000, Len: 5000}, {Off: 4 << 20, Len: 512}, {Off: 1 << 20, Len: 1}} {
		c.send(header(0, 7, uint64(i), r.Off, uint32(r.Len)))
		got := c.statuses(uint64(i))
		for name, id := range ids {
			checkCovers(t, name, got[id], extentsOf(dev, name, r.Off, dev.Size()), r.Len)
		}
		c.send(header(reqOne|fua, 7, uint64(i), r.Off, uint32(r.Len)))
		got = c.statuses(uint64(i))
		for name, id := range ids {
			want := extentsOf(dev, name, r.Off, r.End())[:1]
			if !reflect.DeepEqual(got[id], want) {
				t.Errorf("%s of %+v with REQ_ONE: %v, want %v", name, r, got[id], want)
			}
		}
	}
	if n := s.Stats().BlockStatus.Requests; n != 10 {
		t.Errorf("%d requests counted", n)
	}
}

// checkCovers wants the extents to be the beginning of what is true up to the device's end, and to cover the request; only the last may go
// beyond it.
func checkCovers(t *testing.T, name string, got, truth []extent, want uint64) {
	t.Helper()
	told := uint64(0)
	for i, e := range got {
		last := i == len(got)-1
		if told >= want || e.status != truth[i].status || e.length > truth[i].length || !last && e.length != truth[i].length {
			t.Fatalf("%s: extent %d is %v, the truth is %v; %d of %d bytes told before", name, i, e, truth[i], told, want)
		}
		told += e.length
	}
	if told < want {
		t.Errorf("%s: %d bytes told of %d", name, told, want)
	}
}

func TestBlockStatusRefusals(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.contexts = append(dev.contexts, "qemu:dirty-bitmap:gone")
	c, _ := serveDevice(t, dev, Options{}).attachWith(t, "qemu:dirty-bitmap:gone", "base:allocation")
	for i, tc := range []struct {
		name  string
		flags uint16
		off   uint64
		len   uint32
		want  uint32
	}{
		{"nothing", 0, 0, 0, einval},
		{"past the end", 0, 1 << 20, 1, einval},
		{"with DF", df, 0, 512, einval},
		{"with a payload flag", 1 << 5, 0, 512, einval},
		{"bitmap that is gone", 0, 0, 512, eio},
	} {
		c.send(header(tc.flags, 7, uint64(i), tc.off, tc.len))
		if errno, _ := c.errorChunk(uint64(i)); errno != tc.want {
			t.Errorf("%s: errno %d, want %d", tc.name, errno, tc.want)
		}
	}
}

// reporterFunc is a device with one context, told by a function.
type reporterFunc struct {
	Device
	size uint64
	tell func(r block.Range, emit func(uint64, uint32) bool) error
}

func (d *reporterFunc) Size() uint64           { return d.size }
func (d *reporterFunc) MetaContexts() []string { return []string{ContextAllocation} }
func (d *reporterFunc) BlockStatus(_ context.Context, _ string, r block.Range, emit func(uint64, uint32) bool) error {
	return d.tell(r, emit)
}

// TestBlockStatusIsBounded: a device of alternating sectors fills the reply, and the client goes on from there to the end.
func TestBlockStatusIsBounded(t *testing.T) {
	const size = 64 << 20
	calls := 0
	dev := &reporterFunc{Device: newMemDevice(4096), size: size, tell: func(r block.Range, emit func(uint64, uint32) bool) error {
		calls++
		for at := r.Off; at < size && emit(512, uint32(at>>9&1)); at += 512 {
		}
		return nil
	}}
	c, ids := serveDevice(t, dev, Options{}).attachWith(t, ContextAllocation)
	for at := uint64(0); at < size; {
		c.send(header(0, 7, at, at, uint32(size-at)))
		got := c.statuses(at)[ids[ContextAllocation]]
		if len(got) > maxExtents || len(got) == 0 {
			t.Fatalf("%d extents in a reply", len(got))
		}
		for _, e := range got {
			if e.length != 512 || e.status != uint32(at>>9&1) {
				t.Fatalf("extent %v at %d", e, at)
			}
			at += e.length
		}
	}
	if want := (size/512 + maxExtents - 1) / maxExtents; calls != want {
		t.Errorf("%d requests, want %d", calls, want)
	}
}

// TestLongExtentsAreCut: 32 bits do not hold an extent of 1 TiB; the cut keeps to multiples of any block size.
func TestLongExtentsAreCut(t *testing.T) {
	dev := &reporterFunc{Device: newMemDevice(4096), size: 1 << 40, tell: func(r block.Range, emit func(uint64, uint32) bool) error {
		emit(1<<40-r.Off, 3)
		return nil
	}}
	c, ids := serveDevice(t, dev, Options{}).attachWith(t, ContextAllocation)
	for i, tc := range []struct {
		flags uint16
		len   uint32
		want  uint64
	}{{0, 512, 1<<32 - 64<<10}, {0, 1<<32 - 1, 1<<32 - 64<<10}, {reqOne, 1 << 20, 1 << 20}, {reqOne, 1<<32 - 1, 1<<32 - 64<<10}} {
		c.send(header(tc.flags, 7, uint64(i), 4096, tc.len))
		if got := c.statuses(uint64(i))[ids[ContextAllocation]]; len(got) != 1 || got[0] != (extent{tc.want, 3}) {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}

// TestOddReporters: what a device tells beyond its end, or in pieces of nothing, does not reach the client; telling nothing at all is its failure.
func TestOddReporters(t *testing.T) {
	for name, tc := range map[string]struct {
		tell func(r block.Range, emit func(uint64, uint32) bool) error
		want []extent
	}{
		"beyond the end": {func(_ block.Range, emit func(uint64, uint32) bool) error { emit(1<<63, 1); return nil }, []extent{{8192, 1}}},
		"goes on and on": {func(_ block.Range, emit func(uint64, uint32) bool) error {
			for range 100 {
				emit(1024, 1)
			}
			return nil
		}, []extent{{4096, 1}}},
		"empty pieces": {func(_ block.Range, emit func(uint64, uint32) bool) error {
			emit(0, 9)
			emit(4096, 1)
			emit(0, 9)
			return nil
		}, []extent{{4096, 1}}},
		"stops early": {func(_ block.Range, emit func(uint64, uint32) bool) error { emit(512, 1); return nil }, []extent{{512, 1}}},
		"told apart": {func(_ block.Range, emit func(uint64, uint32) bool) error {
			emit(512, 1)
			emit(512, 1)
			emit(512, 2)
			return nil
		}, []extent{{1024, 1}, {512, 2}}},
		"nothing at all":  {func(block.Range, func(uint64, uint32) bool) error { return nil }, nil},
		"error after all": {func(_ block.Range, emit func(uint64, uint32) bool) error { emit(512, 1); return fmt.Errorf("broken") }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dev := &reporterFunc{Device: newMemDevice(4096), size: 8192, tell: tc.tell}
			c, ids := serveDevice(t, dev, Options{}).attachWith(t, ContextAllocation)
			c.send(header(0, 7, 1, 0, 4096))
			if tc.want == nil {
				if errno, _ := c.errorChunk(1); errno != eio {
					t.Errorf("errno %d", errno)
				}
				return
			}
			if got := c.statuses(1)[ids[ContextAllocation]]; !reflect.DeepEqual(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
		})
	}
}
