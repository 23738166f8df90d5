package api

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
)

// tokenChecker finds the token of a secret; an error means that there is none.
type tokenChecker interface {
	Check(secret string) (control.Token, error)
}

// guardTCP lets requests with a bearer token through to next. port is the door's own.
func guardTCP(tokens tokenChecker, port string, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := checkHost(r, port); err != nil {
			fail(w, err)
			return
		}
		scheme, secret, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") {
			fail(w, fmt.Errorf("a bearer token is needed; make one with `hv-storage-fabric token create`: %w", errUnauthenticated))
			return
		}
		token, err := tokens.Check(strings.TrimSpace(secret))
		if err != nil {
			fail(w, fmt.Errorf("%w: %w", err, errUnauthenticated))
			return
		}
		who := caller{token.Scope, fmt.Sprintf("token %q", token.Name)}
		next.ServeHTTP(w, r.WithContext(withCaller(r.Context(), who)))
	})
}

// checkHost refuses requests that a browser was tricked into: by a name that was rebound to this address (Host), or by a page of another
// origin (Origin).
func checkHost(r *http.Request, port string) error {
	host, gotPort, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, gotPort = strings.Trim(r.Host, "[]"), "80"
	}
	ip, err := netip.ParseAddr(host)
	if gotPort != port || !strings.EqualFold(host, "localhost") && (err != nil || !ip.IsLoopback()) {
		return fmt.Errorf("host %q is not this door: %w", r.Host, errForbidden)
	}
	origins := r.Header.Values("Origin")
	if len(origins) == 0 {
		return nil
	}
	if len(origins) > 1 || !strings.EqualFold(origins[0], "http://"+r.Host) {
		return fmt.Errorf("origin %q is not this door: %w", origins, errForbidden)
	}
	return nil
}

type peerKey struct{}

// withPeer is the ConnContext of the control socket: it asks the kernel once per connection who is there.
func withPeer(ctx context.Context, conn net.Conn) context.Context {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return ctx
	}
	peer, err := unixsock.PeerOf(unixConn)
	if err != nil {
		return ctx // nobody: guardUnix refuses
	}
	return context.WithValue(ctx, peerKey{}, peer)
}

// guardUnix lets requests of root and of the daemon's own user through to next.
func guardUnix(next http.Handler) http.Handler {
	own := uint32(os.Geteuid())
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := r.Context().Value(peerKey{}).(unixsock.Peer)
		switch {
		case !ok:
			fail(w, fmt.Errorf("the kernel does not say who connected: %w", errForbidden))
		case peer.UID != 0 && peer.UID != own:
			fail(w, fmt.Errorf("user %d may not control the hvd of user %d; use that user, root, or a token: %w", peer.UID, own, errForbidden))
		default:
			who := caller{control.ScopeAdmin, fmt.Sprintf("user %d", peer.UID)}
			next.ServeHTTP(w, r.WithContext(withCaller(r.Context(), who)))
		}
	})
}
