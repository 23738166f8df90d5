package control

import (
	"errors"
	"net"
	"sync"
)

// Parts of nbd.max-connections that clients over TCP can have together: whoever reaches the port can open connections, and must not keep the guests of this machine from coming back.
const (
	tcpShare = 0.75
	// shakingShare is for those that have not got through the handshake: who only knows the port can take up these, and half of them from one address, for as long as a handshake may take.
	shakingShare = 0.125
)

// limitedListener accepts so many connections at once, and closes any more of them at once.
type limitedListener struct {
	*net.TCPListener
	most    tcpBounds
	refused func(from net.Addr)

	mu      sync.Mutex
	settled int            // connections beyond the handshake
	shaking int            // in it
	from    map[string]int // of these, by address
}

// tcpBounds are numbers of connections.
type tcpBounds struct{ settled, shaking, address int }

// boundsOf divides what nbd.max-connections allows.
func boundsOf(connections int) tcpBounds {
	part := func(share float64) int { return max(1, int(float64(connections)*share)) }
	shaking := part(shakingShare)
	return tcpBounds{settled: part(tcpShare), shaking: shaking, address: (shaking + 1) / 2}
}

// listenLimited listens on HOST:PORT. refused is told of each client that is one too many.
func listenLimited(address string, most tcpBounds, refused func(from net.Addr)) (net.Listener, error) {
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	l, err := net.ListenTCP("tcp", at)
	if err != nil {
		return nil, err
	}
	return &limitedListener{TCPListener: l, most: most, refused: refused, from: map[string]int{}}, nil
}

// Accept implements net.Listener.
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptTCP()
		if err != nil {
			return nil, err
		}
		host := hostOf(conn.RemoteAddr())
		if !l.enter(host) {
			_ = conn.Close()
			l.refused(conn.RemoteAddr())
			continue
		}
		return &limitedConn{TCPConn: conn, l: l, host: host}, nil
	}
}

// enter counts a client in that begins its handshake.
func (l *limitedListener) enter(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.shaking >= l.most.shaking || l.from[host] >= l.most.address {
		return false
	}
	l.shaking++
	l.from[host]++
	return true
}

// shaken counts a client out of the handshake. It is called with mu held.
func (l *limitedListener) shaken(host string) {
	l.shaking--
	if l.from[host]--; l.from[host] == 0 {
		delete(l.from, host)
	}
}

// limitedConn gives its slot back when it is closed. It can do all that the connection in it can.
type limitedConn struct {
	*net.TCPConn
	l    *limitedListener
	host string

	settled, closed bool // guarded by l.mu
}

var errTooManyTCP = errors.New("too many NBD connections over TCP")

// Settle implements nbd.Settler.
func (c *limitedConn) Settle() error {
	l := c.l
	l.mu.Lock()
	full := l.settled >= l.most.settled
	if !full && !c.closed {
		l.shaken(c.host)
		l.settled++
		c.settled = true
	}
	l.mu.Unlock()
	if full {
		l.refused(c.RemoteAddr())
		return errTooManyTCP
	}
	return nil
}

// Close implements net.Conn.
func (c *limitedConn) Close() error {
	l := c.l
	l.mu.Lock()
	switch {
	case c.closed:
	case c.settled:
		l.settled--
	default:
		l.shaken(c.host)
	}
	c.closed = true
	l.mu.Unlock()
	return c.TCPConn.Close()
}
