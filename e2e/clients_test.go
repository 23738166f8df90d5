package e2e

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestThousandConnections holds 1,000 idle clients, then lets each of them read: hvd's memory stays bounded, and another client is served.
func TestThousandConnections(t *testing.T) {
	d := startDaemon(t)
	d.disk("disk", "64MiB")
	fillDisk(t, d, "disk", 64<<20)
	d.settle()
	w := d.watch()
	before := d.anonymousBytes()
	clients := make([]*nbdClient, 1000)
	for i := range clients {
		clients[i] = openNBD(t, d.nbdSocket(), "disk")
	}
	idle := d.anonymousBytes()
	t.Logf("anonymous memory: %d MiB before, %d MiB with 1,000 idle clients", before>>20, idle>>20)
	if idle-before > 64<<20 {
		t.Errorf("1,000 idle clients take %d MiB", (idle-before)>>20)
	}
	var reading sync.WaitGroup // all ask at once for more than may be in flight
	for i, c := range clients {
		reading.Go(func() {
			if err := c.read(make([]byte, 1<<20), uint64(i%64)<<20); err != nil {
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	reading.Wait()
	busy := d.anonymousBytes()
	t.Logf("%d MiB after 1,000 reads of 1 MiB at once", busy>>20)
	if busy > 256<<20 {
		t.Errorf("hvd holds %d MiB of anonymous memory, allowed are 256", busy>>20)
	}
	w.testify()
}

// fillDisk writes random bytes over a whole export.
func fillDisk(t *testing.T, d *daemon, export string, size int) {
	t.Helper()
	c := openNBD(t, d.nbdSocket(), export)
	for off := 0; off < size; off += 4 << 20 {
		if err := c.write(randomBytes(off>>22, min(4<<20, size-off)), uint64(off)); err != nil {
			t.Fatalf("write %s at %d: %v", export, off, err)
		}
	}
	if err := c.flush(); err != nil {
		t.Fatal(err)
	}
}

// TestClientsThatStopReading ask for as much as they can and take no reply.
func TestClientsThatStopReading(t *testing.T) {
	t.Parallel() // it waits
	d := startDaemon(t, "--nbd-in-flight", "48MiB")
	d.disk("disk", "64MiB")
	fillDisk(t, d, "disk", 64<<20)
	w := d.watch()
	for range 2 {
		c := openNBD(t, d.nbdSocket(), "disk")
		_ = c.conn.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		for i := range 64 {
			if _, err := c.send(nbdRead, 0, uint64(i%2)<<25, 32<<20, nil); err != nil {
				break // hvd does not take more, as it should
			}
		}
	}
	for round := range 3 {
		c := openNBD(t, d.nbdSocket(), "disk")
		if err := c.read(make([]byte, 16<<20), uint64(round)<<24); err != nil {
			t.Errorf("a client that reads: %v", err)
		}
	}
	if got := d.anonymousBytes(); got > 256<<20 {
		t.Errorf("hvd holds %d MiB of anonymous memory, allowed are 256", got>>20)
	}
	w.testify()
}

// TestTrafficThatIsNoNBD sends what no client sends. hvd answers or hangs up, and goes on serving.
func TestTrafficThatIsNoNBD(t *testing.T) {
	d := startDaemon(t)
	d.disk("disk", "1MiB")
	w := d.watch()
	for name, text := range map[string]string{
		"http": "GET / HTTP/1.1\r\nHost: x\r\n\r\n", "zeroes": strings.Repeat("\x00", 4096), "noise": string(randomBytes(9, 64<<10)), "nothing": "",
		"huge option":      "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff",
		"option for ever":  "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x07\x00\x00\x10\x00",
		"unknown flags":    "\xff\xff\xff\xff",
		"long export name": "\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x01\x00\x00\x20\x00" + strings.Repeat("x", 8192),
	} {
		conn, err := net.Dial("unix", d.nbdSocket())
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, _ = io.WriteString(conn, text) // hvd may hang up before the end
		_ = conn.(*net.UnixConn).CloseWrite()
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		if n, err := io.Copy(io.Discard, conn); err != nil && !strings.Contains(err.Error(), "reset") || n > 4096 {
			t.Errorf("%s: %d bytes, %v; want hvd to hang up", name, n, err)
		}
		conn.Close()
	}
	c := openNBD(t, d.nbdSocket(), "disk")
	if err := c.do(99, 0, 0, 0, nil); !errors.Is(err, errInvalid) {
		t.Errorf("unknown command: %v", err)
	}
	if err := c.do(nbdRead, 1<<15, 0, 512, nil); !errors.Is(err, errInvalid) {
		t.Errorf("unknown flag: %v", err)
	}
	if err := c.do(nbdRead, 0, 0, 1<<30, nil); !errors.Is(err, errInvalid) {
		t.Errorf("a read of 1 GiB: %v", err)
	}
	if err := c.write(make([]byte, 512), 0); err != nil {
		t.Errorf("after refusals: %v", err)
	}
	// A write whose payload never comes whole must change nothing.
	whole := randomBytes(1, 64<<10)
	if err := errors.Join(c.write(whole, 0), c.flush()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.send(nbdWrite, 0, 0, 64<<10, make([]byte, 32<<10)); err != nil {
		t.Fatal(err)
	}
	c.conn.Close()
	cut := openNBD(t, d.nbdSocket(), "disk")
	back := make([]byte, 64<<10)
	if err := cut.read(back, 0); err != nil || string(back) != string(whole) {
		t.Errorf("a write that was cut off shows: %v", err)
	}
	if _, err := cut.conn.Write(append(binary.BigEndian.AppendUint32(nil, 0xdeadbeef), make([]byte, 24)...)); err != nil {
		t.Fatal(err)
	}
	if n, err := cut.conn.Read(back); err == nil {
		t.Errorf("a wrong magic is answered with %d bytes", n)
	}
	w.testify()
}
