package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// maxRepositoryConns is how many connections a client of repositories may have at once, so that none can take up all.
const maxRepositoryConns = 32

// servePeers serves a door for other machines, which TLS lets in, until the server is closed. each is how many connections one of them may have; 0: any number.
func (s *Server) servePeers(listener net.Listener, what string, handler http.Handler, each int, log *slog.Logger) *http.Server {
	conns := &peerConns{next: handler, most: each, of: make(map[net.Conn]string), by: make(map[string]int)}
	server := newHTTPServer(conns, log)
	server.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		return context.WithValue(ctx, connKey{}, conn)
	}
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		switch state {
		case http.StateActive:
			if control.SettlePeer(conn) != nil { // a request has come, so the handshake is over
				_ = conn.Close()
			}
		case http.StateClosed:
			conns.drop(conn)
		}
	}
	s.running.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("server stopped", "server", what, "error", err)
		}
	})
	return server
}

// serveRepositories opens the door for backup repositories of other machines, if the configuration wants one.
func (s *Server) serveRepositories(c *control.Control, log *slog.Logger) error {
	listener, repositories, err := c.ListenRepositories()
	if err != nil || listener == nil {
		return err
	}
	s.repositories = s.servePeers(listener, "repositories", repositories, maxRepositoryConns, log)
	return nil
}

// connKey is that of the connection of a request in its context.
type connKey struct{}

// peerConns lets each client have so many connections, by the first name in its certificate.
type peerConns struct {
	next http.Handler
	most int

	mu sync.Mutex
	of map[net.Conn]string // connections on which there was a request
	by map[string]int      // of these, by client
}

// ServeHTTP implements http.Handler.
func (p *peerConns) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	names, err := mutualtls.Names(r.TLS)
	conn, _ := r.Context().Value(connKey{}).(net.Conn)
	if p.most > 0 && err == nil && conn != nil && !p.hold(conn, names[0]) {
		w.Header().Set("Connection", "close")
		fail(w, fmt.Errorf("more than %d connections at once: %w", p.most, errBusy))
		return
	}
	p.next.ServeHTTP(w, r)
}

// hold reports whether a client may have this connection, and counts it the first time.
func (p *peerConns) hold(conn net.Conn, name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.of[conn]; known {
		return true
	}
	if p.by[name] >= p.most {
		return false
	}
	p.of[conn] = name
	p.by[name]++
	return true
}

// drop gives the place of a connection that was closed to another.
func (p *peerConns) drop(conn net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, known := p.of[conn]
	if !known {
		return
	}
	delete(p.of, conn)
	if p.by[name]--; p.by[name] == 0 {
		delete(p.by, name)
	}
}
