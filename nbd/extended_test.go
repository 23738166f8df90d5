package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"sync/atomic"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const payloadLen = 32 // NBD_CMD_FLAG_PAYLOAD_LEN

func TestExtendedHandshake(t *testing.T) {
	const invalid, extRequired = 1<<31 + 3, 1<<31 + 10
	s := serveDevice(t, newMemDevice(1<<20), Options{})
	for name, before := range map[string]uint32{"alone": 0, "after structured replies": 8} {
		t.Run(name, func(t *testing.T) {
			c := s.dial(t)
			c.greet(3)
			if before != 0 {
				c.sendOption(before, nil)
				c.optionReply(before)
			}
			for _, step := range []struct{ opt, want uint32 }{{11, 1}, {11, invalid}, {8, extRequired}} {
				c.sendOption(step.opt, nil)
				if kind, _ := c.optionReply(step.opt); kind != step.want {
					t.Errorf("option %d: %#x, want %#x", step.opt, kind, step.want)
				}
			}
			c.sendOption(1, []byte("disk")) // EXPORT_NAME is not for such a client
			c.closed()
		})
	}
	const sendDF, statusPayload = 1 << 7, 1 << 12
	if _, _, flags := s.attachWide(t); flags&(sendDF|statusPayload) != sendDF {
		t.Errorf("flags %#x without contexts", flags)
	}
	if _, _, flags := s.attachWide(t, ContextAllocation); flags&statusPayload == 0 {
		t.Errorf("flags %#x with contexts", flags)
	}
}

// TestExtendedAnswers sends one request of each kind, good and bad.
func TestExtendedAnswers(t *testing.T) {
	const size = 1<<20 + 7
	cases := []struct {
		name       string
		flags, cmd uint16
		off, len   uint64
		want       uint32
	}{
		{"write", payloadLen, 1, 4096, 4096, 0},
		{"write fua", payloadLen | fua, 1, 4097, 13, 0},
		{"write nothing", payloadLen, 1, 4097, 0, 0},
		{"write past the end", payloadLen, 1, size - 3, 4, enospc},
		{"write without payload", 0, 1, 0, 4096, einval},
		{"write without payload, 2^63 bytes", 0, 1, 0, 1 << 63, einval},
		{"write with DF", payloadLen | df, 1, 0, 512, einval},
		{"read with payload", payloadLen, 0, 0, 512, einval},
		{"read with a longest payload", payloadLen, 0, 0, 32 << 20, einval},
		{"read past the end", 0, 0, size, 1, einval},
		{"read of 2^63 bytes", 0, 0, 0, 1 << 63, eoverflow},
		{"flush", 0, 3, 0, 0, 0},
		{"flush with payload", payloadLen, 3, 0, 16, einval},
		{"trim", fua, 4, 1, 8192, 0},
		{"trim past the end by 2^63", 0, 4, 1, 1 << 63, einval},
		{"trim, end overflows", 0, 4, 4096, 1<<64 - 1, einval},
		{"cache", 0, 5, 1, 8192, 0},
		{"zeroes", fua | noHole | fastZero, 6, 1, 8192, 0},
		{"zeroes past the end by 2^32", 0, 6, 0, 1<<32 + 1, enospc},
		{"block status without contexts", 0, 7, 0, 512, einval},
		{"block status with payload without contexts", payloadLen, 7, 0, 12, einval},
		{"unknown command", 0, 4711, 0, 1 << 40, einval},
		{"unknown command with payload", payloadLen, 4711, 0, 100, einval},
	}
	for _, slow := range []bool{false, true} {
		dev := newMemDevice(size)
		dev.slow.Store(slow)
		w, _, _ := serveDevice(t, dev, Options{}).attachWide(t)
		for i, tc := range cases {
			var payload []byte
			if tc.flags&payloadLen != 0 {
				payload = make([]byte, tc.len)
			}
			w.Request(tc.flags, tc.cmd, uint64(i), tc.off, tc.len, payload...)
			if got := w.Done(uint64(i)); got != tc.want {
				t.Errorf("%s, slow=%v: errno %d, want %d", tc.name, slow, got, tc.want)
			}
		}
		w.Request(0, 0, 99, size, 0) // reading nothing
		if errno := w.Done(99); errno != 0 {
			t.Errorf("empty read: errno %d", errno)
		}
		w.Request(0, 2, 0, 0, 0)
		w.closed()
	}
}

