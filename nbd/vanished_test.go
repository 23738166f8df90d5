package nbd

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// TestWhatAVanishedClientLeftBehind: a write that waits for minutes is given up when its client closes the socket, whether a worker or the reader has it, and over TCP too. It is done if the client said
// goodbye, or still listens.
func TestWhatAVanishedClientLeftBehind(t *testing.T) {
	for _, test := range []struct {
		name  string
		alone bool // the reader does it
		tcp   bool
		leave func(c *client)
		done  bool
	}{
		{name: "closed", leave: func(c *client) { _ = c.nc.Close() }},
		{name: "closed while the reader writes", alone: true, leave: func(c *client) { _ = c.nc.Close() }},
		{name: "closed over TCP", tcp: true, leave: func(c *client) { _ = c.nc.Close() }},
		{name: "goodbye", leave: func(c *client) { c.send(header(0, 2, 9, 0, 0)); _ = c.nc.Close() }, done: true},
		{name: "half closed", leave: func(c *client) { _ = c.nc.(*net.UnixConn).CloseWrite() }, done: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dev := newMemDevice(1 << 20)
			dev.slow.Store(true)
			s := serveDevice(t, dev, Options{})
			var c *client
			if test.tcp {
				c = s.attachTCP(t)
			} else {
				c = s.attach(t, false)
			}
			if test.alone {
				for i := range uint64(2 * aloneAfter) {
					c.send(header(0, 1, i, 0, 4), "here")
					c.expect(i, 0)
				}
			}
			dev.gate, dev.entered = make(chan struct{}), make(chan string, 8)
			c.send(header(0, 1, 1000, 0, 4), "late")
			<-dev.entered
			test.leave(c)
			if !test.done {
				eventually(t, "the connection is gone", func() bool { return s.Stats().Connections == 0 })
				close(dev.gate)
				if dev.starts("late") {
					t.Error("what the client had left behind was written after it was gone")
				}
				return
			}
			time.Sleep(2*lookEvery + lookEvery/2)
			close(dev.gate)
			eventually(t, "the connection is gone", func() bool { return s.Stats().Connections == 0 })
			if !dev.starts("late") {
				t.Error("a write was given up though its client is owed it")
			}
		})
	}
}

func (d *memDevice) starts(with string) bool {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return string(d.data[:len(with)]) == with
}

// attachTCP is attach over TCP.
func (s *served) attachTCP(t *testing.T) *client {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.Serve(context.Background(), l) }()
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = nc.Close() })
	c := newClient(t, nc)
	c.greet(3)
	c.sendOption(1, []byte("disk"))
	c.recv(10)
	return c
}

// pacedDevice is held to a rate: what it may not do at once waits until pass is closed.
type pacedDevice struct {
	*memDevice
	pass chan struct{}
}

func (d pacedDevice) Limited() bool { return true }

