package nbd

import (
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestStay: a reader spins for a client that is quick, sleeps in the kernel for one that is not, and leaves either to the poller for a while when nothing came.
func TestStay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))) // a single processor is left to others
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	c, p := new(conn), make([]byte, 16)
	stay := func() (n int, took time.Duration, err error) {
		begin := time.Now()
		n, err = c.stay(uintptr(fds[0]), p)
		return n, time.Since(begin), err
	}
	send := func() {
		if _, err := unix.Write(fds[1], []byte("request")); err != nil {
			t.Error(err)
		}
	}
	c.step.single = aloneAfter - 1
	send()
	if _, _, err := stay(); err != syscall.EAGAIN {
		t.Fatalf("stayed for a client that is not in lockstep: %v", err)
	}
	c.step.single = aloneAfter
	if n, _, err := stay(); n != 7 || err != nil {
		t.Fatalf("%d bytes, %v of a request that was there", n, err)
	}
	if c.step.spinIn != 0 {
		t.Error("does not spin any more for a client that is quick")
	}
	go func() {
		time.Sleep(spinTime + 20*time.Microsecond) // and what the timer adds; the kernel waits for 200 µs longer
		send()
	}()
	if n, _, err := stay(); err == nil && (n != 7 || c.step.stayIn != 0) {
		t.Fatalf("%d bytes, leaves it to the poller for %d requests", n, c.step.stayIn)
	} else if err != nil && c.step.stayIn != stayAfter {
		t.Fatal(err) // the sender was late, and the reader tried again at once
	}
	time.Sleep(10 * time.Millisecond)
	_, _ = unix.Read(fds[0], p) // of a sender that was late
	c.step.stayIn, c.step.spinIn = 0, 0

	spun := 0
	for range 10 * stayAfter {
		before := c.step.spinIn
		_, took, err := stay()
		if err != syscall.EAGAIN {
			t.Fatalf("%v without input", err)
		}
		if took >= spinTime {
			spun++
		}
		if before == 0 && (c.step.spinIn != stayAfter || c.step.stayIn != stayAfter) {
			t.Fatalf("goes on after nothing came: %+v", c.step)
		}
		c.saw(CmdRead)
		c.step.requests = 0
	}
	if spun < 10 {
		t.Errorf("tried %d times within %d requests, want each eighth", spun, 10*stayAfter)
	}
	if n := stayers.Load(); n != 0 {
		t.Errorf("%d readers are left as staying", n)
	}
}
