package nbd

import (
	"bytes"
	"context"
	"errors"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %s", what)
		}
	}
}

// TestReaderDoesNotWaitForWorkers: while a flush hangs, the same connection is served.
func TestReaderDoesNotWaitForWorkers(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.gate, dev.entered = make(chan struct{}), make(chan string, 8)
	c := serveDevice(t, dev, Options{}).attach(t, false)
	c.send(header(0, 3, 1, 0, 0))
	c.send(header(fua, 1, 2, 0, 4), "data")
	<-dev.entered
	<-dev.entered
	c.send(header(0, 0, 3, 0, 4))
	c.expect(3, 0)
	c.recv(4)
	close(dev.gate)
	a, _ := c.simple()
	b, _ := c.simple()
	if a+b != 3 || dev.fuaWrites.Load() != 1 {
		t.Errorf("replies to %d and %d, %d FUA writes", a, b, dev.fuaWrites.Load())
	}
}

// TestSlowRequestsAreBounded: with MaxSlow requests at workers the reader stops, and goes on when one is done.
func TestSlowRequestsAreBounded(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.gate, dev.entered = make(chan struct{}), make(chan string, 100)
	c := serveDevice(t, dev, Options{MaxSlow: 4}).attach(t, false)
	for i := range uint64(20) {
		c.send(header(0, 3, i, 0, 0))
	}
	for range 4 {
		<-dev.entered
	}
	time.Sleep(20 * time.Millisecond) // time for a fifth to be started in error
	if n := len(dev.entered); n != 0 {
		t.Errorf("%d requests beyond MaxSlow were started", n)
	}
	close(dev.gate)
	for range 20 {
		c.simple()
	}
}

// TestFlushCoversWhatWasReplied: a flush reaches the device only after all commands replied before it have returned from the device.
func TestFlushCoversWhatWasReplied(t *testing.T) {
	dev := newMemDevice(1 << 20)
	s := serveDevice(t, dev, Options{})
	a, b := s.attach(t, false), s.attach(t, false)
	dev.entered = make(chan string, 1)
	for i := range uint64(50) {
		a.send(header(0, 1, i, 0, 1), []byte{byte(i)})
		a.expect(i, 0)
		b.send(header(0, 3, i, 0, 0))
		if op := <-dev.entered; op != "flush" || dev.data[0] != byte(i) {
			t.Fatalf("at the flush after write %d the device holds %d", i, dev.data[0])
		}
		b.expect(i, 0)
	}
}

// TestClientThatStopsReading blocks itself only, and its requests are not read without end.
func TestClientThatStopsReading(t *testing.T) {
	for _, slow := range []bool{false, true} {
		dev := newMemDevice(4 << 20)
		dev.slow.Store(slow)
		s := serveDevice(t, dev, Options{})
		stuck := s.attach(t, false)
		_ = stuck.nc.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		request, sent := header(0, 0, 1, 0, 1<<20), 0
		for ; sent < 100000; sent++ {
			if _, err := stuck.nc.Write(request); err != nil {
				break
			}
		}
		if sent == 100000 {
			t.Error("the server reads requests without end though nobody reads its replies")
		}
		c := s.attach(t, false)
		for i := range uint64(100) {
			c.send(header(0, 0, i, 0, 4096))
			c.expect(i, 0)
			c.recv(4096)
		}
		_ = stuck.nc.Close()
	}
}

