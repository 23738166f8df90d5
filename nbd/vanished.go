package nbd

import (
	"net"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lookEvery is how often the server looks for clients that have gone while their requests wait.
const lookEvery = time.Second

// watch gives up what clients have left behind that are gone without a goodbye, until done is closed. A request may wait for minutes, for its rate or for room in the log; its client, come back on
// another connection, has repeated it meanwhile and may have written something newer to the same place. What the first connection left behind must not overwrite that.
func (s *Server) watch() {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-tick.C:
		}
		for _, c := range s.busy() {
			if c.vanished() {
				c.cancel()
			}
		}
	}
}

// busy returns the connections that have requests under way.
func (s *Server) busy() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*conn
	for c := range s.mu.conns {
		if c.unanswered.Load() > 0 || c.busy.Load() {
			all = append(all, c)
		}
	}
	return all
}

// vanished reports whether the client has closed its end, and there is nothing left to read of it. One that has said goodbye is owed its requests; so is one that has closed a unix socket for writing
// only.
func (c *conn) vanished() bool {
	if c.goodbye.Load() {
		return false
	}
	sc, ok := c.nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	gone := int16(unix.POLLHUP | unix.POLLERR)
	if _, local := c.nc.(*net.UnixConn); !local {
		gone |= unix.POLLRDHUP // all that is seen of a client beyond a network that has closed both ways
	}
	vanished := false
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(poll, 0); err != nil || n == 0 || poll[0].Revents&gone == 0 {
			return
		}
		unread, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		vanished = err == nil && unread == 0
	})
	return err == nil && vanished
}
