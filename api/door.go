package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// closeTime is what requests on the TCP door get to finish when it closes.
const closeTime = 5 * time.Second

// door is the TCP listener. It is open while a token exists that has not expired, and closed otherwise.
type door struct {
	address string // HOST:PORT or config.Off
	tokens  *control.Tokens
	handler http.Handler // behind the token check
	log     *slog.Logger
	closing sync.WaitGroup // servers that finish their requests

	mu     sync.Mutex // held while the door opens; nothing else waits for it
	server *http.Server
	listen net.Listener // of server
	bound  string       // where it listens, when it does
	expiry *time.Timer
	err    error // why it could not open
	shut   bool  // for good
}

// reconcile opens or closes the door as the tokens want it. It is called at the start and after every change of the tokens.
func (d *door) reconcile() {
	d.mu.Lock()
	defer d.mu.Unlock()
	live, next := d.tokens.Live()
	if d.expiry != nil {
		d.expiry.Stop()
		d.expiry = nil
	}
	if d.shut || d.address == config.Off {
		return
	}
	if !next.IsZero() {
		d.expiry = time.AfterFunc(time.Until(next)+time.Millisecond, d.reconcile)
	}
	switch {
	case live && d.server == nil:
		if d.err = d.openLocked(); d.err != nil {
			d.log.Error("the TCP door stays shut", "error", d.err)
		}
	case !live && d.server != nil:
		d.closeLocked()
	}
}

func (d *door) openLocked() error {
	listener, err := net.Listen("tcp", d.address)
	if err != nil {
		return fmt.Errorf("listen for the control API: %w", err)
	}
	bound := listener.Addr().(*net.TCPAddr)
	if !bound.IP.IsLoopback() { // localhost may mean anything
		return errors.Join(fmt.Errorf("%s is %s, which is not loopback: %w", d.address, bound, errForbidden), listener.Close())
	}
	d.bound = bound.String()
	_, port, err := net.SplitHostPort(d.bound)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	server := newHTTPServer(guardTCP(d.tokens, port, d.handler), d.log)
	d.server, d.listen = server, listener
	d.closing.Go(func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			d.log.Error("server stopped", "server", "control API over TCP", "error", err)
		}
	})
	d.log.Info("control API listens", "address", d.bound)
	return nil
}

// closeLocked stops listening: who connects after it is refused. Requests may finish, such as the one that revoked the last token.
func (d *door) closeLocked() {
	server, listener := d.server, d.listen
	d.server, d.listen, d.bound = nil, nil, ""
	if err := listener.Close(); err != nil { // Shutdown closes it too, but later
		d.log.Warn("the TCP door's socket did not close", "error", err)
	}
	d.log.Info("control API over TCP closes: no token can be used")
	d.closing.Go(func() { shutdown(server) })
}

func shutdown(server *http.Server) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTime)
	defer cancel()
	if server.Shutdown(ctx) != nil {
		_ = server.Close()
	}
}

// warning says why the door is not open although a token was just made; empty when it is.
func (d *door) warning() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.address == config.Off:
		return "the TCP door is off (listen: off); the token can be used when it is on"
	case d.err != nil && d.server == nil:
		return fmt.Sprintf("the TCP door could not open: %v", d.err)
	}
	return ""
}

// Address is where the door listens; empty when it is shut.
func (d *door) Address() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.bound
}

// close shuts the door for good.
func (d *door) close() {
	d.mu.Lock()
	d.shut = true
	if d.expiry != nil {
		d.expiry.Stop()
	}
	if d.server != nil {
		d.closeLocked()
	}
	d.mu.Unlock()
	d.closing.Wait()
}
