package fuzz

import (
	"bytes"
	"context"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// nbdPatience is how long the server may take to answer an input before that counts as a hang.
const nbdPatience = 2 * time.Minute

// nbdServer serves one connection after another to one fixed device.
type nbdServer struct {
	dev      *fixedDevice
	held     atomic.Int64
	acquired atomic.Int64
	door     nbd.Door
	nbd      *nbd.Server
	l        *oneListener
}

func newNBDServer(t *testing.T) *nbdServer {
	s := &nbdServer{dev: &fixedDevice{}, l: &oneListener{conns: make(chan net.Conn), closed: make(chan struct{})}}
	var err error
	if s.nbd, err = nbd.NewServer(s, nbd.Options{}); err != nil {
		t.Fatal(err)
	}
	return s
}

// run serves one end of a socket pair while client has the other, then checks that nothing is left.
func (s *nbdServer) run(t *testing.T, client func(net.Conn)) {
	near, far := socketPair(t)
	served := make(chan error, 1)
	go func() { served <- s.nbd.ServeDoor(context.Background(), s.l, s.door) }()
	s.l.conns <- far
	client(near)
	_ = near.Close()
	ctx, cancel := context.WithTimeout(context.Background(), nbdPatience)
	defer cancel()
	if err := s.nbd.Shutdown(ctx); err != nil {
		t.Fatalf("server hangs: %v", err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if n := s.held.Load(); n != 0 {
		t.Fatalf("export is held %d times after the client has gone", n)
	}
}

// Acquire knows "disk" only.
func (s *nbdServer) Acquire(name string) (nbd.Export, func(), error) {
	if name != "disk" {
		return nbd.Export{}, nil, block.ErrNotFound
	}
	s.acquired.Add(1)
	s.held.Add(1)
	return nbd.Export{Name: name, Device: s.dev}, func() { s.held.Add(-1) }, nil
}

// List returns the one export.
func (s *nbdServer) List() []nbd.Export { return []nbd.Export{{Name: "disk", Device: s.dev}} }

// fixedDevice is 64 KiB and 1 byte of 0xdd that forgets what is written. It checks that only valid requests reach it.
type fixedDevice struct{ slow bool }

const fixedSize = 64<<10 + 1

func (d *fixedDevice) check(off, n uint64) {
	if n == 0 || off > fixedSize || n > fixedSize-off {
		panic("a request outside the device came through")
	}
}

func (d *fixedDevice) Size() uint64   { return fixedSize }
func (d *fixedDevice) ReadOnly() bool { return false }

func (d *fixedDevice) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if d.slow {
		return holes, block.ErrWouldBlock
	}
	return d.ReadAt(context.Background(), p, off, holes)
}

func (d *fixedDevice) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	d.check(off, uint64(len(p)))
	copy(p, bytes.Repeat([]byte{0xdd}, len(p)))
	return holes, nil
}

func (d *fixedDevice) TryWrite(batch []nbd.Write, fua bool) error {
	if d.slow {
		return block.ErrWouldBlock
	}
	return d.Write(context.Background(), batch, fua)
}

func (d *fixedDevice) Write(_ context.Context, batch []nbd.Write, _ bool) error {
	for _, w := range batch {
		d.check(w.Off, uint64(len(w.Data)))
	}
	return nil
}

func (d *fixedDevice) Trim(_ context.Context, r block.Range, _ bool) error {
	d.check(r.Off, r.Len)
	return nil
}

func (d *fixedDevice) Zero(_ context.Context, r block.Range, _, _ bool) error {
	d.check(r.Off, r.Len)
	return nil
}

func (d *fixedDevice) Flush(context.Context) error { return nil }

func (d *fixedDevice) Prefetch(_ context.Context, r block.Range) error {
	d.check(r.Off, r.Len)
	return nil
}

// MetaContexts offers two contexts and a name that is none.
func (d *fixedDevice) MetaContexts() []string {
	return []string{"base:allocation", "x-hv:heat", "no context"}
}

// BlockStatus tells sectors of alternating status, and one run beyond the end.
func (d *fixedDevice) BlockStatus(_ context.Context, name string, r block.Range, emit func(uint64, uint32) bool) error {
	d.check(r.Off, r.Len)
	for at := r.Off; at < fixedSize && emit(block.SectorSize, uint32(at>>9&1)); at += block.SectorSize {
	}
	return nil
}

// oneListener hands out the connections that it is given.
type oneListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   atomic.Bool
}

func (l *oneListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneListener) Close() error {
	if l.once.CompareAndSwap(false, true) {
		close(l.closed)
	}
	return nil
}

func (l *oneListener) Addr() net.Addr { return &net.UnixAddr{Name: "pair", Net: "unix"} }

// socketPair returns two connected unix sockets.
func socketPair(t *testing.T) (a, b net.Conn) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	return conns[0], conns[1]
}