// TestStalledClientsAreEvictedUnderPressure: clients that sit on the whole budget in the middle of a request lose it to those that work.
func TestStalledClientsAreEvictedUnderPressure(t *testing.T) {
	var evicted atomic.Int64
	dev := newMemDevice(64 << 20)
	s := serveDevice(t, dev, Options{
		InFlightBytes: 48 << 20, StallTimeout: 10 * time.Millisecond, Events: Events{Evicted: func(Peer) { evicted.Add(1) }},
	})
	stalled := s.attach(t, false)
	stalled.send(header(0, 1, 1, 0, 32<<20), make([]byte, 1<<20)) // the rest of the 32 MiB never comes
	eventually(t, "the stalled client holds its buffer", func() bool {
		ok := s.memory.large.TryAcquire(8 << 20)
		if ok {
			s.memory.large.Release(8 << 20)
		}
		return !ok
	})
	c := s.attach(t, false)
	c.send(header(0, 0, 2, 0, 32<<20))
	c.expect(2, 0)
	c.recv(32 << 20)
	if evicted.Load() != 1 || s.Stats().Evicted != 1 {
		t.Errorf("%d clients evicted, want 1", evicted.Load())
	}
	stalled.closed()
}

// TestMoreClientsThanLeases: more active clients than leases, all of them stuck half way through a header, then all of them served.
func TestMoreClientsThanLeases(t *testing.T) {
	s := serveDevice(t, newMemDevice(1<<20), Options{InFlightBytes: 48 << 20, MaxConnections: 200})
	const clients = 48<<20/4/leaseSize + 20 // the last ones make do with a small lease
	var cs []*client
	for range clients {
		cs = append(cs, s.attach(t, false))
	}
	for _, c := range cs {
		c.send(header(0, 0, 1, 0, 4096)[:20])
	}
	for _, c := range cs { // those with a lease finish first and hand it on
		c.send(header(0, 0, 1, 0, 4096)[20:])
	}
	for _, c := range cs {
		c.expect(1, 0)
		c.recv(4096)
	}
}

// TestThousandIdleConnections measures what they cost. The bound is the published one.
func TestThousandIdleConnections(t *testing.T) {
	s := serveDevice(t, newMemDevice(1<<20), Options{})
	before := inUse()
	var cs []*client
	for range 1000 {
		c := s.attach(t, true)
		c.send(header(0, 1, 1, 0, 4096), make([]byte, 4096), header(0, 0, 2, 0, 4096)) // each has been busy once
		c.expect(1, 0)
		c.readChunks(2, 0, 4096)
		cs = append(cs, c)
	}
	used := int64(inUse()) - int64(before)
	t.Logf("1,000 idle connections: %d KiB of heap and stacks, client side included", used>>10)
	if used > 64<<20 {
		t.Errorf("1,000 idle connections cost %d MiB", used>>20)
	}
	if n := s.Connections("disk"); n != 1000 {
		t.Errorf("%d connections counted", n)
	}
	runtime.KeepAlive(cs)
}

// inUse returns the bytes of heap and stacks after a collection.
func inUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

func TestTooManyConnections(t *testing.T) {
	refused := make(chan net.Addr, 1)
	s := serveDevice(t, newMemDevice(4096), Options{MaxConnections: 2, Events: Events{Refused: func(a net.Addr) { refused <- a }}})
	a := s.attach(t, false)
	s.attach(t, false)
	s.dial(t).closed()
	<-refused
	_ = a.nc.Close()
	eventually(t, "a place is free again", func() bool { return s.Stats().Connections == 1 })
	s.attach(t, false)
}

// TestShutdownFinishesWhatIsInFlight: the reply of a request at a worker still comes, then the connection closes; a request never read is
// never answered, least of all with NBD_ESHUTDOWN.
func TestShutdownFinishesWhatIsInFlight(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.slow.Store(true)
	dev.gate, dev.entered = make(chan struct{}), make(chan string, 8)
	s := serveDevice(t, dev, Options{})
	busy, idle, greeting := s.attach(t, false), s.attach(t, false), s.dial(t)
	greeting.greet(3)
	busy.send(header(0, 1, 1, 0, 4), "data")
	<-dev.entered
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(context.Background()) }()
	idle.closed()
	greeting.closed()
	select {
	case err := <-done:
		t.Fatalf("Shutdown returned %v with a request in flight", err)
	default:
	}
	close(dev.gate)
	busy.expect(1, 0)
	busy.closed()
	_ = busy.nc.Close()
	_ = idle.nc.Close()
	if err := <-done; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if string(dev.data[:4]) != "data" {
		t.Error("the write in flight was lost")
	}
	if err := s.Serve(context.Background(), mustListen(t)); !errors.Is(err, block.ErrClosed) {
		t.Errorf("Serve after Shutdown: %v", err)
	}
}

