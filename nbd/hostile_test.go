package nbd

import (
	"bytes"
	"testing"
	"time"
)

// exhaust has clients take all of the memory there is and stall for ever: in the middle of long and medium writes, before unread replies, and in
// the middle of headers.
func exhaust(t *testing.T, s *served) {
	t.Helper()
	m := s.memory
	taken := func(part interface {
		TryAcquire(int64) bool
		Release(int64)
	}, n int64) func() bool {
		return func() bool {
			ok := part.TryAcquire(n)
			if ok {
				part.Release(n)
			}
			return !ok
		}
	}
	s.attachTo(t, "first").send(header(0, 1, 1, 0, 32<<20), make([]byte, 1<<20))
	eventually(t, "a client holds 32 MiB", taken(m.large, 32<<20))
	for i := range 64 { // until there is no room for 64 KiB
		if taken(m.medium, 64<<10)() && taken(m.large, 64<<10)() {
			break
		}
		for _, n := range []uint32{2 << 20, 200 << 10, 100 << 10, 40 << 10} {
			c := s.attachTo(t, []string{"first", "second"}[i%2])
			go func() { _, _ = c.nc.Write(append(header(0, 1, 1, 0, n), make([]byte, n-1)...)) }() // the server may not take it all
		}
		time.Sleep(20 * time.Millisecond)
	}
	eventually(t, "no medium buffer is left", taken(m.medium, 64<<10))
	eventually(t, "no other buffer is left", taken(m.large, 64<<10))
	for i := range m.fullLeases {
		s.attachTo(t, []string{"first", "second"}[i%2]).send(header(0, 0, 1, 0, 4096)[:20])
	}
	eventually(t, "no full lease is left", func() bool { return m.lent.Load() >= m.fullLeases })
	for m.medium.TryAcquire(classSize(0)) || m.large.TryAcquire(classSize(0)) { // the crumbs, so that not even 4 KiB are to be had
	}
}

// serveThree serves a device as "disk", and for those who misbehave as "first" and "second". Nobody loses patience with them.
func serveThree(t *testing.T, dev Device, budget int64) *served {
	tab := newTable(Export{Name: "disk", Device: dev}, Export{Name: "first", Device: dev}, Export{Name: "second", Device: dev})
	return serveTable(t, tab, Options{InFlightBytes: budget, StallTimeout: time.Hour})
}

// attachTo enters transmission on an export with simple replies.
func (s *served) attachTo(t *testing.T, export string) *client {
	t.Helper()
	c := s.dial(t)
	c.greet(3)
	c.sendOption(1, []byte(export))
	c.recv(10)
	return c
}

// TestSmallRequestsAlwaysGoOn: whatever others hold, for however long, requests of 4 KiB are served, also those that have to wait for a device. Nobody is
// evicted here: the patience is an hour.
func TestSmallRequestsAlwaysGoOn(t *testing.T) {
	dev := newMemDevice(64 << 20)
	dev.slow.Store(true)
	s := serveThree(t, dev, 48<<20)
	exhaust(t, s)
	c, ids := s.attachWith(t, allContexts...)
	data := bytes.Repeat([]byte{7}, 4096)
	for i := uint64(0); i < 50; i += 5 {
		c.send(header(0, 1, i, 4096*i, 4096), data, header(fua, 1, i+1, 4096*i, 512), data[:512])
		c.expect(i, 0)
		c.expect(i+1, 0)
		c.send(header(0, 0, i+2, 4096*i, 4096))
		if got, _ := c.readChunks(i+2, 4096*i, 4096); !bytes.Equal(got, data) {
			t.Fatal("wrong data")
		}
		c.send(header(0, 7, i+3, 0, 1<<20))
		if got := c.statuses(i + 3); len(got) != len(ids) {
			t.Fatalf("status of %d contexts", len(got))
		}
		c.send(header(0, 3, i+4, 0, 0))
		c.expect(i+4, 0)
	}
	if n := s.Stats().Evicted; n != 0 {
		t.Errorf("%d clients were evicted", n)
	}
}

// TestMakingDoIsFairToErrors: a batch that is applied without a worker fails only its bad write, and reads report theirs.
func TestMakingDoIsFairToErrors(t *testing.T) {
	dev := newMemDevice(64 << 20)
	s := serveThree(t, dev, 48<<20)
	exhaust(t, s)
	dev.fail = failAt(8192)
	dev.slow.Store(true)
	c := s.attach(t, true)
	var all []byte
	for i := range uint64(4) {
		all = append(all, append(header(0, 1, i, i*4096, 512), make([]byte, 512)...)...)
	}
	c.send(all)
	c.expect(0, 0)
	c.expect(1, 0)
	if errno, _ := c.errorChunk(2); errno != enospc {
		t.Errorf("errno %d", errno)
	}
	c.expect(3, 0)
	c.send(header(0, 0, 9, 8192, 512))
	if errno, _ := c.errorChunk(9); errno != enospc {
		t.Errorf("read: errno %d", errno)
	}
}

