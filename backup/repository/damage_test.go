package repository

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// again is the repository as somebody finds it who opens it now.
func (r *Repository) again(t *testing.T, bad func(string, error)) *Repository {
	t.Helper()
	fresh := *r
	fresh.index = newIndex()
	if err := fresh.LoadIndex(context.Background(), bad); err != nil {
		t.Fatal(err)
	}
	return &fresh
}

// stored has a repository with a chunk, and returns the chunk's id and the key of its pack.
func stored(t *testing.T, raw []byte) (r *Repository, m *backendtest.Memory, id block.Hash, key string) {
	t.Helper()
	r, m = newTestRepository(t)
	if err := store(t, r, raw, 0, nil); err != nil {
		t.Fatal(err)
	}
	return r, m, dedup.NewHasher(r.Keys().Domain).Sum(raw), listed(t, m, packPrefix)[0]
}

func take(t *testing.T, m *backendtest.Memory, key string) (whole []byte) {
	t.Helper()
	o, err := m.Stat(context.Background(), key)
	if err == nil {
		whole = make([]byte, o.SizeBytes)
		err = errors.Join(m.ReadAt(context.Background(), key, whole, 0), m.Delete(context.Background(), key))
	}
	if err != nil {
		t.Fatal(err)
	}
	return whole
}

func put(t *testing.T, m *backendtest.Memory, key string, b []byte) {
	t.Helper()
	if err := m.Create(context.Background(), key, b); err != nil {
		t.Fatal(err)
	}
}

// No backup relies on a pack that is lost or cut off, though the index lists it: what it held is stored anew, once, and then a prune is content and forgets the pack.
func TestLostPackIsStoredAnew(t *testing.T) {
	ctx := context.Background()
	raw := []byte("a chunk that every backup has")
	for what, left := range map[string]func(whole []byte) []byte{
		"lost":    func([]byte) []byte { return nil },
		"cut off": func(whole []byte) []byte { return whole[:len(whole)-1] },
	} {
		r, m, id, key := stored(t, raw)
		if part := left(take(t, m, key)); part != nil {
			put(t, m, key, part)
		}
		for _, wantNew := range []bool{true, false} {
			writer, told := r.again(t, nil), 0
			if _, err := writer.Adopt(ctx, func(string, error) { told++ }); err != nil || told != 1 {
				t.Errorf("a pack is %s: told %d times, %v", what, told, err)
			}
			w, err := writer.NewWriter(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if isNew, err := w.Add(id, raw); err != nil || isNew != wantNew {
				t.Errorf("a pack is %s: its chunk is new %v, want %v, %v", what, isNew, wantNew, err)
			}
			if _, err := w.Close(); err != nil {
				t.Fatal(err)
			}
			readsAs(t, r, id, raw)
		}
		for range 3 {
			r.pruneNeeding(t, id)
			readsAs(t, r, id, raw)
			m.Wait(MinGrace + time.Hour)
		}
		if _, err := r.again(t, nil).Adopt(ctx, func(key string, err error) { t.Errorf("a pack was %s, and after prunes: %s: %v", what, key, err) }); err != nil {
			t.Error(err)
		}
	}
}

// pruneDamaged prunes with what it needs being damaged, as a caller does who goes on after damage.
func (r *Repository) pruneDamaged(t *testing.T, accept bool, ids ...block.Hash) (Pruned, error) {
	t.Helper()
	return r.Prune(context.Background(), PruneOptions{Grace: MinGrace, RepackBytes: 1 << 30, Damaged: accept, Reachable: func(_ context.Context, visit func(block.Hash) error) error {
		for _, id := range ids {
			if err := visit(id); err != nil && (!accept || !errors.Is(err, block.ErrCorrupt)) {
				return err
			}
		}
		return nil
	}})
}

// With Damaged a lost pack is in nobody's way, and is not given up: when it comes back it is read again.
func TestPruneDespiteLostPack(t *testing.T) {
	raw, garbage := []byte("a chunk that is lost"), []byte("what nobody needs")
	r, m, id, key := stored(t, raw)
	if err := store(t, r, garbage, 0, nil); err != nil {
		t.Fatal(err)
	}
	whole := take(t, m, key)
	m.Wait(MinGrace)
	if _, err := r.pruneDamaged(t, false, id); !errors.Is(err, block.ErrCorrupt) || m.Bytes(markPrefix) != 0 {
		t.Errorf("a prune that is not told to: %v, %d B of marks", err, m.Bytes(markPrefix))
	}
	for range 4 {
		if _, err := r.pruneDamaged(t, true, id); err != nil {
			t.Fatal(err)
		}
		m.Wait(MinGrace)
	}
	if n := m.Bytes(packPrefix); n != 0 {
		t.Errorf("%d B of packs are left, and no backup needs them", n)
	}
	put(t, m, key, whole)
	m.Wait(MinGrace)
	readsAs(t, r, id, raw)
	for range 4 {
		r.pruneNeeding(t, id)
		m.Wait(MinGrace)
	}
	readsAs(t, r, id, raw)
}

// With Damaged a damaged run is replaced by what the packs say themselves. Those that a prune has marked are asked, too: a backup may need them all the same.
func TestPruneDespiteDamagedRun(t *testing.T) {
	for _, marked := range []bool{false, true} {
		raw := []byte("a chunk")
		r, m, id, key := stored(t, raw)
		if marked {
			if err := r.storeMark(context.Background(), []block.Hash{block.Hash(must(t, packName(key)))}); err != nil {
				t.Fatal(err)
			}
		}
		run := listed(t, m, indexPrefix)[0]
		bad := take(t, m, run)
		bad[len(bad)-1] ^= 1
		put(t, m, run, bad)
		m.Wait(MinGrace + time.Hour)
		if _, err := r.pruneDamaged(t, false, id); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("a prune that is not told to: %v", err)
		}
		if got, err := r.pruneDamaged(t, true, id); err != nil || got.DeletedPacks != 0 {
			t.Fatalf("marked %v: %+v, %v", marked, got, err)
		}
		if slices.Contains(listed(t, m, indexPrefix), run) {
			t.Error("the damaged run is still there")
		}
		for range 4 {
			readsAs(t, r, id, raw)
			m.Wait(MinGrace + time.Hour)
			r.pruneNeeding(t, id)
		}
		readsAs(t, r, id, raw)
	}
}

