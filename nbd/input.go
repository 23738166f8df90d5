package nbd

import (
	"io"
	"syscall"
	"time"
)

// fill waits for input and appends it to the input buffer. Nothing may be unsettled, since it moves unread input to the front of the buffer.
// While no part of a request is there it waits without a lease.
func (c *conn) fill() error {
	if c.ls != nil {
		if c.r > 0 {
			c.partial = 0 // a request has been taken from the input since
		}
		if c.w = copy(c.ls.in, c.ls.in[c.r:c.w]); c.w == 0 && c.ls.floor() {
			c.dropLease() // the next one may be full
		}
		c.r = 0
	}
	if c.w > 0 {
		if c.partial == 0 {
			c.partial = time.Now().UnixNano()
		}
		c.readStall.Store(c.partial)
		defer c.readStall.Store(0)
	} else {
		c.partial = 0
	}
	if c.raw == nil {
		return c.fillPlain()
	}
	return c.fillRaw()
}

// fillRaw is fill for a socket: the buffer is taken when the socket is readable and not before.
func (c *conn) fillRaw() error {
	if err := c.raw.Read(c.readable); err != nil {
		return err
	}
	c.makingDo()
	c.fillMax = 0
	switch {
	case c.gotErr != nil:
		return c.gotErr
	case c.got == 0 && c.w > 0:
		return io.ErrUnexpectedEOF
	case c.got == 0:
		return io.EOF
	}
	c.w += c.got
	return nil
}

// readReady is called by the runtime's poller, first at once and then whenever the socket may be readable. It returns false to wait on. It
// must not block, but for a moment.
func (c *conn) readReady(fd uintptr) bool {
	if c.ls == nil {
		c.ls = c.srv.memory.lend(c.tenant)
	}
	p := c.ls.in[c.w:]
	if c.fillMax > 0 {
		p = p[:min(len(p), c.fillMax)]
	}
	n, err := syscall.Read(int(fd), p)
	if err == syscall.EAGAIN {
		n, err = c.stay(fd, p)
	}
	for err == syscall.EINTR {
		n, err = syscall.Read(int(fd), p)
	}
	if err == syscall.EAGAIN {
		if c.w == 0 {
			c.dropLease()
		}
		return false
	}
	c.got, c.gotErr = n, err
	return true
}

// fillPlain is fill for a connection that is not a plain socket: TLS, or a pipe in a test. It waits with room for one header.
func (c *conn) fillPlain() error {
	if c.w == 0 {
		c.dropLease()
		n, err := c.stream.Read(c.head[:])
		if n == 0 {
			return noProgress(err)
		}
		c.ls = c.srv.memory.lend(c.tenant)
		c.makingDo()
		c.w = copy(c.ls.in, c.head[:n])
		return nil
	}
	n, err := c.stream.Read(c.ls.in[c.w:])
	c.w += n
	if n == 0 {
		if err == io.EOF {
			return io.ErrUnexpectedEOF
		}
		return noProgress(err)
	}
	return nil
}

// makingDo asks for relief if the lease is small for want of others.
func (c *conn) makingDo() {
	if c.ls.floor() {
		c.srv.memory.makingDo()
	}
}

// dropLease gives the lease back, if there is one, with whatever is in it.
func (c *conn) dropLease() {
	if c.ls != nil {
		c.srv.memory.returnLease(c.ls)
		c.ls, c.r, c.w, c.o = nil, 0, 0, 0
	}
}

// noProgress returns err, or an error if a Read returned nothing at all.
func noProgress(err error) error {
	if err == nil {
		return io.ErrNoProgress
	}
	return err
}

// progress is how many bytes a client must take or bring to count as one that moves. Each byte by itself would let a client hold 32 MiB of the server's memory for a year.
const progress = 256 << 10

// readFull fills p from the input that is buffered and then from the connection. Nothing may be unsettled.
func (c *conn) readFull(p []byte) error {
	n := copy(p, c.ls.in[c.r:c.w])
	c.r += n
	defer c.readStall.Store(0)
	for next := n; n < len(p); {
		if n >= next {
			c.readStall.Store(time.Now().UnixNano())
			next = n + progress
		}
		m, err := c.stream.Read(p[n:])
		n += m
		if m == 0 {
			return noProgress(err)
		}
	}
	return nil
}

// discard reads n bytes and throws them away, in the memory of the input buffer.
func (c *conn) discard(n int) error {
	buffered := min(n, c.w-c.r)
	c.r += buffered
	if n -= buffered; n == 0 {
		return nil
	}
	if err := c.settle(); err != nil {
		return err
	}
	c.r, c.w = 0, 0
	for n > 0 {
		m := min(n, len(c.ls.in))
		if err := c.readFull(c.ls.in[:m]); err != nil {
			return err
		}
		n -= m
	}
	return nil
}
