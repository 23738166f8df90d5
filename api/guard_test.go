package api

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/internal/unixsock"
)

// oneToken knows one secret.
type oneToken struct{ token control.Token }

func (o oneToken) Check(secret string) (control.Token, error) {
	if secret == "hvt_good" {
		return o.token, nil
	}
	return control.Token{}, control.ErrNoToken
}

func TestTCPGuard(t *testing.T) {
	const port = "8081"
	guarded := guardTCP(oneToken{control.Token{Name: "ci", Scope: control.ScopeOperate}}, port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if allow(r.Context(), control.ScopeOperate) != nil || allow(r.Context(), control.ScopeAdmin) == nil {
			t.Error("the caller has another scope than its token")
		}
	}))
	for name, c := range map[string]struct {
		host, origin, auth string
		want               int
	}{
		"good":                    {"127.0.0.1:8081", "", "Bearer hvt_good", 200},
		"scheme in lower case":    {"127.0.0.1:8081", "", "bearer hvt_good", 200},
		"localhost":               {"localhost:8081", "", "Bearer hvt_good", 200},
		"IPv6":                    {"[::1]:8081", "", "Bearer hvt_good", 200},
		"own origin":              {"127.0.0.1:8081", "http://127.0.0.1:8081", "Bearer hvt_good", 200},
		"no token":                {"127.0.0.1:8081", "", "", 401},
		"unknown token":           {"127.0.0.1:8081", "", "Bearer hvt_bad", 401},
		"empty token":             {"127.0.0.1:8081", "", "Bearer ", 401},
		"another scheme":          {"127.0.0.1:8081", "", "Basic hvt_good", 401},
		"rebound name":            {"evil.example:8081", "", "Bearer hvt_good", 403},
		"rebound name, no port":   {"evil.example", "", "Bearer hvt_good", 403},
		"name with a loopback":    {"127.0.0.1.evil.example:8081", "", "Bearer hvt_good", 403},
		"another port":            {"127.0.0.1:80", "", "Bearer hvt_good", 403},
		"no port":                 {"127.0.0.1", "", "Bearer hvt_good", 403},
		"another address":         {"192.0.2.1:8081", "", "Bearer hvt_good", 403},
		"no host":                 {"", "", "Bearer hvt_good", 403},
		"another origin":          {"127.0.0.1:8081", "http://evil.example", "Bearer hvt_good", 403},
		"origin of another port":  {"127.0.0.1:8081", "http://127.0.0.1:3000", "Bearer hvt_good", 403},
		"origin over TLS":         {"127.0.0.1:8081", "https://127.0.0.1:8081", "Bearer hvt_good", 403},
		"opaque origin":           {"127.0.0.1:8081", "null", "Bearer hvt_good", 403},
		"origin without a token":  {"127.0.0.1:8081", "http://evil.example", "", 403},
		"origin localhost or not": {"127.0.0.1:8081", "http://localhost:8081", "Bearer hvt_good", 403},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, "/graphql", nil)
			r.Host = c.host
			if c.origin != "" {
				r.Header.Set("Origin", c.origin)
			}
			if c.auth != "" {
				r.Header.Set("Authorization", c.auth)
			}
			w := httptest.NewRecorder()
			guarded.ServeHTTP(w, r)
			if w.Code != c.want {
				t.Errorf("status %d, want %d: %s", w.Code, c.want, w.Body)
			}
			if (w.Code == http.StatusUnauthorized) != (w.Header().Get("WWW-Authenticate") != "") {
				t.Errorf("WWW-Authenticate %q", w.Header().Get("WWW-Authenticate"))
			}
		})
	}
}

func TestUnixGuard(t *testing.T) {
	own := uint32(os.Geteuid())
	guarded := guardUnix(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if err := allow(r.Context(), control.ScopeAdmin); err != nil {
			t.Error(err)
		}
	}))
	for name, c := range map[string]struct {
		peer any
		want int
	}{
		"the daemon's user": {unixsock.Peer{UID: own}, 200},
		"root":              {unixsock.Peer{UID: 0}, 200},
		"somebody else":     {unixsock.Peer{UID: own + 4711}, 403},
		"nobody knows":      {nil, 403},
	} {
		r := httptest.NewRequest(http.MethodPost, "/graphql", nil)
		w := httptest.NewRecorder()
		guarded.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), peerKey{}, c.peer)))
		if w.Code != c.want {
			t.Errorf("%s: status %d, want %d", name, w.Code, c.want)
		}
	}
}

func TestPeerComesFromTheKernel(t *testing.T) {
	l, err := unixsock.Listen(t.TempDir()+"/s", unixsock.Private())
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if peer, ok := withPeer(t.Context(), conn).Value(peerKey{}).(unixsock.Peer); !ok || int(peer.UID) != os.Geteuid() {
		t.Errorf("peer %+v, %v", peer, ok)
	}
}

func TestNobodyMayDoAnything(t *testing.T) {
	if err := allow(t.Context(), control.ScopeRead); !errors.Is(err, errForbidden) {
		t.Errorf("got %v", err)
	}
	if err := allow(withCaller(t.Context(), caller{scope: control.ScopeAdmin}), control.ScopeNone); !errors.Is(err, errForbidden) {
		t.Errorf("a field without a scope: %v", err)
	}
}
