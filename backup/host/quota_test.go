package host

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"filippo.io/age"
	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/remote"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

func quotas(t *testing.T, text string) access.Quotas {
	t.Helper()
	q, err := access.ParseQuotas(text, func(string) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// held is what lies in a repository, objects and what is under tmp/.
func (s *site) held(name string) (bytes int64) {
	s.t.Helper()
	err := filepath.Walk(filepath.Join(s.o.Dir, name), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			bytes += info.Size()
		}
		return err
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return bytes
}

// An object that would be over a quota is refused before it is sent, and leaves nothing. What is deleted gives room, also to who was refused; what is there counts after a restart.
func TestQuota(t *testing.T) {
	const mib = 1 << 20
	s := newSite(t, "web1=append,web2=append,admin=all", func(o *Options) {
		o.Quotas, o.PeerQuotas = quotas(t, "vms=8MiB,*=1GiB"), quotas(t, "web1=10MiB")
	})
	ctx := t.Context()
	web1, admin := s.made("web1", "vms"), s.client("admin", "vms")
	body := make([]byte, 3*mib)
	key := func(n int) string { return fmt.Sprintf("packs/aa/%d", n) }
	for n := range 2 {
		if err := web1.Create(ctx, key(n), body); err != nil {
			t.Fatal(err)
		}
	}
	err := web1.Create(ctx, key(2), body)
	if !errors.Is(err, block.ErrNoSpace) || !strings.Contains(err.Error(), "6.00 MiB of the 8.00 MiB") || !strings.Contains(err.Error(), "repository.quotas") {
		t.Fatalf("9 MiB of 8: %v", err)
	}
	if err := admin.Create(ctx, "packs/bb/1", body); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("a quota is not for who may do everything: %v", err)
	}
	if err := admin.Create(ctx, "marks/x", body); err != nil {
		t.Errorf("a full repository cannot be pruned: %v", err)
	}
	if err := admin.Delete(ctx, "marks/x"); err != nil {
		t.Error(err)
	}
	if s.held("vms") != 6*mib || s.left("vms") != 0 {
		t.Errorf("%d B are left, %d halves", s.held("vms"), s.left("vms"))
	}
	q, err := web1.Quota(ctx)
	if want := (backend.Quota{UsedBytes: 6 * mib, LimitBytes: 8 * mib, Peer: "web1", PeerUsedBytes: 6 * mib, PeerLimitBytes: 10 * mib}); err != nil || q != want {
		t.Errorf("it holds %+v, %v; want %+v", q, err, want)
	}

	own := s.made("web1", "own") // whose quota is another, and the client's the same
	if err := own.Create(ctx, key(0), body); err != nil {
		t.Fatal(err)
	}
	if err := own.Create(ctx, key(1), body); !errors.Is(err, block.ErrNoSpace) || !strings.Contains(err.Error(), "9.00 MiB of the 10.0 MiB") {
		t.Errorf("12 MiB of the client's 10: %v", err)
	}
	if err := s.client("web2", "own").Create(ctx, key(2), body); err != nil {
		t.Errorf("another client has no room: %v", err)
	}

	s.stop()
	s.start()
	if err := web1.Create(ctx, key(2), body); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("after a restart: %v", err)
	}
	if err := s.client("admin", "vms").Delete(ctx, key(0)); err != nil {
		t.Fatal(err)
	}
	if err := own.Create(ctx, key(1), body); err != nil {
		t.Errorf("what somebody else deletes does not give room to its client: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(s.o.Dir, "own")); err != nil {
		t.Fatal(err)
	}
	if q, err := web1.Quota(ctx); err != nil || q.PeerUsedBytes != 3*mib {
		t.Errorf("a repository that somebody has removed counts: %+v, %v", q, err)
	}
	var found []Usage
	for _, u := range s.host.Usage() {
		if u.Repository != "own" {
			found = append(found, u)
		}
	}
	if want := []Usage{{Repository: "vms", UsedBytes: 3 * mib, QuotaBytes: 8 * mib}, {Peer: "web1", UsedBytes: 3 * mib, QuotaBytes: 10 * mib}}; fmt.Sprint(found) != fmt.Sprint(want) {
		t.Errorf("usage is %+v; want %+v", found, want)
	}
}

// Nothing of the body of an object that is refused is asked for.
func TestQuotaBeforeBytes(t *testing.T) {
	s := newSite(t, "web1=append", func(o *Options) { o.Quotas = quotas(t, "*=1MiB") })
	s.made("web1", "vms")
	secured, err := filesOf(t, s.authority, "client", s.authority.Client("web1")).ClientConfig("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: secured, ExpectContinueTimeout: time.Minute}}
	defer c.CloseIdleConnections()
	body := &countedBody{left: 2 << 20}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, "https://"+s.address+remote.ObjectPath("vms", "packs/aa/1"), body)
	if err != nil {
		t.Fatal(err)
	}
	r.ContentLength = 2 << 20
	r.Header.Set("If-None-Match", "*")
	r.Header.Set("Expect", "100-continue")
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusInsufficientStorage || body.read > 0 {
		t.Errorf("status %d after %d bytes", answer.StatusCode, body.read)
	}
}

type countedBody struct{ left, read int }

func (b *countedBody) Read(p []byte) (int, error) {
	n := min(len(p), b.left)
	b.left, b.read = b.left-n, b.read+n
	return n, nil
}

// However many store and delete at once, and while repositories are counted anew, there is never more than the quota, and in the end exactly what is there counts.
func TestQuotaAtOnce(t *testing.T) {
	const quota = 4 << 20
	clock := time.Now()
	var mu sync.Mutex
	s := newSite(t, "web1=append,admin=all", func(o *Options) {
		o.Quotas, o.PeerQuotas = quotas(t, "vms=4MiB"), quotas(t, "*=1GiB")
		o.Now = func() time.Time {
			mu.Lock()
			defer mu.Unlock()
			clock = clock.Add(recountTime / 7)
			return clock
		}
	})
	ctx := t.Context()
	s.made("web1", "vms")
	var all sync.WaitGroup
	for worker := range 6 {
		all.Go(func() {
			c, admin := s.client("web1", "vms"), s.client("admin", "vms")
			for n := range 12 {
				key := fmt.Sprintf("packs/%02d/%d", worker, n)
				err := c.Create(ctx, key, make([]byte, 500<<10))
				if err != nil && !errors.Is(err, block.ErrNoSpace) {
					t.Error(err)
				}
				if err == nil && n%3 > 0 {
					err = admin.Delete(ctx, key)
				}
				if err != nil && !errors.Is(err, block.ErrNoSpace) {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := s.held("vms"); got > quota || s.left("vms") != 0 {
		t.Errorf("%d B are there", got)
	}
	q, err := s.client("web1", "vms").Quota(ctx)
	if err != nil || int64(q.UsedBytes) != s.held("vms") || q.PeerUsedBytes != q.UsedBytes {
		t.Errorf("%+v, %v; there are %d B", q, err, s.held("vms"))
	}
	s.host.ledger.mu.Lock()
	defer s.host.ledger.mu.Unlock()
	if len(s.host.ledger.mu.taken)+len(s.host.ledger.mu.takenBy) > 0 {
		t.Errorf("taken and not given back: %v, %v", s.host.ledger.mu.taken, s.host.ledger.mu.takenBy)
	}
}

// Who may append, and steals no keys, stores no manifest that keeps a prune from its work: what is none is refused, and what only looks like one a prune passes over.
func TestThiefsManifest(t *testing.T) {
	s := newSite(t, "admin=all,web1=append", nil)
	ctx, owner := t.Context(), identity(t)
	admin := s.made("admin", "vms")
	r, err := repository.Init(ctx, admin, cdc.Default(), func(k *seal.Keys) (*seal.Slot, error) {
		return k.RecipientSlot([]age.Recipient{owner.Recipient()}, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	kept := run(t, openRepository(t, admin, owner), noise(1, 3<<20))
	gone := run(t, openRepository(t, admin, owner), noise(2, 3<<20))
	id := r.Keys().Repository
	thief := s.client("web1", "vms")
	named := func(b []byte) string {
		sum := blake3.Sum256(b)
		return "manifests/2026-01-02t030405z-" + hex.EncodeToString(sum[:4])
	}
	fake := append([]byte("HVMANI1\x00\x01\x00\x00\x00"), id[:]...)
	fake = append(fake, bytes.Repeat([]byte{7}, 300)...)
	newer, foreign := bytes.Clone(fake), bytes.Clone(fake)
	binary.LittleEndian.PutUint16(newer[8:], 2)
	foreign[12]++
	for what, bad := range map[string]struct {
		key  string
		body []byte
	}{
		"noise":                {named([]byte("noise")), []byte("noise")},
		"a newer version":      {named(newer), newer},
		"another repository's": {named(foreign), foreign},
		"another name":         {named(foreign), fake},
	} {
		if err := thief.Create(ctx, bad.key, bad.body); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "manifests/") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if s.left("vms") != 0 {
		t.Errorf("%d halves are left", s.left("vms"))
	}
	if err := thief.Create(ctx, named(fake), fake); err != nil {
		t.Fatal(err)
	}
	if err := r.Forget(ctx, gone.Name); err != nil {
		t.Fatal(err)
	}
	warned := ""
	prune := func() repository.Pruned {
		t.Helper()
		p, err := backup.Prune(ctx, openRepository(t, admin, owner), repository.PruneOptions{Alone: true, Warn: func(what string, err error) { warned += what + ": " + err.Error() }}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	prune()
	if p := prune(); p.DeletedPacks == 0 || !strings.Contains(warned, "never a backup") {
		t.Errorf("%+v, and it says %q", p, warned)
	}
	got := make(content, kept.SizeBytes)
	if err := backup.Restore(ctx, openRepository(t, admin, owner), kept, got, nil); err != nil || !bytes.Equal(got, noise(1, 3<<20)) {
		t.Errorf("what was kept: %v", err)
	}

	// Damage is another thing: then nobody knows what the backup needs.
	path := filepath.Join(s.o.Dir, "vms", "manifests", kept.Name)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text[len(text)-1] ^= 1
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	var damage *backup.DamagedError
	if _, err := backup.Prune(ctx, openRepository(t, admin, owner), repository.PruneOptions{Alone: true}, nil); !errors.As(err, &damage) {
		t.Errorf("a prune beside a damaged manifest: %v", err)
	}
}