func mustListen(t *testing.T) net.Listener {
	l, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestShutdownGivesUpWithItsContext(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.gate, dev.entered = make(chan struct{}), make(chan string, 8)
	s := serveDevice(t, dev, Options{})
	c := s.attach(t, false)
	c.send(header(0, 3, 1, 0, 0))
	<-dev.entered
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Shutdown: %v", err)
	}
	c.closed()
}

func TestDropConnectionsOfOneExport(t *testing.T) {
	tab := newTable(Export{Name: "disk", Device: newMemDevice(4096)}, Export{Name: "other", Device: newMemDevice(4096)})
	s := serveTable(t, tab, Options{})
	c := s.attach(t, false)
	other := s.dial(t)
	other.greet(3)
	other.sendOption(1, []byte("other"))
	other.recv(10)
	go func() { _, _ = c.nc.Read(make([]byte, 1)); _ = c.nc.Close() }()
	if err := s.DropConnections(context.Background(), "disk"); err != nil {
		t.Fatal(err)
	}
	if n := tab.heldOf("disk"); n != 0 || s.Connections("disk") != 0 {
		t.Errorf("export still held %d times", n)
	}
	other.send(header(0, 0, 1, 0, 1))
	other.expect(1, 0)
}

// TestPlainConnections serves over net.Pipe, which is no socket, as TLS is none.
func TestPlainConnections(t *testing.T) {
	dev := newMemDevice(1 << 20)
	s := serveDevice(t, dev, Options{})
	near, far := net.Pipe()
	defer near.Close()
	s.admit(far, Door{Exports: s.table})
	c := newClient(t, near)
	c.greet(3)
	c.sendOption(1, []byte("disk"))
	c.recv(10)
	for _, n := range []int{1, 4096, 300 << 10} {
		data := bytes.Repeat([]byte{byte(n)}, n)
		c.send(header(0, 1, 1, 3, uint32(n)), data)
		c.expect(1, 0)
		c.send(header(0, 0, 2, 3, uint32(n)))
		c.expect(2, 0)
		if !bytes.Equal(c.recv(n), data) {
			t.Errorf("%d bytes do not come back", n)
		}
	}
}

func TestOptionsValidate(t *testing.T) {
	for _, o := range []Options{{MaxConnections: -1}, {InFlightBytes: 1}, {MaxSlow: -1}, {HandshakeTimeout: -1}, {StallTimeout: -1}} {
		if _, err := NewServer(newTable(), o); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", o, err)
		}
	}
}

func TestStatsCount(t *testing.T) {
	dev := newMemDevice(1 << 20)
	s := serveDevice(t, dev, Options{})
	for _, slow := range []bool{false, true} {
		dev.slow.Store(slow)
		c := s.attach(t, false)
		c.send(header(0, 1, 1, 0, 4), "data", header(0, 1, 2, 4, 4), "data")
		c.expect(1, 0)
		c.expect(2, 0)
		c.send(header(0, 0, 3, 0, 8))
		c.expect(3, 0)
		c.recv(8)
		c.send(header(0, 3, 4, 0, 0))
		c.expect(4, 0)
		c.send(header(0, 99, 5, 0, 0))
		c.expect(5, einval)
		c.send(header(0, 2, 0, 0, 0))
		c.closed()
	}
	got := s.Stats()
	if got.Write.Requests != 4 || got.Write.Bytes != 16 || got.Read.Bytes != 16 || got.Flush.Requests != 2 || got.Invalid != 2 || got.Accepted != 2 {
		t.Errorf("%+v", got)
	}
	if got.WriteBatches < 2 || got.WriteBatches > 4 || got.Slow < 4 {
		t.Errorf("%+v", got)
	}
}
