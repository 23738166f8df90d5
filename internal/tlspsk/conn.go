package tlspsk

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Limits on what is done under one secret. AES-GCM may protect 2^24.5 full records (RFC 8446, 5.5): half of that is left when a direction is renewed, and
// whoever does not renew his when asked has twice the time.
const (
	recordsPerSecret = 1 << 23
	maxUseless       = 16 // records in a row that bring no data
)

// Conn is a connection under TLS. One Read and one Write may be under way at once. What comes after a failed Write is lost, as with any stream.
type Conn struct {
	nc       net.Conn
	identity string
	renewAt  uint64 // records under one secret

	// What the reader leaves for the next Write.
	answer atomic.Bool // the peer asked for a KeyUpdate
	ask    atomic.Bool // the peer is to be asked for one
	dead   atomic.Bool // the reader gave up

	in  input
	out output
}

// input is the reading half.
type input struct {
	sync.Mutex
	half
	ready   bool // the handshake is done
	head    [recordHeader]byte
	headLen int
	raw     *rawBuffer // nil while nothing is there
	r, w    int        // what is there and was not looked at is raw[r:w]
	plain   []byte     // data not yet read by the caller, in raw[:r]
	message []byte     // a part of a handshake message
	useless int
	asked   bool
	err     error
}

// output is the writing half.
type output struct {
	sync.Mutex
	half
	err error
}

func newConn(nc net.Conn) *Conn { return &Conn{nc: nc, renewAt: recordsPerSecret} }

// Identity is that of the key which the peer has proved to hold.
func (c *Conn) Identity() string { return c.identity }

// LocalAddr implements net.Conn.
func (c *Conn) LocalAddr() net.Addr { return c.nc.LocalAddr() }

// RemoteAddr implements net.Conn.
func (c *Conn) RemoteAddr() net.Addr { return c.nc.RemoteAddr() }

// SetDeadline implements net.Conn. A Read that ran out of time can be repeated, a Write cannot.
func (c *Conn) SetDeadline(t time.Time) error { return c.nc.SetDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.nc.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.nc.SetWriteDeadline(t) }

// closeTime is how long a peer that does not read can delay the end.
const closeTime = 5 * time.Second

// CloseWrite tells the peer that nothing more will come (close_notify). It waits for a Write that is under way, 5 s at most.
func (c *Conn) CloseWrite() error {
	if err := c.nc.SetWriteDeadline(time.Now().Add(closeTime)); err != nil {
		return err
	}
	c.out.Lock()
	defer c.out.Unlock()
	return c.closeWriteLocked()
}

func (c *Conn) closeWriteLocked() error {
	if c.out.err != nil {
		return c.out.err
	}
	err := c.sendAlertLocked(alertCloseNotify)
	c.out.err = net.ErrClosed
	return err
}

// Close implements net.Conn. The peer is told first, unless a Write is under way.
func (c *Conn) Close() error {
	if c.out.TryLock() {
		if c.nc.SetWriteDeadline(time.Now().Add(closeTime)) == nil {
			_ = c.closeWriteLocked() // the connection ends either way
		}
		c.out.Unlock()
	}
	return c.nc.Close()
}