// TestExtendedHangsUp: payloads that no server needs to take, compact requests, and goodbyes.
func TestExtendedHangsUp(t *testing.T) {
	s := serveDevice(t, newMemDevice(64<<20), Options{})
	for name, bytes := range map[string][]byte{
		"write longer than the maximum":  wideHeader(payloadLen, 1, 1, 0, 32<<20+1),
		"write of 2^64-1 bytes":          wideHeader(payloadLen, 1, 1, 0, 1<<64-1),
		"unknown command, long payload":  wideHeader(payloadLen, 4711, 1, 0, 1<<40),
		"block status, long payload":     wideHeader(payloadLen, 7, 1, 0, 1<<33),
		"compact request":                append(header(0, 3, 1, 0, 0), 0, 0, 0, 0),
		"goodbye with a payload to come": wideHeader(payloadLen, 2, 1, 0, 4096),
	} {
		t.Run(name, func(t *testing.T) {
			w, _, _ := s.attachWide(t, ContextAllocation)
			w.send(bytes)
			w.closed()
		})
	}
}

// TestExtendedTraffic runs seeded requests of all sizes against a byte slice, many in one piece, so that batches form.
func TestExtendedTraffic(t *testing.T) {
	const size, seed = 3 << 20, 11
	rng := rand.New(rand.NewPCG(seed, 0))
	dev := newMemDevice(size)
	dev.holes = true
	w, _, _ := serveDevice(t, dev, Options{}).attachWide(t)
	model := make([]byte, size)
	cookie := uint64(0)
	for range 150 {
		dev.slow.Store(rng.IntN(3) == 0)
		writes := 1 + rng.IntN(4)
		var all []byte
		for range writes {
			n := 1 + rng.IntN(1<<(3+rng.IntN(17)))
			off := cookie%4*size/4 + uint64(rng.IntN(size/4-n+1)) // four in flight never overlap
			data := bytes.Repeat([]byte{byte(rng.Uint32())}, n)
			copy(model[off:], data)
			all = append(all, append(wideHeader(payloadLen, 1, cookie, off, uint64(n)), data...)...)
			w.Sent(cookie, off)
			cookie++
		}
		w.send(all)
		for range writes {
			if ch := w.Reply(); ch.Kind != 0 || ch.Flags != 1 {
				t.Fatalf("seed %d: write answered %+v", seed, ch)
			}
		}
		n := 1 + rng.IntN(1<<(3+rng.IntN(18)))
		off := uint64(rng.IntN(size - n + 1))
		w.Request(0, 0, cookie, off, uint64(n))
		if got := w.Content(cookie, off, n); !bytes.Equal(got, model[off:][:n]) {
			t.Fatalf("seed %d: read of %d at %d differs", seed, n, off)
		}
		cookie++
	}
}

// vastDevice claims 1 EiB and notes what it is asked to do with all of it.
type vastDevice struct {
	*memDevice
	last atomic.Pointer[block.Range]
}

const vast = 1 << 60

func (d *vastDevice) Size() uint64 { return vast }
func (d *vastDevice) Trim(_ context.Context, r block.Range, _ bool) error {
	d.last.Store(&r)
	return nil
}
func (d *vastDevice) Zero(_ context.Context, r block.Range, _, _ bool) error {
	d.last.Store(&r)
	return nil
}
func (d *vastDevice) Prefetch(_ context.Context, r block.Range) error {
	d.last.Store(&r)
	return nil
}
func (d *vastDevice) BlockStatus(_ context.Context, name string, r block.Range, emit func(uint64, uint32) bool) error {
	emit(1<<40, 1) // a run longer than 4 GiB, and then the rest
	emit(vast, 0)
	return nil
}

