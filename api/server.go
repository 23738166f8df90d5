package api

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
)

// Server is the running API.
type Server struct {
	unix     *http.Server
	replicas *http.Server // for other hvd; nil without
	door     *door
	running  sync.WaitGroup

	repositories *http.Server // of backups of other machines; nil without
}

// Serve opens the control socket, and the TCP door if a token can be used. c must be open; Close comes before c.Close.
func Serve(c *control.Control) (*Server, error) {
	log := c.Log()
	d := &door{address: c.Config().Listen, tokens: c.Tokens(), log: log}
	shared := routes(c, d, log)
	d.handler = shared

	s := &Server{door: d, unix: newHTTPServer(guardUnix(withProfiles(shared)), log)}
	s.unix.ConnContext = withPeer
	listener, err := unixsock.Listen(c.Config().ControlSocket, unixsock.Private())
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	s.running.Go(func() {
		if err := s.unix.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error("server stopped", "server", "control API", "error", err)
		}
	})
	c.Tokens().OnChange(d.reconcile)
	d.reconcile()
	d.mu.Lock()
	err = d.err
	d.mu.Unlock()
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%w; free the address, choose another with --listen, or use --listen off", err)
	}
	if err := errors.Join(s.serveReplicas(c, log), s.serveRepositories(c, log)); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// TCPAddress is where the TCP door listens; empty when it is shut.
func (s *Server) TCPAddress() string { return s.door.Address() }

// Close stops listening, lets requests finish for a few seconds, and cuts off the rest. Imports and exports end when the Control closes.
func (s *Server) Close() {
	s.running.Go(s.door.close)
	if s.replicas != nil {
		_ = s.replicas.Close() // a source comes back and goes on
	}
	if s.repositories != nil {
		s.running.Go(func() { shutdown(s.repositories) })
	}
	s.running.Go(func() { shutdown(s.unix) })
	s.running.Wait()
}

// routes are what both doors serve.
func routes(c *control.Control, d *door, log *slog.Logger) http.Handler {
	streams := newData(c)
	mux := http.NewServeMux()
	mux.Handle("POST /graphql", newGraphQL(c, d, log))
	mux.HandleFunc("PUT /v1/volumes/{name}/data", streams.put)
	mux.HandleFunc("GET /v1/volumes/{name}/data", streams.get)
	mux.HandleFunc("POST /v1/volumes/{name}/live", streams.live)
	mux.HandleFunc("GET /v1/support", streams.support)
	mux.HandleFunc("GET /v1/alarms", alarms(c))
	mux.HandleFunc("GET /metrics", metrics(c))
	mux.HandleFunc("GET /v1/changes", changes(c))
	mux.HandleFunc("GET /v1/volumes/{name}/history/activity", activity(c))
	mux.HandleFunc("GET /v1/volumes/{name}/history/loss", historyLoss(c))
	repairs := make(places, 1)
	mux.HandleFunc("GET /v1/lost-chunks", lostChunks(c, repairs))
	mux.HandleFunc("POST /v1/lost-chunks", healChunks(c, repairs))
	addReplications(mux, c)
	addReplicas(mux, c, localSender)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		status, problems := "ok", c.Status().Problems
		if len(problems) > 0 {
			status = "degraded"
		}
		reply(w, http.StatusOK, map[string]any{"status": status, "problems": problems})
	})
	return mux
}

// withProfiles adds the profiles of net/http/pprof: for the control socket only.
func withProfiles(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/", next)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// newHTTPServer bounds what a connection may cost before its request is known.
func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}
