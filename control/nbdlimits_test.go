package control

import (
	"io"
	"net"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/nbdtest"
)

// askRead sends a READ with a compact header.
func askRead(t *testing.T, conn net.Conn, cookie uint64, length uint32) {
	t.Helper()
	if _, err := conn.Write(nbdtest.Pack(uint32(0x25609513), uint16(0), uint16(0), cookie, uint64(0), length)); err != nil {
		t.Fatal(err)
	}
}

// takeRead receives a simple reply with its data.
func takeRead(t *testing.T, conn net.Conn, length int) {
	t.Helper()
	p := make([]byte, 16+length)
	if _, err := io.ReadFull(conn, p); err != nil {
		t.Fatal(err)
	}
	if errno := p[4] | p[5] | p[6] | p[7]; errno != 0 {
		t.Fatalf("a read failed: % x", p[:16])
	}
}

// A client that does not get on with its handshake is cut off after nbd.handshake-timeout, on every socket, and one that has done it stays.
func TestHandshakeTimeout(t *testing.T) {
	cfg := testConfig(t)
	cfg.NBD.Listen, cfg.NBD.Handshake = "127.0.0.1:0", time.Second
	c, _ := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	served := dialNBD(t, cfg.NBD.Socket, "v")
	if served == nil {
		t.Fatal("not served")
	}
	silent := map[string]net.Conn{}
	for network, address := range map[string]string{"unix": cfg.NBD.Socket, "tcp": c.tcp.address} {
		conn, err := net.Dial(network, address)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if _, err := io.ReadFull(conn, make([]byte, 18)); err != nil {
			t.Fatalf("%s: greeting: %v", network, err)
		}
		_ = conn.SetDeadline(time.Now().Add(8 * time.Second)) // less than the default
		silent[network] = conn
	}
	for network, conn := range silent {
		if n, err := conn.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: %d bytes and %v, want to be cut off", network, n, err)
		}
	}
	askRead(t, served, 1, 4096)
	takeRead(t, served, 4096)
}

// A client that holds memory and takes no replies makes room for another after nbd.stall-timeout.
func TestStallTimeout(t *testing.T) {
	cfg := testConfig(t)
	cfg.NBD.InFlight, cfg.NBD.StallTimeout = 48<<20, 300*time.Millisecond
	c, _ := start(t, cfg, newFakeEngine())
	if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 32 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v"}); err != nil {
		t.Fatal(err)
	}
	stalled, other := dialNBD(t, cfg.NBD.Socket, "v"), dialNBD(t, cfg.NBD.Socket, "v")
	askRead(t, stalled, 1, 32<<20)
	if _, err := io.ReadFull(stalled, make([]byte, 16)); err != nil { // it holds its memory now
		t.Fatal(err)
	}
	_ = other.SetDeadline(time.Now().Add(8 * time.Second)) // less than the default
	askRead(t, other, 2, 32<<20)
	takeRead(t, other, 32<<20)
	if got := c.nbd.Stats().Evicted; got != 1 {
		t.Errorf("%d clients were dropped, want 1", got)
	}
}

// With nbd.max-requests of 1 a connection has one request at a time waiting for the store.
func TestMaxRequests(t *testing.T) {
	const requests, delay = 4, 100 * time.Millisecond
	cfg := testConfig(t)
	cfg.NBD.MaxRequests = 1
	c, _ := start(t, cfg, newFakeEngine())
	newVolume(t, c, "v")
	if _, _, err := c.Attach(t.Context(), AttachSpec{Volume: "v", Inject: "delay=" + delay.String()}); err != nil {
		t.Fatal(err)
	}
	conn := dialNBD(t, cfg.NBD.Socket, "v")
	began := time.Now()
	for i := range uint64(requests) {
		askRead(t, conn, i, 4096)
	}
	for range requests {
		takeRead(t, conn, 4096)
	}
	if took := time.Since(began); took < requests*delay {
		t.Errorf("%d requests that take %v each took %v: they were done together", requests, delay, took)
	}
}
