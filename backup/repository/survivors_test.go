package repository

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// preferring lists some objects before all others.
type preferring struct {
	backend.Backend
	first map[string]bool
}

func (b preferring) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	for _, first := range []bool{true, false} {
		err := b.Backend.List(ctx, prefix, func(o backend.Object) error {
			if b.first[o.Key] != first {
				return nil
			}
			return visit(o)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// claimedRepository has a chunk that a backup needs, and the pack of somebody who claims it falsely, which everybody lists first. claims has that pack hold more than that.
func claimedRepository(t *testing.T, raw []byte, more ...[]byte) (r *Repository, m *backendtest.Memory, id block.Hash, truth string) {
	t.Helper()
	r, m = newTestRepository(t)
	if err := store(t, r, raw, 0, nil); err != nil {
		t.Fatal(err)
	}
	h := dedup.NewHasher(r.Keys().Domain)
	id, truth = h.Sum(raw), r.index.all()[0].name
	honest := listed(t, m, indexPrefix)
	w, err := r.NewWriter(context.Background())
	if err == nil {
		err = w.copy(id, bytes.Repeat([]byte("x"), len(raw)))
	}
	for _, p := range more {
		err = errors.Join(err, w.copy(h.Sum(p), p))
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Close(); err != nil {
		t.Fatal(err)
	}
	first := make(map[string]bool)
	for _, key := range listed(t, m, indexPrefix) {
		first[key] = key != honest[0]
	}
	r.backend = preferring{m, first}
	return r, m, id, truth
}

func (r *Repository) pruneNeeding(t *testing.T, ids ...block.Hash) Pruned {
	t.Helper()
	got, err := r.Prune(context.Background(), PruneOptions{Grace: MinGrace, RepackBytes: 1 << 30, Warn: func(key string, err error) { t.Logf("%s: %v", key, err) }, Reachable: func(_ context.Context, visit func(block.Hash) error) error {
		for _, id := range ids {
			if err := visit(id); err != nil {
				return err
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func readsAs(t *testing.T, r *Repository, id block.Hash, raw []byte) {
	t.Helper()
	fresh := *r
	fresh.index = newIndex()
	if err := fresh.LoadIndex(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if got, err := fresh.NewReader(0).Chunk(context.Background(), id); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("the chunk reads as %q, %v", got, err)
	}
}

// Who claims a chunk that he does not hold cannot have the pack deleted that does, be it marked already or not; his own goes instead.
func TestFalseClaimsDeleteNothing(t *testing.T) {
	raw := []byte("the true bytes")
	other := []byte("bytes that another backup needs")
	for _, c := range []struct {
		what   string
		marked bool     // the true pack is, by a prune that believed the claim
		more   [][]byte // that the other pack really holds
	}{{"not marked", false, nil}, {"marked", true, nil}, {"not marked, some claims are true", false, [][]byte{other}}, {"marked, some claims are true", true, [][]byte{other}}} {
		r, m, id, truth := claimedRepository(t, raw, c.more...)
		needed := []block.Hash{id}
		if c.more != nil {
			needed = append(needed, dedup.NewHasher(r.Keys().Domain).Sum(other))
		}
		if c.marked {
			if err := r.storeMark(context.Background(), []block.Hash{block.Hash(must(t, truth))}); err != nil {
				t.Fatal(err)
			}
		}
		for range 5 {
			m.Wait(MinGrace + time.Hour)
			r.pruneNeeding(t, needed...)
			readsAs(t, r, id, raw)
			if c.more != nil {
				readsAs(t, r, needed[1], other)
			}
		}
		packs := len(listed(t, m, packPrefix))
		if want := len(needed); packs > want {
			t.Errorf("%s: %d packs are left, and %d suffice", c.what, packs, want)
		}
		m.Wait(MinGrace + time.Hour)
		if got := r.pruneNeeding(t, needed...); got.MarkedPacks+got.RepackedPacks+got.DeletedPacks > 0 {
			t.Errorf("%s: it does not come to rest: %+v", c.what, got)
		}
	}
}

// Runs that lie about a pack of others, in its frames, its size or its chunks, hide nothing of it, and have nothing deleted: the pack says itself.
func TestRunsThatLie(t *testing.T) {
	raw := []byte("the true bytes")
	lies := map[string]func(*runPack){
		"where a frame lies": func(p *runPack) { p.first++; p.frames[0].Len-- },
		"its size":           func(p *runPack) { p.size-- },
		"its chunks":         func(p *runPack) { p.frames[0].Chunks[0].ID = block.Hash{1, 2, 3} },
		"its length":         func(p *runPack) { p.frames[0].Chunks[0].Raw--; p.frames[0].Raw-- },
	}
	for what, lie := range lies {
		r, m := newTestRepository(t)
		if err := store(t, r, raw, 0, nil); err != nil {
			t.Fatal(err)
		}
		id := dedup.NewHasher(r.Keys().Domain).Sum(raw)
		honest := listed(t, m, indexPrefix)[0]
		packs, err := r.readRun(context.Background(), honest)
		if err != nil {
			t.Fatal(err)
		}
		lie(&packs[0])
		if _, err := r.storeRun(context.Background(), packs); err != nil {
			t.Fatal(err)
		}
		for _, key := range listed(t, m, indexPrefix) {
			r.backend = preferring{m, map[string]bool{key: true}}
			readsAs(t, r, id, raw)
		}
		claim(t, r, id, []byte("forged bytes!!"))
		for _, key := range listed(t, m, indexPrefix) {
			r.backend = preferring{m, map[string]bool{key: true}}
			for range 3 {
				m.Wait(MinGrace + time.Hour)
				r.pruneNeeding(t, id)
				readsAs(t, r, id, raw)
			}
		}
		if t.Failed() {
			t.Fatalf("the lie is about %s", what)
		}
	}
}

// Runs that a prune merges keep what the packs say themselves.
func TestMergedRunsTellTheTruth(t *testing.T) {
	r, m := newTestRepository(t)
	var ids []block.Hash
	for n := range manySmallRuns {
		raw := []byte{byte(n), 1, 2, 3}
		if err := store(t, r, raw, 0, nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, dedup.NewHasher(r.Keys().Domain).Sum(raw))
	}
	honest := listed(t, m, indexPrefix)
	first := make(map[string]bool)
	for _, key := range honest {
		packs, err := r.readRun(context.Background(), key)
		if err != nil {
			t.Fatal(err)
		}
		packs[0].frames[0].Chunks[0].ID[5] ^= 1
		if _, err := r.storeRun(context.Background(), packs); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range listed(t, m, indexPrefix) {
		first[key] = !slices.Contains(honest, key)
	}
	r.backend = preferring{m, first}
	r.pruneNeeding(t, ids...)
	if runs := listed(t, m, indexPrefix); len(runs) >= len(honest) {
		t.Errorf("%d runs were not merged", len(runs))
	}
	for n, id := range ids {
		readsAs(t, r, id, []byte{byte(n), 1, 2, 3})
	}
}

// A mark that cannot be read may name anything: nobody writes, and nothing is deleted, until a prune that is alone has removed it. Reading goes on.
func TestUnreadableMark(t *testing.T) {
	ctx := context.Background()
	raw := []byte("a chunk")
	r, m := newTestRepository(t)
	if err := store(t, r, raw, 0, nil); err != nil {
		t.Fatal(err)
	}
	id := dedup.NewHasher(r.Keys().Domain).Sum(raw)
	garbage := func() {
		if err := m.Create(ctx, markPrefix+"20260101t000000z-00000000", []byte("garbage")); err != nil {
			t.Fatal(err)
		}
	}
	err := store(t, r, []byte("another"), 7*time.Hour, func(*Writer) { garbage() })
	if !errors.Is(err, ErrUnreadableMark) {
		t.Errorf("a long backup commits: %v", err)
	}
	warned := 0
	if err := r.LoadIndex(ctx, func(string, error) { warned++ }); err != nil || warned != 1 {
		t.Errorf("the index is read with %v, %d warnings", err, warned)
	}
	if _, err := r.NewWriter(ctx); !errors.Is(err, ErrUnreadableMark) {
		t.Errorf("a writer begins: %v", err)
	}
	if _, err := r.NewReader(0).Chunk(ctx, id); err != nil {
		t.Errorf("a reader: %v", err)
	}
	o := PruneOptions{Grace: MinGrace, Warn: func(string, error) {}, Reachable: func(_ context.Context, visit func(block.Hash) error) error { return visit(id) }}
	if _, err := r.Prune(ctx, o); !errors.Is(err, ErrUnreadableMark) {
		t.Errorf("a prune: %v", err)
	}
	o.Alone = true
	for range 2 {
		if _, err := r.Prune(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	if left := listed(t, m, markPrefix); slices.Contains(left, markPrefix+"20260101t000000z-00000000") {
		t.Errorf("marks are left: %q", left)
	}
	if err := store(t, r, []byte("another"), 7*time.Hour, nil); err != nil {
		t.Error(err)
	}
}
