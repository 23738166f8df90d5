package repository

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// A chunk is taken from a pack that lasts, else from one that is there still, be it marked.
func TestPlaceThatIsThere(t *testing.T) {
	frames := func(n int) []pack.Frame {
		return slices.Repeat([]pack.Frame{{Raw: 8, Chunks: []pack.Chunk{{ID: block.Hash{1}, Raw: 8}}}}, n)
	}
	x := newIndex()
	x.mark([]block.Hash{{0xaa}, {0xbb}}, time.Now())
	lost := x.add(block.Hash{0xaa}.String(), 100, frames(1))
	x.lose(lost)
	there := x.add(block.Hash{0xbb}.String(), 100, frames(1))
	if p, ok := x.find(block.Hash{1}); !ok || p.pack != there {
		t.Errorf("one place is gone and the other one marked: found %+v, %v", p, ok)
	}
	lasting := x.add(block.Hash{0xcc}.String(), 100, frames(1))
	if p, ok := x.find(block.Hash{1}); !ok || p.pack != lasting {
		t.Errorf("a lasting place: found %+v, %v", p, ok)
	}
}

// A run that says more of a pack than another did makes nobody look for frames that are not there.
func TestRunsThatContradict(t *testing.T) {
	x := newIndex()
	one := pack.Frame{Raw: 8, Chunks: []pack.Chunk{{ID: block.Hash{1}, Raw: 8}}}
	other := pack.Frame{Raw: 8, Chunks: []pack.Chunk{{ID: block.Hash{2}, Raw: 8}}}
	x.add("p", 100, []pack.Frame{one})
	x.add("p", 100, []pack.Frame{one, other})
	if p, ok := x.find(block.Hash{2}); ok {
		t.Errorf("found frame %d of a pack with one frame", p.frame)
	}
}

// doubling lists everything twice, as directories on a network may do.
type doubling struct{ backend.Backend }

func (b doubling) List(ctx context.Context, prefix string, visit func(backend.Object) error) error {
	return b.Backend.List(ctx, prefix, func(o backend.Object) error { return errors.Join(visit(o), visit(o)) })
}

// A backup that is listed twice is one backup: as two, one would be kept and the other forgotten.
func TestBackupListedTwice(t *testing.T) {
	r, m := newTestRepository(t)
	for n := range 2 {
		if err := store(t, r, fmt.Append(nil, "chunk ", n), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	r.backend = doubling{m}
	if all, err := r.Manifests(context.Background(), nil); err != nil || len(all) != 2 {
		t.Errorf("of 2 backups there are %d, %v", len(all), err)
	}
}

// deletions says which objects are deleted, before they are.
type deletions struct {
	backend.Backend
	tell func(key string)
}

func (b deletions) Delete(ctx context.Context, key string) error {
	b.tell(key)
	return b.Backend.Delete(ctx, key)
}

// When a pack goes there is a new mark of it already, whatever becomes of this prune: another one that has seen the pack in a run may list it once more.
func TestMarkedAnewBeforeItGoes(t *testing.T) {
	r, m := newTestRepository(t)
	if err := store(t, r, []byte("a chunk"), 0, nil); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	if err := r.Forget(ctx, strings.TrimPrefix(listed(t, m, manifestPrefix)[0], manifestPrefix)); err != nil {
		t.Fatal(err)
	}
	o := PruneOptions{Grace: MinGrace, Reachable: func(context.Context, func(block.Hash) error) error { return nil }}
	prune := func() {
		m.Wait(MinGrace)
		if _, err := r.Prune(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	prune()
	marks, packs := listed(t, m, markPrefix), 0
	r.backend = deletions{m, func(key string) {
		if strings.HasPrefix(key, packPrefix) {
			packs++
			if now := listed(t, m, markPrefix); len(now) != len(marks)+1 {
				t.Errorf("a pack goes, and there are marks %v as before", now)
			}
		}
	}}
	if prune(); packs != 1 {
		t.Errorf("%d packs were deleted", packs)
	}
}

// Alone, what has just been marked is deleted at once, though the place tells times of listings finer than the time that it is.
func TestAloneNothingIsYoung(t *testing.T) {
	now := time.Now()
	p := &pruning{now: now.Truncate(time.Second), o: PruneOptions{Alone: true}}
	if !p.expired(now.Add(time.Second)) {
		t.Error("what was marked in this second is too young")
	}
}

// A prune whose index has grown under it, as a reader missed a pack, gives up.
func TestIndexGrowsUnderPrune(t *testing.T) {
	r, _ := newTestRepository(t)
	for n := range 2 {
		if err := store(t, r, fmt.Append(nil, "chunk ", n), 0, nil); err != nil {
			t.Fatal(err)
		}
	}
	grow := func(visit func(block.Hash) error) error {
		r.index.add(block.Hash{0xcc}.String(), 100, []pack.Frame{{Raw: 8, Chunks: []pack.Chunk{{ID: block.Hash{1}, Raw: 8}}}})
		return visit(block.Hash{1})
	}
	for what, reachable := range map[string]func(context.Context, func(block.Hash) error) error{
		"and it needs the new pack": func(_ context.Context, visit func(block.Hash) error) error { return grow(visit) },
		"and it does not": func(context.Context, func(block.Hash) error) error {
			_ = grow(func(block.Hash) error { return nil })
			return nil
		},
	} {
		if _, err := r.Prune(context.Background(), PruneOptions{Grace: MinGrace, Reachable: reachable}); !errors.Is(err, errChanged) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// However many packs no run lists, each run that names them is one that readers take.
func TestAdoptInPieces(t *testing.T) {
	r, m := newTestRepository(t)
	ctx := context.Background()
	const packs = packsPerMerged + 2
	for n := range packs {
		w, err := r.NewWriter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Add(block.Hash{byte(n), 1}, fmt.Append(nil, "chunk ", n)); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range listed(t, m, indexPrefix) {
		if err := m.Delete(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	r.index = newIndex()
	if err := r.LoadIndex(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Adopt(ctx, nil); err != nil || n != packs {
		t.Fatalf("adopted %d packs, %v", n, err)
	}
	if runs := listed(t, m, indexPrefix); len(runs) != 2 {
		t.Errorf("they are in %d runs", len(runs))
	}
	again := newIndex()
	r.index = again
	if err := r.LoadIndex(ctx, nil); err != nil || again.Stats().Packs != packs {
		t.Errorf("the runs list %d packs, %v", again.Stats().Packs, err)
	}
}

// A mark that was replaced after it was listed does not hide what the new one names.
func TestMarksReplacedMeanwhile(t *testing.T) {
	r, m := newTestRepository(t)
	ctx := context.Background()
	name := block.Hash{0xaa}
	if err := r.storeMark(ctx, []block.Hash{name}); err != nil {
		t.Fatal(err)
	}
	r.backend = &remarking{Backend: m, r: &Repository{backend: m, keys: r.keys, index: newIndex()}, key: listed(t, m, markPrefix)[0], name: name}
	if marks, err := r.loadMarks(ctx, nil); err != nil || len(marks) != 1 || !r.index.isMarked(name.String()) {
		t.Errorf("%d marks, %v", len(marks), err)
	}
}

// remarking replaces a mark right after it was listed.
type remarking struct {
	backend.Backend
	r    *Repository
	key  string
	name block.Hash
	done bool
}

func (b *remarking) Stat(ctx context.Context, key string) (backend.Object, error) {
	if key == b.key && !b.done {
		b.done = true
		if err := errors.Join(b.r.storeMark(ctx, []block.Hash{b.name}), b.Delete(ctx, key)); err != nil {
			return backend.Object{}, err
		}
	}
	return b.Backend.Stat(ctx, key)
}
