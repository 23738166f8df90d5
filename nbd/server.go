package nbd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/crew"
)

// Server serves exports on any number of listeners. All its connections share one budget of memory.
type Server struct {
	opts     Options
	exports  Exports
	memory   *memory
	crew     *crew.Crew[*task] // works on what waits for a device
	counters counters
	running  sync.WaitGroup // one for each connection
	done     chan struct{}  // closed at the end
	ended    sync.Once

	mu struct {
		sync.Mutex
		closing   bool
		listeners map[net.Listener]struct{}
		conns     map[*conn]struct{}
	}
}

// idleWorkers is how many goroutines stay for the next requests that wait for a device: as many as a usual client has in flight, twice.
const idleWorkers = 64

// NewServer returns a server of the given exports. Options that Validate refuses are an error.
func NewServer(exports Exports, opts Options) (*Server, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	s := &Server{opts: opts.withDefaults(), exports: exports, done: make(chan struct{})}
	s.crew = crew.New(idleWorkers, (*task).run)
	s.memory = newMemory(s.opts.InFlightBytes, s.evictStalled)
	s.mu.listeners = make(map[net.Listener]struct{})
	s.mu.conns = make(map[*conn]struct{})
	go s.watch()
	return s, nil
}

// Serve accepts clients from l, which it closes in the end. It returns nil when ctx has ended or the server was shut down; connections live
// on until Shutdown or Close. An error wraps block.ErrClosed if the server was shut down before.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	return s.ServeExports(ctx, l, s.exports)
}

// ServeExports is Serve with another table of exports for this listener, such as a socket that shows one volume only.
func (s *Server) ServeExports(ctx context.Context, l net.Listener, exports Exports) error {
	return s.ServeDoor(ctx, l, Door{Exports: exports})
}

// Door is how the clients of one listener are treated.
type Door struct {
	// Exports is the table that they see. Default: the server's.
	Exports Exports
	// TLS is how they may, or must, encrypt. Default: they cannot.
	TLS *TLS
}

// Settler is a connection of a listener that wants to know which of its clients have got through the handshake, such as one that gives others little room.
type Settler interface {
	// Settle is called once, before the client is told that it enters transmission. An error has it cut off.
	Settle() error
}

// ServeDoor is Serve for clients that are treated in their own way.
func (s *Server) ServeDoor(ctx context.Context, l net.Listener, d Door) error {
	if d.Exports == nil {
		d.Exports = s.exports
	}
	if !s.addListener(l) {
		_ = l.Close()
		return fmt.Errorf("nbd: serve %v: %w", l.Addr(), block.ErrClosed)
	}
	defer s.removeListener(l)
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	backoff := time.Duration(0)
	for {
		nc, err := l.Accept()
		if err == nil {
			backoff = 0
			s.admit(nc, d)
			continue
		}
		if ctx.Err() != nil || s.isClosing() {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("nbd: accept on %v: %w", l.Addr(), err)
		}
		if f := s.opts.Events.AcceptFailed; f != nil {
			f(err)
		}
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
	}
}

// admit starts a connection, or closes it if there are too many.
func (s *Server) admit(nc net.Conn, d Door) {
	c := newConn(s, nc, d)
	s.mu.Lock()
	full := len(s.mu.conns) >= s.opts.MaxConnections
	ok := !full && !s.mu.closing
	if ok {
		s.mu.conns[c] = struct{}{}
		s.running.Add(1)
	}
	s.mu.Unlock()
	if !ok {
		c.kill()
		if full {
			s.counters.refused.Add(1)
			if f := s.opts.Events.Refused; f != nil {
				f(nc.RemoteAddr())
			}
		}
		return
	}
	s.counters.accepted.Add(1)
	widen(nc)
	go func() {
		defer s.running.Done()
		c.run()
		s.mu.Lock()
		delete(s.mu.conns, c)
		s.mu.Unlock()
		close(c.done)
	}()
}

// enter records that c uses an export; false means that the server is closing and c must end.
func (s *Server) enter(c *conn, export, identity string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closing {
		return false
	}
	c.entered = true
	c.exportName = export
	c.identity = identity
	return true
}

