package unixsock

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Pair returns the two ends of a new connection: one for this process, one to hand to another.
func Pair() (mine *net.UnixConn, other *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	own := os.NewFile(uintptr(fds[0]), "socketpair")
	defer own.Close() // FileConn has a copy
	other = os.NewFile(uintptr(fds[1]), "socketpair")
	conn, err := net.FileConn(own)
	if err != nil {
		return nil, nil, errors.Join(err, other.Close())
	}
	return conn.(*net.UnixConn), other, nil
}

// Handover is a listener without a name: only who is handed the other end of a connection can use it.
type Handover struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

// NewHandover returns a listener with no connection yet.
func NewHandover() *Handover {
	return &Handover{conns: make(chan net.Conn), done: make(chan struct{})}
}

// Connect returns the client's end of a new connection, when the server has accepted the other one. net.ErrClosed after Close.
func (h *Handover) Connect() (*os.File, error) {
	mine, other, err := Pair()
	if err != nil {
		return nil, err
	}
	select {
	case h.conns <- mine:
		return other, nil
	case <-h.done:
		return nil, errors.Join(net.ErrClosed, mine.Close(), other.Close())
	}
}

// Accept implements net.Listener.
func (h *Handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener. It may be called again.
func (h *Handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener: no address.
func (h *Handover) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }
