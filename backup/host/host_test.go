package host

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/certtest"
)

func TestHost(t *testing.T) {
	s := newSite(t, "admin=all", nil)
	ctx := t.Context()
	if _, err := s.client("admin", "vms").Stat(ctx, "config"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no repository: got %v, want %v", err, block.ErrNotFound)
	}
	s.made("admin", "vms")
	backendtest.Run(t, func(*testing.T) backend.Backend { return s.client("admin", "vms") })
	if _, err := remote.Create(ctx, s.options("admin", "vms")); !errors.Is(err, block.ErrExists) {
		t.Errorf("a repository with objects: got %v, want %v", err, block.ErrExists)
	}
	s.made("admin", "vms2")
	if err := s.client("admin", "vms2").List(ctx, "", func(o backend.Object) error { return errors.New(o.Key) }); err != nil {
		t.Errorf("in another repository there is %v", err)
	}
	for path, want := range map[string]fs.FileMode{"vms": 0o700, "vms/config": 0o600} {
		if info, err := os.Stat(filepath.Join(s.o.Dir, path)); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v, error %v", path, info.Mode(), want, err)
		}
	}
}

// Nobody gets in without a certificate of the right authorities and a rule, and no client tells a stranger anything.
func TestStrangers(t *testing.T) {
	s := newSite(t, "admin=all,web1=append:vms", nil)
	ctx := t.Context()
	s.made("admin", "vms")
	other := certtest.New(t, "others")
	var untrusted *tls.CertificateVerificationError
	stat := func(change func(*remote.Options)) error {
		o := s.options("admin", "vms")
		change(&o)
		_, err := open(t, o).Stat(ctx, "config")
		return err
	}
	for what, c := range map[string]struct {
		change func(*remote.Options)
		want   error
		says   string
	}{
		"of other authorities": {func(o *remote.Options) {
			o.Files = filesOf(t, other, "client", other.Client("admin"))
			o.Files.CA = filesOf(t, s.authority, "client", s.authority.Client("admin")).CA
		}, fs.ErrPermission, "does not accept the certificate"},
		"that has ended": {func(o *remote.Options) {
			o.Files = filesOf(t, s.authority, "client", s.authority.Issue("admin", x509.ExtKeyUsageClientAuth, -time.Hour))
		}, fs.ErrPermission, "does not accept the certificate"},
		"for servers": {func(o *remote.Options) {
			o.Files = filesOf(t, s.authority, "client", s.authority.Issue("admin", x509.ExtKeyUsageServerAuth, time.Hour))
		}, fs.ErrPermission, "does not accept the certificate"},
		"without a rule":                {func(o *remote.Options) { *o = s.options("web2", "vms") }, fs.ErrPermission, "repository.peers"},
		"with a rule for another place": {func(o *remote.Options) { *o = s.options("web1", "archive") }, fs.ErrPermission, "repository.peers"},
	} {
		if err := stat(c.change); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("a certificate %s: got %v, want %v that says %q", what, err, c.want, c.says)
		}
	}
	if err := stat(func(o *remote.Options) { o.Files.CA = filesOf(t, other, "client", other.Client("admin")).CA }); !errors.As(err, &untrusted) || strings.Contains(err.Error(), "tries") {
		t.Errorf("a host of other authorities: got %v", err)
	}
	if err := stat(func(o *remote.Options) { o.Host = "127.0.0.2" }); !errors.As(err, &untrusted) && !errors.Is(err, backend.ErrUnreachable) {
		t.Errorf("a host of another name: got %v", err)
	}
	naked, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.authority.Pool(), ServerName: "localhost"})
	if err != nil {
		t.Fatal(err)
	}
	defer naked.Close()
	if _, err := fmt.Fprintf(naked, "GET /v1/repositories/vms HTTP/1.1\r\nHost: x\r\n\r\n"); err == nil {
		answer := make([]byte, 1000)
		if n, err := naked.Read(answer); err == nil {
			t.Errorf("without a certificate it says %q", answer[:n])
		}
	}
	exposed := s.options("admin", "vms")
	if err := os.Chmod(exposed.Files.Key, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := remote.Open(exposed); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a key that others can read: got %v", err)
	}
}