// An object that lies where no pack belongs is none, though it has the name of one.
func TestPackInAnotherFolder(t *testing.T) {
	r, m, _, key := stored(t, []byte("a chunk"))
	put(t, m, "packs/zz/"+packName(key), take(t, m, key))
	told := 0
	if _, err := r.again(t, nil).Adopt(context.Background(), func(string, error) { told++ }); err != nil || told != 1 {
		t.Errorf("a pack lies elsewhere: told %d times, %v", told, err)
	}
}

// hiding lists an object and says that it is not there.
type hiding struct {
	backend.Backend
	key string
}

func (b hiding) Stat(ctx context.Context, key string) (backend.Object, error) {
	if key == b.key {
		return backend.Object{}, block.ErrNotFound
	}
	return b.Backend.Stat(ctx, key)
}

// forgetting removes an object when it is read.
type forgetting struct{ hiding }

func (b forgetting) Stat(ctx context.Context, key string) (backend.Object, error) {
	if key == b.key {
		_ = b.Backend.Delete(ctx, key)
	}
	return b.hiding.Stat(ctx, key)
}

// Who deletes by what backups need takes none for forgotten that the place still lists.
func TestEveryManifest(t *testing.T) {
	ctx := context.Background()
	r, m := newTestRepository(t)
	for _, text := range []string{"one", "two"} {
		if err := store(t, r, []byte(text), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	key := listed(t, m, manifestPrefix)[0]
	for _, c := range []struct {
		what      string
		b         backend.Backend
		want, bad int
	}{
		{"all are there, and listed twice", doubling{m}, 2, 0},
		{"one is listed and not there", hiding{m, key}, 1, 1},
		{"that is listed twice", hiding{doubling{m}, key}, 1, 1},
		{"one is forgotten", forgetting{hiding{m, key}}, 1, 0},
	} {
		r.backend = c.b
		bad := 0
		all, err := r.EveryManifest(ctx, func(name string, err error) {
			if bad++; name != strings.TrimPrefix(key, manifestPrefix) || !errors.Is(err, block.ErrNotFound) {
				t.Errorf("%s: %s: %v", c.what, name, err)
			}
		})
		if err != nil || len(all) != c.want || bad != c.bad {
			t.Errorf("%s: %d backups, %d cannot be read, %v", c.what, len(all), bad, err)
		}
	}
}

// What is lost is told apart from what was never there.
func TestLostChunk(t *testing.T) {
	raw := []byte("a chunk")
	r, m, id, key := stored(t, raw)
	whole := take(t, m, key)
	for range 2 {
		if _, err := r.NewReader(0).Chunk(context.Background(), id); !errors.Is(err, ErrLost) || !errors.Is(err, block.ErrNotFound) {
			t.Errorf("a chunk whose pack is gone: %v", err)
		}
	}
	put(t, m, key, whole)
	if got, err := r.again(t, nil).NewReader(0).Chunk(context.Background(), id); err != nil || !bytes.Equal(got, raw) {
		t.Errorf("%q, %v", got, err)
	}
}
