package api

import (
	"errors"
	"log/slog"
	"net"
	"net/http"

	"github.com/hyper-nixos/hyper-nixos/control"
)

// servePeers serves a door for other machines, which TLS lets in, until the server is closed.
func (s *Server) servePeers(listener net.Listener, what string, handler http.Handler, log *slog.Logger) *http.Server {
	server := newHTTPServer(handler, log)
	server.ConnState = func(conn net.Conn, state http.ConnState) {
		if state == http.StateActive && control.SettlePeer(conn) != nil { // a request has come, so the handshake is over
			_ = conn.Close()
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
	s.repositories = s.servePeers(listener, "repositories", repositories, log)
	return nil
}
