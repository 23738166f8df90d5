package repository

import (
	"errors"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Only a backup that an owner vouches for is found as the one of a state of a volume: not one of another volume, state or time, and not one that a writer made up.
func TestFindFrozen(t *testing.T) {
	r, _ := newTestRepository(t)
	ctx := t.Context()
	at := time.Date(2026, 11, 29, 2, 0, 0, 0, time.UTC)
	manifest := func(volume string) *Manifest {
		return &Manifest{Source: Source{Kind: "volume", Name: "v"}, Consistency: "crash", Time: at, SizeBytes: 4096, Root: Hashes{{1}}, Frozen: &Frozen{Volume: volume, Sequence: 7}}
	}
	genuine := manifest("a")
	if err := r.commit(ctx, genuine); err != nil {
		t.Fatal(err)
	}
	found, err := r.FindFrozen(ctx, FormatTime(at), "a", 7)
	if err != nil || found.Name != genuine.Name {
		t.Fatalf("%+v, %v", found, err)
	}
	for _, c := range []struct {
		named, volume string
		sequence      uint64
		want          error
	}{
		{FormatTime(at), "b", 7, block.ErrNotFound},
		{FormatTime(at), "a", 8, block.ErrNotFound},
		{FormatTime(at.Add(time.Second)), "a", 7, block.ErrNotFound},
		{"", "a", 7, block.ErrInvalid},
		{"../keys/x", "a", 7, block.ErrInvalid},
	} {
		if found, err := r.FindFrozen(ctx, c.named, c.volume, c.sequence); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v, %v", c, found, err)
		}
	}

	w := *r
	w.keys = r.keys.Writer()
	mine := manifest("c")
	if err := w.commit(ctx, mine); err != nil || mine.Frozen != nil {
		t.Errorf("a writer says which state a backup is of: %+v, %v", mine.Frozen, err)
	}
	for name, forge := range map[string]func(m *Manifest){
		"no proof":            func(m *Manifest) { m.Frozen.Proof = make([]byte, 32) },
		"of another content":  func(m *Manifest) { m.Frozen.Proof, m.Root = genuine.Frozen.Proof, Hashes{{2}} },
		"of another size":     func(m *Manifest) { m.Frozen.Proof, m.SizeBytes = genuine.Frozen.Proof, 8192 },
		"of another sequence": func(m *Manifest) { m.Frozen.Proof, m.Frozen.Sequence = genuine.Frozen.Proof, 9 },
		"of another volume":   func(m *Manifest) { m.Frozen.Proof, m.Frozen.Volume = genuine.Frozen.Proof, "d" },
	} {
		m := manifest("a")
		m.Time = at.Add(time.Hour)
		forge(m)
		if err := w.store(ctx, m); err != nil {
			t.Fatal(err)
		}
		if found, err := r.FindFrozen(ctx, FormatTime(m.Time), m.Frozen.Volume, m.Frozen.Sequence); !errors.Is(err, block.ErrNotFound) {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
	if _, err := w.FindFrozen(ctx, FormatTime(at), "a", 7); !errors.Is(err, seal.ErrReadKey) {
		t.Errorf("a writer finds a backup: %v", err)
	}
}
