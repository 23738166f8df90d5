package nbd

import (
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What a reader does for a client in lockstep before it lets the runtime's poller wait for input.
const (
	stayTime  = 200_000 // ns
	stayAfter = 8       // requests that must come before it tries again when nothing had come in that time
)

// stayers counts the readers of a process that stay in the kernel, which are half as many as it has processors at most: the scheduler takes a processor back from a system
// call, but not at once.
var stayers atomic.Int32

// stay waits for input in the kernel for a moment, and reports whether some came. A client in lockstep asks again some microseconds after its reply; the way through the
// runtime's poller takes as long again, with the wake-ups of two or three threads.
func (c *conn) stay(fd uintptr) bool {
	l := &c.step
	if l.single < aloneAfter || l.stayIn > 0 {
		return false
	}
	defer stayers.Add(-1)
	if int(stayers.Add(1)) > runtime.GOMAXPROCS(0)/2 {
		return false
	}
	c.poll = [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	c.pollFor = unix.Timespec{Nsec: stayTime}
	n, err := unix.Ppoll(c.poll[:], &c.pollFor, nil)
	if err != nil || n == 0 {
		l.stayIn = stayAfter
		return false
	}
	return true
}
