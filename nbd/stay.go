package nbd

import (
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What a reader does for a client in lockstep before it lets the runtime's poller wait for input.
const (
	spinTime  = 50 * time.Microsecond // it asks the socket over and over
	stayTime  = 200_000               // ns; then it waits in the kernel
	stayAfter = 8                     // requests that must come before it tries either again when nothing had come in that time
)

// stayers counts the readers of a process that spin or stay in the kernel, which are half as many as it has processors at most: the scheduler takes a processor back from a
// system call, but not at once.
var stayers atomic.Int32

// stay waits a moment for input, reads it into p as read(2) would, and fails with EAGAIN if none came. A client in lockstep asks again some microseconds after its reply. The
// way through the runtime's poller takes as long again, with the wake-ups of two or three threads; to sleep in the kernel costs one wake-up, of a processor that has gone idle
// meanwhile, and to spin none. So a client that is quick has the reader spin, for no longer than a wake-up is worth.
func (c *conn) stay(fd uintptr, p []byte) (n int, err error) {
	l := &c.step
	if l.single < aloneAfter || l.stayIn > 0 {
		return 0, syscall.EAGAIN
	}
	defer stayers.Add(-1)
	if int(stayers.Add(1)) > runtime.GOMAXPROCS(0)/2 {
		return 0, syscall.EAGAIN
	}
	if l.spinIn == 0 {
		for begin := time.Now(); time.Since(begin) < spinTime; {
			if n, err := syscall.Read(int(fd), p); err != syscall.EAGAIN {
				return n, err
			}
		}
		l.spinIn = stayAfter
	}
	c.poll = [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	c.pollFor = unix.Timespec{Nsec: stayTime}
	if n, err := unix.Ppoll(c.poll[:], &c.pollFor, nil); err != nil || n == 0 {
		l.stayIn = stayAfter
		return 0, syscall.EAGAIN
	}
	return syscall.Read(int(fd), p)
}