func TestLengthsOf64Bits(t *testing.T) {
	dev := &vastDevice{memDevice: newMemDevice(4096)}
	s := serveDevice(t, dev, Options{})
	w, ids, _ := s.attachWide(t, ContextAllocation, ContextDepth)
	for cookie, cmd := range []uint16{4, 5, 6} {
		want := block.Range{Off: 4096 * uint64(cmd), Len: 1<<50 + uint64(cmd)}
		w.Request(0, cmd, uint64(cookie), want.Off, want.Len)
		if errno := w.Done(uint64(cookie)); errno != 0 || *dev.last.Load() != want {
			t.Errorf("command %d: errno %d, device was asked for %+v, want %+v", cmd, errno, *dev.last.Load(), want)
		}
	}
	w.Request(0, 7, 10, 1<<41, 1<<50)
	all := w.statuses(10)
	w.Request(reqOne, 7, 11, 1<<41, 1<<33)
	one := w.statuses(11)
	for _, id := range ids {
		if want := []extent{{1 << 40, 1}, {vast - 1<<41 - 1<<40, 0}}; !reflect.DeepEqual(all[id], want) {
			t.Errorf("status %v, want %v", all[id], want)
		}
		if want := []extent{{1 << 33, 1}}; !reflect.DeepEqual(one[id], want) {
			t.Errorf("status of one %v, want %v", one[id], want)
		}
	}
}

// TestBlockStatusFilter: the payload of BLOCK_STATUS chooses contexts by id.
func TestBlockStatusFilter(t *testing.T) {
	dev := sparseDevice(1 << 20)
	w, ids, _ := serveDevice(t, dev, Options{}).attachWide(t, allContexts...)
	depth, heat := ids[ContextDepth], ids[ContextHeat]
	filter := func(length uint64, ids ...uint32) []byte { return pack(length, ids) }
	for i, p := range [][]byte{filter(1<<20, heat), filter(4096, heat, depth), filter(1<<20, ids[ContextAllocation], depth, heat)} {
		cookie := uint64(i)
		w.Request(payloadLen, 7, cookie, 0, uint64(len(p)), p...)
		got := w.statuses(cookie)
		if len(got) != (len(p)-8)/4 || got[heat] == nil {
			t.Errorf("filter %d: contexts %v", i, got)
		}
		checkCovers(t, ContextHeat, got[heat], extentsOf(dev, ContextHeat, 0, dev.Size()), binary.BigEndian.Uint64(p))
	}
	for name, p := range map[string][]byte{
		"no id":             filter(512),
		"no length":         {1, 2, 3},
		"half an id":        append(filter(512, heat), 1, 2),
		"unknown id":        filter(512, heat, 4711),
		"an id twice":       filter(512, heat, heat),
		"length of zero":    filter(0, heat),
		"past the end":      filter(1<<20+1, heat),
		"past the end 2^63": filter(1<<63, heat),
		"too many ids":      filter(512, make([]uint32, 1000)...),
	} {
		w.Request(payloadLen, 7, 50, 0, uint64(len(p)), p...)
		if errno := w.Done(50); errno != einval {
			t.Errorf("%s: errno %d", name, errno)
		}
	}
	p := filter(4096, heat) // in pieces
	w.Sent(60, 0)
	for _, b := range append(wideHeader(payloadLen, 7, 60, 0, uint64(len(p))), p...) {
		w.send([]byte{b})
	}
	if got := w.statuses(60); len(got) != 1 || got[heat] == nil {
		t.Errorf("sent byte by byte: %v", got)
	}
}
