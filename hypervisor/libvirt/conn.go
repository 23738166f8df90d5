package libvirt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Bounds of a message of the protocol, in bytes: its length and header, and what libvirt sends at most.
const (
	minMessage = 28
	maxMessage = 64 << 20
)

const (
	dialTime = 10 * time.Second // for libvirtd to take a connection
	endTime  = 2 * time.Second  // for what goes on at a connection to see that it was cut
)

// Conn is a libvirtd that is spoken to. It may be used by several goroutines. A connection that ended, by a restart of libvirtd for one, is made anew with the next call.
type Conn struct {
	place Place

	mu struct {
		sync.Mutex
		session *session // nil: none yet, or it ended
	}
}

// session is one connection.
type session struct {
	lib  *libvirt.Libvirt
	conn *boundedConn
}

// Open connects to the first socket of a place at which somebody is.
func Open(ctx context.Context, p Place) (*Conn, error) {
	c := &Conn{place: p}
	_, err := c.session(ctx)
	return c, err
}

// Close ends the connection.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.session == nil {
		return nil
	}
	err := c.mu.session.end()
	c.mu.session = nil
	return err
}

// end cuts the connection and waits for its goroutines, for a moment.
func (s *session) end() error {
	err := s.conn.Close()
	select {
	case <-s.lib.Disconnected():
	case <-time.After(endTime): // go-libvirt misses an end that comes just when it has connected
	}
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// session returns the connection, a new one if there is none.
func (c *Conn) session(ctx context.Context) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.session != nil {
		return c.mu.session, nil
	}
	s, err := dial(ctx, c.place)
	if err == nil {
		c.mu.session = s
	}
	return s, err
}

func dial(ctx context.Context, p Place) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	var all error
	for _, socket := range p.Sockets {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			all = errors.Join(all, err)
			continue
		}
		s := &session{conn: &boundedConn{Conn: conn}}
		s.lib = libvirt.NewWithDialer(s.conn)
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		err = s.lib.ConnectToURI(libvirt.ConnectURI(p.URI))
		stop()
		if err != nil {
			err = s.judge(err)
			_ = s.conn.Close() // it is of no use
			return nil, fmt.Errorf("libvirt at %s: %w", socket, err)
		}
		return s, nil
	}
	return nil, fmt.Errorf("connect to libvirt (does libvirtd or virtqemud run, and may this user use it? --connect says where it is): %w", all)
}

// drop forgets a connection that is of no use any more.
func (c *Conn) drop(s *session) {
	_ = s.end()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.session == s {
		c.mu.session = nil
	}
}

// call makes a call and waits for its end, or for that of ctx. A call whose end nobody knows is block.ErrClosed, or ctx's error: it may have been done.
func call[T any](ctx context.Context, c *Conn, do func(*libvirt.Libvirt) (T, error)) (value T, err error) {
	s, err := c.session(ctx)
	if err != nil {
		return value, err
	}
	type answer struct {
		value T
		err   error
	}
	done := make(chan answer, 1)
	go func() {
		value, err := do(s.lib)
		done <- answer{value, err}
	}()
	a := answer{err: io.ErrUnexpectedEOF}
	select {
	case a = <-done:
	case <-ctx.Done():
		_ = s.conn.Close() // what is being called ends by that
		select {
		case a = <-done:
		case <-time.After(endTime):
		}
	}
	value = a.value
	if err = s.judge(a.err); errors.Is(err, block.ErrClosed) || errors.Is(err, block.ErrCorrupt) {
		c.drop(s)
	}
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("libvirt has not answered: %w", ctx.Err())
	}
	return value, err
}

// judge gives an error a meaning that others know.
func (s *session) judge(err error) error {
	said := libvirt.Error{}
	switch {
	case err == nil:
		return nil
	case errors.As(err, &said):
		return &Error{Code: libvirt.ErrorNumber(said.Code), Text: said.Message}
	case errors.Is(err, libvirt.ErrUnsupported):
		return err
	}
	if bad := s.conn.bad.Load(); bad != nil {
		return *bad
	}
	return fmt.Errorf("the connection to libvirt ended: %w: %w", err, block.ErrClosed)
}

// Error is what libvirt answered instead of doing what it was asked for.
type Error struct {
	Code libvirt.ErrorNumber
	Text string
}

// Error is libvirt's own text.
func (e *Error) Error() string { return "libvirt says: " + e.Text }

// Is maps codes to sentinels of package block.
func (e *Error) Is(target error) bool {
	switch e.Code {
	case libvirt.ErrNoDomain:
		return target == block.ErrNotFound
	case libvirt.ErrDomExist:
		return target == block.ErrExists
	case libvirt.ErrXMLError, libvirt.ErrXMLDetail, libvirt.ErrXMLInvalidSchema:
		return target == block.ErrInvalid
	}
	return false
}

// boundedConn is a connection of go-libvirt, which allocates what the length of a message says: one that says too much, or less than a header, ends it.
type boundedConn struct {
	net.Conn
	dialed sync.Once
	bad    atomic.Pointer[error]
	head   []byte // of the message that begins
	left   int    // bytes of it that are still to come
}

// Dial implements the dialer of go-libvirt, once.
func (c *boundedConn) Dial() (net.Conn, error) {
	err := net.ErrClosed
	c.dialed.Do(func() { err = nil })
	return c, err
}

// Read implements io.Reader. It is called by one goroutine.
func (c *boundedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	for rest := p[:n]; len(rest) > 0; {
		if c.left > 0 {
			k := min(c.left, len(rest))
			c.left, rest = c.left-k, rest[k:]
			continue
		}
		k := min(4-len(c.head), len(rest))
		if c.head, rest = append(c.head, rest[:k]...), rest[k:]; len(c.head) < 4 {
			break
		}
		size := binary.BigEndian.Uint32(c.head)
		if size < minMessage || size > maxMessage {
			bad := fmt.Errorf("libvirt sent a message of %d B: %w", size, block.ErrCorrupt)
			c.bad.Store(&bad)
			_ = c.Conn.Close()
			return 0, io.EOF
		}
		c.left, c.head = int(size)-4, c.head[:0]
	}
	if err != nil && !errors.Is(err, io.EOF) {
		err = io.EOF // go-libvirt would go on after some
	}
	return n, err
}