func (d pacedDevice) AwaitRate(ctx context.Context, _ bool, _ int64) error {
	d.entered <- "rate"
	select {
	case <-d.pass:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// TestAPacedDeviceHoldsNoMemoryOfOthers: several clients have as much under way as they may on a device that lets nothing pass, and one of another device has 32 MiB read and written meanwhile.
func TestAPacedDeviceHoldsNoMemoryOfOthers(t *testing.T) {
	const size = 64 << 20
	slow := pacedDevice{newMemDevice(size), make(chan struct{})}
	slow.slow.Store(true)
	slow.gate, slow.entered = slow.pass, make(chan string, 1000)
	tab := newTable(Export{Name: "disk", Device: slow}, Export{Name: "first", Device: newMemDevice(size)})
	s := serveTable(t, tab, Options{InFlightBytes: 64 << 20, StallTimeout: time.Hour})
	var greedy []*client
	for i := range 6 {
		c := s.attachTo(t, "disk")
		greedy = append(greedy, c)
		length := []uint32{4096, 1 << 20, 8 << 20, 32 << 20}[i%4]
		_ = c.nc.SetWriteDeadline(time.Now().Add(time.Second))
		for k := range uint64(40) {
			if i%2 == 0 {
				_, _ = c.nc.Write(header(0, 0, k, 0, length))
				continue
			}
			if _, err := c.nc.Write(append(header(0, 1, k, 0, length), make([]byte, length)...)); err != nil {
				break // the server reads no more of it
			}
		}
	}
	c := s.attachTo(t, "first")
	for k := range uint64(4) {
		c.send(header(0, 1, k, 0, 32<<20), make([]byte, 32<<20))
		c.expect(k, 0)
		c.send(header(0, 0, k, 0, 32<<20))
		c.expect(k, 0)
		c.recv(32 << 20)
	}
	for _, g := range greedy {
		_ = g.nc.Close()
	}
	close(slow.pass)
}

// TestATricklerIsEvicted: a client that brings a byte now and then of what it announced holds memory that others wait for, and loses it as one that brings nothing does: a buffer of its own, or its lease.
func TestATricklerIsEvicted(t *testing.T) {
	for _, test := range []struct {
		announced, read uint32
		noLeases        bool // for the client that works
	}{{announced: 32 << 20, read: 32 << 20}, {announced: 20 << 10, read: 4096, noLeases: true}} {
		s := serveDevice(t, newMemDevice(64<<20), Options{InFlightBytes: 48 << 20, StallTimeout: 200 * time.Millisecond})
		trickler := s.attach(t, false)
		trickler.send(header(0, 1, 1, 0, test.announced), "x")
		stop, gone := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(gone)
			for {
				select {
				case <-stop:
					return
				case <-time.After(10 * time.Millisecond):
				}
				if _, err := trickler.nc.Write([]byte{1}); err != nil {
					return
				}
			}
		}()
		time.Sleep(50 * time.Millisecond)
		s.memory.onlySmall.Store(test.noLeases)
		c := s.attach(t, false)
		for k, end := uint64(0), time.Now().Add(20*time.Second); s.Stats().Evicted == 0 && time.Now().Before(end); k++ {
			c.send(header(0, 0, k, 0, test.read))
			c.expect(k, 0)
			c.recv(int(test.read))
		}
		if s.Stats().Evicted != 1 {
			t.Errorf("a client that trickles %d bytes is still there", test.announced)
		}
		close(stop)
		<-gone
	}
}

// TestCommandsAtWorkersAreBounded: clients with as many trims under way as they may leave a flush of another volume its worker, and theirs are all done in the end.
func TestCommandsAtWorkersAreBounded(t *testing.T) {
	dev := newMemDevice(1 << 20)
	dev.gate, dev.entered = make(chan struct{}), make(chan string, maxCommands+1000)
	other := newMemDevice(1 << 20)
	tab := newTable(Export{Name: "disk", Tenant: "volume", Device: dev}, Export{Name: "first", Tenant: "volume", Device: dev}, Export{Name: "second", Device: other})
	s := serveTable(t, tab, Options{MaxSlow: 128})
	const clients = maxCommands/128 + 4
	var all []*client
	for i := range clients {
		c := s.attachTo(t, []string{"disk", "first"}[i%2]) // of one volume: one share
		for k := range uint64(128) {
			c.send(header(0, 4, k, 0, 4096))
		}
		all = append(all, c)
	}
	eventually(t, "the share is used up", func() bool { return s.memory.commands.Load() == maxCommands/4*3 })
	c := s.attachTo(t, "second")
	c.send(header(0, 3, 7, 0, 0))
	c.expect(7, 0)
	if n := s.memory.commands.Load(); n > maxCommands/4*3 {
		t.Errorf("%d commands at workers", n)
	}
	close(dev.gate)
	for _, c := range all {
		for range 128 {
			if _, errno := c.simple(); errno != 0 {
				t.Fatalf("a trim failed with %d", errno)
			}
		}
	}
	eventually(t, "none is counted any more", func() bool { return s.memory.commands.Load() == 0 })
}

// settling is a connection that wants no client beyond the handshake.
type settling struct{ net.Conn }

func (settling) Settle() error { return block.ErrInUse }

// TestSettlerIsAsked: a connection whose listener has no room for it beyond the handshake is cut off there.
func TestSettlerIsAsked(t *testing.T) {
	failed := make(chan error, 1)
	s := serveDevice(t, newMemDevice(4096), Options{Events: Events{HandshakeFailed: func(_ net.Addr, err error) { failed <- err }}})
	near, far := net.Pipe()
	s.admit(settling{far}, Door{Exports: s.table})
	c := newClient(t, near)
	c.greet(3)
	c.sendOption(1, []byte("disk"))
	if err := <-failed; !errors.Is(err, block.ErrInUse) {
		t.Errorf("cut off for %v", err)
	}
	c.closed()
}
