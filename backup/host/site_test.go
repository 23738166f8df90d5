package host

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
	"github.com/hyper-nixos/hyper-nixos/internal/mutualtls"
)

// site is a host behind TLS on loopback, as hvd has it.
type site struct {
	t         *testing.T
	authority *certtest.Authority
	files     mutualtls.Files
	o         Options
	address   string
	host      *Host
	server    *http.Server
	served    chan struct{}
}

// newSite starts a host of an empty folder, with rules. change may be nil.
func newSite(t *testing.T, rules string, change func(*Options)) *site {
	t.Helper()
	parsed, err := access.ParseRules(rules)
	if err != nil {
		t.Fatal(err)
	}
	s := &site{t: t, authority: certtest.New(t, "hosts"), o: Options{Dir: t.TempDir(), Rules: parsed}, address: "127.0.0.1:0"}
	if change != nil {
		change(&s.o)
	}
	s.files = filesOf(t, s.authority, "server", s.authority.Server())
	s.start()
	t.Cleanup(s.stop)
	return s
}

// filesOf writes the files of one side, which trusts the authority.
func filesOf(t *testing.T, a *certtest.Authority, role string, cert tls.Certificate) mutualtls.Files {
	t.Helper()
	dir := t.TempDir()
	a.Store(dir, role, cert)
	return mutualtls.Files{Cert: filepath.Join(dir, role+"-cert.pem"), Key: filepath.Join(dir, role+"-key.pem"), CA: filepath.Join(dir, "ca-cert.pem")}
}

// start starts the host, the second time at the same address.
func (s *site) start() {
	s.t.Helper()
	s.host = New(s.o)
	listener, err := net.Listen("tcp", s.address)
	if err != nil {
		s.t.Fatal(err)
	}
	s.address = listener.Addr().String()
	s.server = &http.Server{Handler: s.host, ReadHeaderTimeout: 10 * time.Second, ErrorLog: log.New(io.Discard, "", 0)}
	s.served = make(chan struct{})
	server, served := s.server, s.served
	go func() {
		defer close(served)
		_ = server.Serve(tls.NewListener(listener, s.files.ServerConfig(func(err error) { s.t.Error(err) })))
	}()
}

// stop cuts off whoever is connected.
func (s *site) stop() {
	_ = s.server.Close()
	<-s.served
}

// place is a repository as a client finds it at an address, which may be that of a middleman.
func (s *site) place(address, name string) remote.Place {
	s.t.Helper()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		s.t.Fatal(err)
	}
	return remote.Place{Host: host, Port: port, Name: name}
}

// options are those of a client, with short pauses.
func (s *site) options(peer, name string) remote.Options {
	s.t.Helper()
	return remote.Options{Place: s.place(s.address, name), Files: filesOf(s.t, s.authority, "client", s.authority.Client(peer)), Stall: 5 * time.Second, Pause: time.Millisecond}
}

func open(t *testing.T, o remote.Options) *remote.Client {
	t.Helper()
	c, err := remote.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// client opens a repository.
func (s *site) client(peer, name string) *remote.Client {
	s.t.Helper()
	return open(s.t, s.options(peer, name))
}

// made is client for a repository that is made before.
func (s *site) made(peer, name string) *remote.Client {
	s.t.Helper()
	c, err := remote.Create(s.t.Context(), s.options(peer, name))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// left returns what a repository has under tmp/.
func (s *site) left(name string) int {
	s.t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.o.Dir, name, "tmp"))
	if err != nil {
		s.t.Fatal(err)
	}
	return len(entries)
}

// create makes a repository.
func create(ctx context.Context, o remote.Options) error {
	c, err := remote.Create(ctx, o)
	if err != nil {
		return err
	}
	return c.Close()
}