// Connections returns the number of connections that use the export of that name.
func (s *Server) Connections(export string) int { return len(s.connsOf(export)) }

// connsOf returns the connections that use an export.
func (s *Server) connsOf(export string) []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	var cs []*conn
	for c := range s.mu.conns {
		if c.entered && c.exportName == export {
			cs = append(cs, c)
		}
	}
	return cs
}

// DropConnections ends the connections that use the export of that name as Shutdown does, and returns when the export has been released by
// all of them. When ctx ends first they are cut off, and the error is that of ctx. To keep clients from coming back, take the export out of
// the table first.
func (s *Server) DropConnections(ctx context.Context, export string) error {
	return drainAll(ctx, s.connsOf(export))
}

// Shutdown closes the listeners, stops reading requests, finishes what has been read, writes the replies and closes the connections. When
// ctx ends first the rest is cut off, and the error is that of ctx.
func (s *Server) Shutdown(ctx context.Context) error {
	err := drainAll(ctx, s.beginClose())
	s.end()
	return err
}

// Close cuts off all connections and waits until their exports are released.
func (s *Server) Close() error {
	for _, c := range s.beginClose() {
		c.kill()
	}
	s.end()
	return nil
}

// end waits until all connections are gone, and lets the goroutines go.
func (s *Server) end() {
	s.running.Wait()
	s.crew.Close()
	s.ended.Do(func() { close(s.done) })
}

// beginClose closes the listeners and lets nobody in any more. It returns the connections there are.
func (s *Server) beginClose() []*conn {
	s.mu.Lock()
	s.mu.closing = true
	listeners := make([]net.Listener, 0, len(s.mu.listeners))
	for l := range s.mu.listeners {
		listeners = append(listeners, l)
	}
	conns := make([]*conn, 0, len(s.mu.conns))
	for c := range s.mu.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, l := range listeners {
		_ = l.Close()
	}
	return conns
}

// drainAll drains conns and waits until they are gone; when ctx ends it kills them.
func drainAll(ctx context.Context, conns []*conn) error {
	for _, c := range conns {
		c.drain()
	}
	var err error
	for _, c := range conns {
		select {
		case <-c.done:
			continue
		case <-ctx.Done():
			err = ctx.Err()
		}
		for _, c := range conns {
			c.kill()
		}
		<-c.done
	}
	return err
}

// evictStalled drops the connections that hold memory and have made no progress for StallTimeout, or less while many wait: those that
// stall one after the other must not add up to minutes for a client that works.
func (s *Server) evictStalled() {
	patience := s.opts.StallTimeout / time.Duration(min(max(s.memory.waiting.Load(), 1), mostHaste))
	before := time.Now().Add(-patience).UnixNano()
	s.mu.Lock()
	var stalled []*conn
	for c := range s.mu.conns {
		if c.stalledSince(before) && c.evicted.CompareAndSwap(false, true) {
			stalled = append(stalled, c)
		}
	}
	s.mu.Unlock()
	for _, c := range stalled {
		c.kill()
		s.counters.evicted.Add(1)
		if f := s.opts.Events.Evicted; f != nil {
			f(c.peer())
		}
	}
}

// mostHaste divides StallTimeout at most.
const mostHaste = 5

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.closing
}

func (s *Server) addListener(l net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closing {
		return false
	}
	s.mu.listeners[l] = struct{}{}
	return true
}

func (s *Server) removeListener(l net.Listener) {
	_ = l.Close()
	s.mu.Lock()
	delete(s.mu.listeners, l)
	s.mu.Unlock()
}

// sendBuffer is what the kernel may hold of replies that a client on a unix socket has not read yet, in bytes; it counts its own overhead in.
const sendBuffer = 1 << 20

// widen gives a unix socket a send buffer that takes a long reply at once. With the usual one, of 208 KiB, who sends 1 MiB is put to sleep and woken several times. It is a hint.
func widen(nc net.Conn) {
	if u, ok := nc.(*net.UnixConn); ok {
		_ = u.SetWriteBuffer(sendBuffer / 2) // the kernel doubles it
	}
}
