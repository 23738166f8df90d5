package repository

import (
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Only an owner says until when what a backup needs is locked, and only of that content: a writer could have others leave packs unlocked.
func TestLocksAreVouchedFor(t *testing.T) {
	r, _ := newTestRepository(t)
	ctx := t.Context()
	until := time.Now().Add(time.Hour).UTC().Truncate(time.Second)
	manifest := func() *Manifest {
		return &Manifest{Source: Source{Kind: "volume", Name: "v"}, Consistency: "crash", Time: time.Now(), SizeBytes: 4096, Root: Hashes{{1}}, LockedUntil: until, PacksLockedUntil: until}
	}
	genuine := manifest()
	if err := r.commit(ctx, genuine); err != nil {
		t.Fatal(err)
	}
	read, err := r.Manifest(ctx, genuine.Name)
	if err != nil || !read.LockedUntil.Equal(until) || !read.PacksLockedUntil.Equal(until) || !r.vouchedLock(read) {
		t.Fatalf("%+v, %v", read, err)
	}
	w := *r
	w.keys = r.keys.Writer()
	mine := manifest()
	if err := w.commit(ctx, mine); err != nil || !mine.PacksLockedUntil.IsZero() || mine.LockProof != nil || mine.LockedUntil.IsZero() {
		t.Errorf("a writer vouches for locks: %+v, %v", mine, err)
	}
	for name, forge := range map[string]func(m *Manifest){
		"no proof":           func(m *Manifest) { m.LockProof = make([]byte, 32) },
		"of another time":    func(m *Manifest) { m.PacksLockedUntil = until.Add(time.Hour) },
		"of another content": func(m *Manifest) { m.Root = Hashes{{2}} },
		"of another size":    func(m *Manifest) { m.SizeBytes++ },
	} {
		m := manifest()
		m.LockProof = read.LockProof
		forge(m)
		if r.vouchedLock(m) {
			t.Errorf("%s: it counts", name)
		}
		if until, err := r.PacksLockedUntil(ctx, m); err != nil || !until.IsZero() {
			t.Errorf("%s: locked until %v, %v", name, until, err)
		}
	}
}

// However many key slots somebody stores, those that were there before open the repository.
func TestSlotsOfOthers(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	slot := func(k *seal.Keys) (*seal.Slot, error) { return k.RecipientSlot([]age.Recipient{id.Recipient()}, "") }
	m := new(backendtest.Memory)
	if _, err := Init(t.Context(), m, cdc.Default(), slot); err != nil {
		t.Fatal(err)
	}
	m.Wait(time.Minute)
	other, _ := newTestRepository(t)
	other.backend = m
	stranger, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for range 5 * maxSlots {
		if err := other.AddSlot(t.Context(), func(k *seal.Keys) (*seal.Slot, error) {
			return k.RecipientSlot([]age.Recipient{stranger.Recipient()}, "")
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(t.Context(), m, seal.Credentials{Identities: []age.Identity{id}}); err != nil {
		t.Errorf("among %d slots of somebody else: %v", 5*maxSlots, err)
	}
}

// Runs that list all of some packs are found, and no more than that takes.
func TestRunsOf(t *testing.T) {
	x := newIndex()
	x.mu.runs = map[string][]uint32{"index/a": {0, 1}, "index/b": {1}, "index/c": {2, 3}, "index/d": {1, 4}}
	for _, c := range []struct {
		packs []uint32
		want  string
	}{{nil, ""}, {[]uint32{1}, "index/a"}, {[]uint32{0, 4}, "index/a index/d"}, {[]uint32{3, 9}, "index/c"}} {
		packs := make(map[uint32]bool)
		for _, n := range c.packs {
			packs[n] = true
		}
		got := ""
		for _, key := range x.runsOf(packs) {
			if got != "" {
				got += " "
			}
			got += key
		}
		if got != c.want {
			t.Errorf("runs of %v: %q, want %q", c.packs, got, c.want)
		}
	}
}
