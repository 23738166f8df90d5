package control

import (
	"net"
	"sync"
)

// tcpShare of nbd.max-connections is what clients over TCP can have together: whoever reaches the port can open connections, and must not keep the
// guests of this machine from coming back.
const tcpShare = 0.75

// limitedListener accepts so many connections at once, and closes any more of them at once.
type limitedListener struct {
	*net.TCPListener
	slots   chan struct{}
	refused func(from net.Addr)
}

// listenLimited listens on HOST:PORT. refused is told of each client that is one too many.
func listenLimited(address string, connections int, refused func(from net.Addr)) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp", at)
	if err != nil {
		return nil, err
	}
	return &limitedListener{TCPListener: l, slots: make(chan struct{}, max(1, connections)), refused: refused}, nil
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			return &limitedConn{TCPConn: conn, leave: func() { <-l.slots }}, nil
		default:
			_ = conn.Close()
			l.refused(conn.RemoteAddr())
		}
	}
}

// limitedConn gives its slot back when it is closed. It can do all that the connection in it can.
type limitedConn struct {
	*net.TCPConn
	once  sync.Once
	leave func()
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	defer c.once.Do(c.leave)
	return c.TCPConn.Close()
}