// TestMediumRequestsDoNotWaitForLongOnes: clients stall with 32 MiB reads that they do not take, another waits for the same, and requests of
// 1 MiB go on behind it.
func TestMediumRequestsDoNotWaitForLongOnes(t *testing.T) {
	dev := newMemDevice(64 << 20)
	s := serveDevice(t, dev, Options{StallTimeout: time.Hour})
	for range 2 { // the first holds the memory, the second waits for it
		s.attach(t, false).send(header(0, 0, 1, 0, 32<<20))
	}
	eventually(t, "somebody waits for 32 MiB", func() bool { return s.memory.waiting.Load() == 1 })
	c := s.attach(t, false)
	for i := range uint64(20) {
		c.send(header(0, 0, i, 0, 1<<20))
		c.expect(i, 0)
		c.recv(1 << 20)
		c.send(header(0, 1, i, 0, 1<<20), make([]byte, 1<<20))
		c.expect(i, 0)
	}
}

// TestOneExportCannotTakeItAll: the connections of one export stall with all the buffers that they can get; requests of 1 MiB to another go on.
func TestOneExportCannotTakeItAll(t *testing.T) {
	dev := newMemDevice(64 << 20)
	dev.slow.Store(true)
	s := serveThree(t, dev, 64<<20)
	for range 40 {
		c := s.attachTo(t, "first")
		go func() { _, _ = c.nc.Write(bytes.Repeat(header(0, 0, 1, 0, 2<<20), 20)) }()
	}
	eventually(t, "somebody waits for memory", func() bool { return s.memory.waiting.Load() > 20 })
	c := s.attachTo(t, "disk")
	for i := range uint64(20) {
		c.send(header(0, 0, i, 0, 1<<20))
		c.expect(i, 0)
		c.recv(1 << 20)
		c.send(header(0, 1, i, 0, 2<<20), make([]byte, 2<<20))
		c.expect(i, 0)
	}
	if n := s.Stats().Evicted; n != 0 {
		t.Errorf("%d clients were evicted", n)
	}
}

// TestFullLeaseComesBack: a busy client that had to make do with a small lease gets a full one when there is one.
func TestFullLeaseComesBack(t *testing.T) {
	s := serveThree(t, newMemDevice(1<<20), 48<<20)
	var hogs []*client
	for i := range s.memory.fullLeases {
		c := s.attachTo(t, []string{"first", "second"}[i%2])
		c.send(header(0, 0, 1, 0, 4096)[:20])
		hogs = append(hogs, c)
	}
	eventually(t, "no full lease is left", func() bool { return s.memory.lent.Load() >= s.memory.fullLeases })
	c := s.attach(t, false)
	c.send(header(0, 0, 1, 0, 4096))
	c.expect(1, 0)
	c.recv(4096)
	for _, h := range hogs {
		_ = h.nc.Close()
	}
	eventually(t, "the leases are back", func() bool { return s.memory.lent.Load() == 0 })
	c.send(header(0, 1, 2, 0, 20<<10), make([]byte, 20<<10-1))
	eventually(t, "a full lease is lent", func() bool { return s.memory.lent.Load() == 1 })
	c.send([]byte{0})
	c.expect(2, 0)
}

// TestLongReadsComeInPieces: clients that stall with reads of 32 MiB sit on a piece each, and others with the same reads go on.
func TestLongReadsComeInPieces(t *testing.T) {
	dev := newMemDevice(64 << 20)
	dev.fill(func(i int) byte { return byte(i>>12) | 1 })
	dev.slow.Store(true)
	s := serveThree(t, dev, 48<<20)
	for range 8 {
		c := s.attach(t, true)
		c.send(header(0, 0, 1, 0, 32<<20))
	}
	w, _, _ := s.attachWide(t)
	w.Request(0, 0, 2, 100, 32<<20)
	if got := w.Content(2, 100, 32<<20); !bytes.Equal(got, dev.data[100:100+32<<20]) {
		t.Error("extended: wrong data")
	}
	c := s.attach(t, true)
	c.send(header(0, 0, 3, 4096, 32<<20-1))
	got, kinds := c.readChunks(3, 4096, 32<<20-1)
	if !bytes.Equal(got, dev.data[4096:4096+32<<20-1]) || len(kinds) != 32 {
		t.Errorf("structured: wrong data, or %d chunks", len(kinds))
	}
	if n := s.Stats().Evicted; n != 0 || s.memory.waiting.Load() != 0 {
		t.Errorf("%d clients evicted, %d wait", n, s.memory.waiting.Load())
	}
	c = serveDevice(t, dev, Options{}).attach(t, true)
	c.send(header(df, 0, 4, 0, 32<<20)) // one chunk, as it is wanted so
	if _, kinds := c.readChunks(4, 0, 32<<20); len(kinds) != 1 {
		t.Errorf("DF: %d chunks", len(kinds))
	}
}

// TestPiecesEndWithAnError: the pieces before a bad one arrive, then the error ends the reply, and the connection goes on.
func TestPiecesEndWithAnError(t *testing.T) {
	dev := newMemDevice(64 << 20)
	dev.holes = true
	dev.fail = failAt(5 << 20)
	c := serveDevice(t, dev, Options{}).attach(t, true)
	c.send(header(0, 0, 1, 0, 16<<20))
	for i := range uint64(5) {
		if ch := c.chunk(); ch.kind != 2 || ch.flags != 0 || be.Uint64(ch.data) != i<<20 {
			t.Fatalf("piece %d: %+v", i, ch)
		}
	}
	if errno, _ := c.errorChunk(1); errno != enospc {
		t.Errorf("errno %d", errno)
	}
	c.send(header(0, 0, 2, 0, 4096))
	c.readChunks(2, 0, 4096)
}
