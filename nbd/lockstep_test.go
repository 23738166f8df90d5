package nbd

import (
	"context"
	"errors"
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// aheadDevice is a memDevice that can flush ahead.
type aheadDevice struct {
	*memDevice
	ahead atomic.Int64
}

func (d *aheadDevice) FlushAhead(context.Context) { d.ahead.Add(1) }

// simply sends one request and waits for its simple reply, with size bytes of data.
func (c *client) simply(flags, cmd uint16, off uint64, length uint32, payload []byte, size int) {
	c.t.Helper()
	c.send(header(flags, cmd, 7, off, length), payload)
	got := c.recv(16 + size)
	if want := pack(uint32(0x67446698), uint32(0), uint64(7)); string(got[:16]) != string(want) {
		c.t.Fatalf("command %d: reply %x", cmd, got[:16])
	}
}

// TestLockstepClientNeedsNoWorker: whoever waits for each reply is served by the reader alone after a while, whatever the command.
func TestLockstepClientNeedsNoWorker(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.slow.Store(true)
	s := serveDevice(t, dev, Options{})
	c := s.attach(t, false)
	p := make([]byte, 4096)
	round := func() {
		c.simply(0, 1, 4096, 4096, p, 0)
		c.simply(1, 1, 8192, 4096, p, 0) // FUA
		c.simply(0, 3, 0, 0, nil, 0)
		c.simply(0, 0, 0, 4096, nil, 4096)
		c.simply(0, 4, 0, 4096, nil, 0)
	}
	const rounds = aloneAfter/5 + 1
	for range rounds {
		round()
	}
	c.simply(0, 3, 0, 0, nil, 0) // what is counted is counted before the next reply at the latest
	before := s.Stats().Slow
	if before < aloneAfter {
		t.Errorf("%d requests went to a worker before the client was known", before)
	}
	for range rounds {
		round()
	}
	c.simply(0, 3, 0, 0, nil, 0)
	st := s.Stats()
	if st.Slow != before {
		t.Errorf("%d requests of a client in lockstep went to a worker", st.Slow-before)
	}
	if n := uint64(2 * rounds); st.Write.Requests != 2*n || st.Flush.Requests < n || st.Read.Requests != n || st.Trim.Requests != n || dev.fuaWrites.Load() != int64(n) {
		t.Errorf("counted %+v, %d writes with FUA", st, dev.fuaWrites.Load())
	}
}

// TestFlushesAhead: a client that flushes each write finds that done, and one that ceases to is not flushed for any more.
func TestFlushesAhead(t *testing.T) {
	dev := &aheadDevice{memDevice: newMemDevice(1 << 20)}
	c := serveDevice(t, dev, Options{}).attach(t, false)
	p := make([]byte, 4096)
	write := func() { c.simply(0, 1, 4096, 4096, p, 0) }
	flush := func() { c.simply(0, 3, 0, 0, nil, 0) }
	for range aloneAfter {
		write()
		write()
		flush()
	}
	if n := dev.ahead.Load(); n != 0 {
		t.Fatalf("flushed ahead %d times between two writes", n)
	}
	for range flushedAfter {
		write()
		flush()
	}
	before := dev.ahead.Load()
	if before > 1 {
		t.Errorf("flushed ahead %d times while the client was being learnt", before)
	}
	for range 10 {
		write()
		flush()
	}
	if n := dev.ahead.Load() - before; n != 10 {
		t.Errorf("flushed ahead %d times for 10 flushes", n)
	}
	if n := dev.flushes.Load(); n != aloneAfter+flushedAfter+10 {
		t.Errorf("%d flushes: each request must reach the device", n)
	}
	before = dev.ahead.Load()
	for range 3 {
		write()
	}
	flush() // whatever was begun before is over
	if n := dev.ahead.Load() - before; n != 1 {
		t.Errorf("flushed ahead %d times where nobody flushes", n)
	}
}

// TestNotAloneIsNotWaitedFor: a client that sends more while the reader is busy for it waits once, and then not for long.
func TestNotAloneIsNotWaitedFor(t *testing.T) {
	dev := newMemDevice(1 << 20)
	s := serveDevice(t, dev, Options{})
	c := s.attach(t, false)
	for range aloneAfter + 1 {
		c.simply(0, 3, 0, 0, nil, 0)
	}
	dev.gate, dev.entered = make(chan struct{}), make(chan string, 8)
	c.send(header(0, 3, 1, 0, 0))
	<-dev.entered // the reader waits in the device
	c.send(header(0, 0, 2, 0, 512))
	close(dev.gate)
	if got := c.recv(16 + 16 + 512); got[15] != 1 || got[31] != 2 {
		t.Fatalf("replies %x, %x", got[:16], got[16:32])
	}
	dev.gate = make(chan struct{})
	c.send(header(0, 3, 3, 0, 0))
	<-dev.entered
	c.send(header(0, 0, 4, 0, 512))
	if got := c.recv(16 + 512); got[15] != 4 {
		t.Fatalf("a read waits for a flush: reply %x", got[:16])
	}
	close(dev.gate)
	if got := c.recv(16); got[15] != 3 {
		t.Fatalf("reply %x", got)
	}
}

// TestLockstepEndsWithItsClient: neither a client that goes away nor a server that closes waits for a device that hangs.
func TestLockstepEndsWithItsClient(t *testing.T) {
	dev := newMemDevice(1 << 20)
	s := serveDevice(t, dev, Options{})
	c := s.attach(t, false)
	for range aloneAfter + 1 {
		c.simply(0, 3, 0, 0, nil, 0)
	}
	dev.gate, dev.entered = make(chan struct{}), make(chan string, 1)
	c.send(header(0, 3, 1, 0, 0))
	<-dev.entered
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_ = c.nc.SetReadDeadline(time.Now().Add(2 * time.Minute))
	if _, err := io.ReadFull(c.nc, make([]byte, 16)); err == nil {
		t.Fatal("a flush that was cut off was acknowledged")
	}
}

// TestFailedAloneIsReported: errors of what the reader does by itself reach the client as those of a worker do.
func TestFailedAloneIsReported(t *testing.T) {
	dev := newMemDevice(1 << 20)
	c := serveDevice(t, dev, Options{}).attach(t, false)
	for range aloneAfter + 1 {
		c.simply(0, 3, 0, 0, nil, 0)
	}
	dev.fail = func(op string, _ block.Range) error {
		if op == "flush" {
			return errors.Join(block.ErrCorrupt)
		}
		return nil
	}
	c.send(header(0, 3, 7, 0, 0))
	if got := c.recv(16); string(got) != string(pack(uint32(0x67446698), uint32(5), uint64(7))) {
		t.Fatalf("reply %x", got)
	}
}

// TestLockstepAllocatesNothing counts the allocations of the whole process, the client's side included, over rounds of requests that are sent one by one.
func TestLockstepAllocatesNothing(t *testing.T) {
	for name, slow := range map[string]bool{"from memory": false, "from a device": true} {
		dev := &aheadDevice{memDevice: newMemDevice(1 << 20)}
		dev.slow.Store(slow)
		c := serveDevice(t, dev, Options{}).attach(t, false)
		write := append(header(0, 1, 7, 4096, 4096), make([]byte, 4096)...)
		flush, read, reply := header(0, 3, 7, 0, 0), header(0, 0, 7, 0, 4096), make([]byte, 16+4096)
		ask := func(q []byte, size int) {
			if _, err := c.nc.Write(q); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c.nc, reply[:size]); err != nil {
				t.Fatal(err)
			}
		}
		round := func() {
			ask(write, 16)
			ask(flush, 16)
			ask(write, 16)
			ask(flush, 16)
			ask(read, len(reply))
		}
		for range aloneAfter {
			round()
		}
		if n := testing.AllocsPerRun(200, round); n >= 1 && !raceEnabled {
			t.Errorf("%s: %v allocations for 5 requests", name, n)
		}
	}
}
