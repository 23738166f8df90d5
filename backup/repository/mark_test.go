package repository

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

func newTestRepository(t *testing.T) (*Repository, *backendtest.Memory) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	m := new(backendtest.Memory)
	r, err := Init(context.Background(), m, cdc.Default(), func(k *seal.Keys) (*seal.Slot, error) {
		return k.RecipientSlot([]age.Recipient{id.Recipient()}, "")
	})
	if err != nil {
		t.Fatal(err)
	}
	return r, m
}

// store has a writer store a chunk, with the clock running that much ahead when it commits.
func store(t *testing.T, r *Repository, raw []byte, ahead time.Duration, before func(*Writer)) error {
	t.Helper()
	ctx := context.Background()
	if err := r.LoadIndex(ctx, nil); err != nil {
		t.Fatal(err)
	}
	w, err := r.NewWriter(ctx)
	if err != nil {
		t.Fatal(err)
	}
	id := dedup.NewHasher(r.Keys().Domain).Sum(raw)
	if _, err := w.Add(id, raw); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if before != nil {
		before(w)
	}
	w.since = func(asOf time.Time) time.Duration { return elapsed(asOf) + ahead }
	return w.Commit(ctx, &Manifest{Time: time.Now(), Source: Source{Kind: "file", Name: "x"}})
}

// A backup that takes long looks for marks before it exists. What it relies on and was marked meanwhile may be gone soon; a short one may rely on it.
func TestCommitNoticesMarks(t *testing.T) {
	ctx := context.Background()
	raw := []byte("a chunk")
	markAll := func(r *Repository) func(*Writer) {
		return func(*Writer) {
			var names []block.Hash
			for _, p := range r.index.all() {
				names = append(names, p.hash())
			}
			if err := r.storeMark(ctx, names); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, c := range []struct {
		what   string
		ahead  time.Duration
		before func(*Repository) func(*Writer)
		want   error
	}{
		{"a long backup, nothing marked", 7 * time.Hour, func(*Repository) func(*Writer) { return nil }, nil},
		{"a short backup, all marked meanwhile", 5 * time.Hour, markAll, nil},
		{"a long backup, all marked meanwhile", 7 * time.Hour, markAll, ErrMarked},
		{"a long backup, packs gone with their marks", 7 * time.Hour, func(r *Repository) func(*Writer) {
			return func(*Writer) {
				for _, p := range r.index.all() {
					if err := r.backend.Delete(ctx, packKey(p.name)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}, ErrMarked},
	} {
		for _, stored := range []bool{false, true} { // by the writer itself, or before
			r, m := newTestRepository(t)
			if stored {
				if err := store(t, r, raw, 0, nil); err != nil {
					t.Fatal(err)
				}
			}
			before := len(listed(t, m, manifestPrefix))
			err := store(t, r, raw, c.ahead, c.before(r))
			if !errors.Is(err, c.want) {
				t.Errorf("%s, chunk stored before %v: got %v, want %v", c.what, stored, err, c.want)
			}
			if made := len(listed(t, m, manifestPrefix)) - before; (made == 1) != (c.want == nil) {
				t.Errorf("%s, chunk stored before %v: %d backups were made", c.what, stored, made)
			}
		}
	}
}

func listed(t *testing.T, b backend.Backend, prefix string) (keys []string) {
	t.Helper()
	if err := b.List(context.Background(), prefix, func(o backend.Object) error { keys = append(keys, o.Key); return nil }); err != nil {
		t.Fatal(err)
	}
	return keys
}

// A prune that has taken too long deletes nothing.
func TestOldKnowledgeDeletesNothing(t *testing.T) {
	r, m := newTestRepository(t)
	p := &pruning{r: r, o: PruneOptions{Grace: MinGrace}, began: time.Now().Add(-freshness - time.Second), now: time.Now(), marks: []mark{{key: "marks/x", created: time.Now().Add(-MinGrace)}}}
	if err := m.Create(context.Background(), "packs/ab/"+nameOf(nil), nil); err != nil {
		t.Fatal(err)
	}
	name := block.Hash(must(t, nameOf(nil)))
	p.since = map[block.Hash]time.Time{name: time.Now().Add(-2 * MinGrace)}
	p.strays = map[block.Hash]prunePack{name: {created: time.Now().Add(-2 * MinGrace)}}
	if err := p.deleteMarked(context.Background()); err == nil || len(listed(t, m, packPrefix)) != 1 {
		t.Errorf("it deletes what was listed %v ago, error %v", freshness, err)
	}
}

func must(t *testing.T, name string) []byte {
	t.Helper()
	p := packInfo{name: name}
	h := p.hash()
	return h[:]
}

// A run that was replaced after it was listed does not hide its packs.
func TestRunsReplacedMeanwhile(t *testing.T) {
	r, m := newTestRepository(t)
	raw := []byte("a chunk")
	if err := store(t, r, raw, 0, nil); err != nil {
		t.Fatal(err)
	}
	old := listed(t, m, indexPrefix)[0]
	r.index, r.backend = newIndex(), &replacing{Backend: m, r: r, key: old}
	if err := r.LoadIndex(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if id := dedup.NewHasher(r.Keys().Domain).Sum(raw); !r.index.Has(id) {
		t.Error("what the replaced run listed is missing")
	}
}

// replacing replaces a run right after it was listed.
type replacing struct {
	backend.Backend
	r    *Repository
	key  string
	done bool
}

func (b *replacing) Stat(ctx context.Context, key string) (backend.Object, error) {
	if key == b.key && !b.done {
		b.done = true
		packs, err := b.r.readRun(ctx, key)
		if err == nil {
			_, err = b.r.storeRun(ctx, packs)
		}
		if err = errors.Join(err, b.Delete(ctx, key)); err != nil {
			return backend.Object{}, err
		}
	}
	return b.Backend.Stat(ctx, key)
}

func FuzzMark(f *testing.F) {
	keys, err := seal.NewKeys(block.UUID{4, 5}, dedup.DomainKey{})
	if err != nil {
		f.Fatal(err)
	}
	want := []block.Hash{{1}, {2, 3}}
	good := encodeMark(keys, want)
	f.Add(good)
	f.Add(encodeMark(keys, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := decodeMark(keys, b)
		switch {
		case err != nil && !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion):
			t.Errorf("got %v", err)
		case bytes.Equal(b, good) != (err == nil && slices.Equal(got, want)):
			t.Errorf("%x is read as %v, %v", b, got, err)
		}
	})
}