// Files that are replaced while the host runs count from the next connection on.
func TestRenewedCertificates(t *testing.T) {
	s := newSite(t, "admin=all", nil)
	o := s.options("admin", "vms")
	c := open(t, o)
	s.made("admin", "vms")
	next := certtest.New(t, "next")
	for _, one := range []struct {
		path string
		cert tls.Certificate
		role string
	}{{s.files.Cert, next.Server(), "server"}, {o.Files.Cert, next.Client("admin"), "client"}} {
		next.Store(filepath.Dir(one.path), one.role, one.cert)
	}
	if err := c.Close(); err != nil { // the next request needs a connection
		t.Fatal(err)
	}
	if _, err := c.Stat(t.Context(), "config"); err == nil || errors.Is(err, block.ErrNotFound) {
		t.Errorf("the client does not know the new authority yet: got %v", err)
	}
	if _, err := open(t, o).Stat(t.Context(), "config"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("with all files of the new authority: got %v, want %v", err, block.ErrNotFound)
	}
}

// What backups consist of is deleted for nobody while it is young by the host's clock; what can be made anew is.
func TestKeep(t *testing.T) {
	const keep = 30 * 24 * time.Hour
	var later atomic.Int64 // how far the host's clock is ahead
	s := newSite(t, "admin=all", func(o *Options) {
		o.Keep, o.Now = keep, func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	})
	c, ctx := s.made("admin", "vms"), t.Context()
	if got, err := c.Keep(ctx); err != nil || got != keep {
		t.Errorf("it keeps for %v, %v; want %v", got, err, keep)
	}
	held := []string{"config", "keys/a", "packs/ab/abcd", "manifests/a", "something/new"}
	for _, key := range append([]string{"index/a", "marks/a", "probes/a", "bench/a"}, held...) {
		if err := c.Create(ctx, key, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"index/a", "marks/a", "probes/a", "bench/a"} {
		if err := c.Delete(ctx, key); err != nil {
			t.Errorf("delete %s: %v", key, err)
		}
	}
	for _, age := range []time.Duration{0, -time.Hour, keep - time.Minute} {
		later.Store(int64(age))
		for _, key := range held {
			o, err := c.Stat(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			until := o.Created.Add(keep).UTC().Truncate(time.Second).Format(time.RFC3339)
			if err := c.Delete(ctx, key); !errors.Is(err, block.ErrInUse) || !strings.Contains(err.Error(), "kept until "+until) {
				t.Errorf("delete %s at the age of %v: got %v, want %v that says until %s", key, age, err, block.ErrInUse, until)
			}
		}
	}
	later.Store(int64(keep))
	for _, key := range held {
		if err := c.Delete(ctx, key); err != nil {
			t.Errorf("delete %s when its time is over: %v", key, err)
		}
	}
}

// A folder whose disk is not mounted is no empty one: nothing is made there, and clients come again.
func TestMissingFolder(t *testing.T) {
	s := newSite(t, "admin=all", func(o *Options) { o.Dir = filepath.Join(o.Dir, "mounted") })
	ctx := t.Context()
	o := s.options("admin", "vms")
	o.Tries = 2
	if err := create(ctx, o); !errors.Is(err, backend.ErrUnreachable) {
		t.Errorf("make a repository: got %v, want %v", err, backend.ErrUnreachable)
	}
	if _, err := open(t, o).Stat(ctx, "config"); !errors.Is(err, backend.ErrUnreachable) {
		t.Errorf("stat: got %v, want %v", err, backend.ErrUnreachable)
	}
	if err := os.Mkdir(s.o.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := create(ctx, o); err != nil {
		t.Errorf("when it is there: %v", err)
	}
}

// Counts are of repositories that are there, and of what became of requests.
func TestStats(t *testing.T) {
	s := newSite(t, "admin=all,mirror=read", nil)
	c, ctx := s.made("admin", "vms"), t.Context()
	for _, key := range []string{"packs/aa/a", "packs/aa/b"} {
		if err := c.Create(ctx, key, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.ReadAt(ctx, "packs/aa/a", make([]byte, 10), 5); err != nil {
		t.Error(err)
	}
	if err := c.Delete(ctx, "packs/aa/a"); err != nil {
		t.Error(err)
	}
	_ = s.client("mirror", "vms").Delete(ctx, "packs/aa/b")
	_, _ = s.client("mirror", "none").Stat(ctx, "config")
	want := []Stats{{Repository: "vms", Stored: 2, StoredBytes: 2000, SentBytes: 10, Deleted: 1, Refused: 1}}
	for deadline := time.Now().Add(time.Minute); !slices.Equal(s.host.Stats(), want); time.Sleep(time.Millisecond) { // what was sent counts when it is sent
		if time.Now().After(deadline) {
			t.Fatalf("got %+v, want %+v", s.host.Stats(), want)
		}
	}
}

func TestNoRoom(t *testing.T) {
	s := newSite(t, "admin=all", func(o *Options) { o.ReserveBytes = 1 << 60 })
	c, ctx := s.made("admin", "vms"), t.Context()
	if err := c.Create(ctx, "config", []byte("x")); !errors.Is(err, block.ErrNoSpace) || errors.Is(err, backend.ErrUnreachable) {
		t.Errorf("got %v, want %v", err, block.ErrNoSpace)
	}
}

// A list of several pages has each object once, in order, and from any prefix on.
func TestLongList(t *testing.T) {
	s := newSite(t, "admin=all", nil)
	c, ctx := s.made("admin", "vms"), t.Context()
	want := map[string]bool{"config": true}
	for n := range 2*remote.MaxPage + 7 {
		want[fmt.Sprintf("packs/%02x/%06x", n%256, n)] = true
	}
	for key := range want {
		path := filepath.Join(s.o.Dir, "vms", key)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last, got := "", 0
	err := c.List(ctx, "", func(o backend.Object) error {
		if !want[o.Key] || last != "" && !remote.Before(last, o.Key) || o.SizeBytes != 1 {
			t.Errorf("%+v after %s", o, last)
		}
		last, got = o.Key, got+1
		return nil
	})
	if err != nil || got != len(want) {
		t.Errorf("%d of %d objects are listed, %v", got, len(want), err)
	}
	got = 0
	if err := c.List(ctx, "packs/a", func(o backend.Object) error {
		if !strings.HasPrefix(o.Key, "packs/a") {
			t.Errorf("%s is listed", o.Key)
		}
		got++
		return nil
	}); err != nil || got < 16*15 || got > 16*17 {
		t.Errorf("of packs/a are %d listed, %v", got, err)
	}
	if _, err := s.client("admin", "vms").Stat(ctx, "config"); err != nil {
		t.Error(err)
	}
}

// A host that is killed and comes back while objects are stored costs tries, not objects.
func TestRestarted(t *testing.T) {
	s := newSite(t, "admin=all", nil)
	o := s.options("admin", "vms")
	o.Pause, o.Tries = 20*time.Millisecond, 12
	s.made("admin", "vms")
	c := open(t, o)
	content := func(n int) []byte { return bytes.Repeat([]byte{byte(n)}, 300_000+n) }
	const objects = 60
	failed := make(chan error, 1)
	go func() {
		for n := range objects {
			if err := c.Create(context.Background(), fmt.Sprintf("packs/aa/%03d", n), content(n)); err != nil {
				failed <- fmt.Errorf("object %d: %w", n, err)
				return
			}
		}
		failed <- nil
	}()
	for range 3 {
		time.Sleep(30 * time.Millisecond) // whatever it hits
		s.stop()
		s.start()
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
	for n := range objects {
		want := content(n)
		got := make([]byte, len(want))
		if err := c.ReadAt(t.Context(), fmt.Sprintf("packs/aa/%03d", n), got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("object %d differs, %v", n, err)
		}
	}
}
