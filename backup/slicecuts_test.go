package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// newCutPlace is a repository in memory that cuts so.
func newCutPlace(t *testing.T, cut cdc.Params) *place {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	m := new(backendtest.Memory)
	p := &place{t: t, in: m, id: id}
	if _, err := repository.Init(context.Background(), m, cut, p.slot); err != nil {
		t.Fatal(err)
	}
	return p
}

// resized returns content of another size, and what is new of it.
func resized(rng *rand.Rand, c content, size int) (content, []block.Range) {
	if size <= len(c) {
		return bytes.Clone(c[:size]), nil
	}
	next := append(bytes.Clone(c), make([]byte, size-len(c))...)
	if rng.IntN(2) == 0 {
		return next, nil // nothing was written there
	}
	at := len(c) + rng.IntN(size-len(c))
	for i := at; i < min(size, at+200_000); i++ {
		next[i] = byte(rng.Uint32())
	}
	return next, []block.Range{{Off: uint64(at), Len: uint64(size - at)}}
}

// Whatever a repository cuts like, whatever the size is, which changes in between, also to nothing, and in whatever order changes are told: each backup, and each copy of it, has its bytes.
func TestSlicesOfAllCutsAndSizes(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	cuts := []cdc.Params{
		cdc.FixedSize(4 << 10), cdc.FixedSize(64 << 10), cdc.FixedSize(1 << 20),
		{Kind: cdc.CDC, Min: 256, Avg: 1 << 10, Max: 2 << 10, TableVersion: cdc.TableVersion1},
		{Kind: cdc.CDC, Min: 512 << 10, Avg: 1 << 20, Max: 4 << 20, TableVersion: cdc.TableVersion1},
	}
	for n, cut := range cuts {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(uint64(n), 31))
			p, same, other := newCutPlace(t, cut), newCutPlace(t, cut), newCutPlace(t, cdc.Default())
			sizes := []int{1, 511, 0, 4097, RegionSize - 1, RegionSize + 1, RegionSize, 3*1024*1024 + 513, RegionSize + 70_001}
			now := content(image(uint64(n), 9000))
			parent := now.whole(t, p.open())
			was := map[string]content{parent.Name: now}
			for step := range 2 * len(sizes) {
				next, changed := now, []block.Range(nil)
				switch {
				case step%2 == 0:
					next, changed = resized(rng, now, sizes[step/2])
				case len(now) > 5000:
					next, changed = scatter(rng, now, 1+rng.IntN(len(now)/4096+1)) // unsorted, and some twice
					for range rng.IntN(8) {
						off := rng.IntN(len(next))
						length := min(len(next)-off, 1+rng.IntN(100_000))
						clear(next[off : off+length])
						changed = append(changed, block.Range{Off: uint64(off), Len: uint64(length)})
					}
				}
				if step == len(sizes) { // all of it is trimmed
					next = make(content, len(now))
					changed = []block.Range{{Len: uint64(len(now)) + 1<<40}}
				}
				m, err := next.since(t.Context(), p.open(), parent, changed)
				if err != nil {
					t.Fatalf("step %d, %d B: %v", step, len(next), err)
				}
				r := p.open()
				sameContent(t, r, m, next)
				d, err := NewDevice(r, m, 0)
				if err != nil {
					t.Fatal(err)
				}
				for range 5 {
					if len(next) == 0 {
						break
					}
					off := rng.IntN(len(next))
					got := make([]byte, 1+rng.IntN(min(300_000, len(next)-off)))
					if _, err := d.ReadAt(t.Context(), got, uint64(off), nil); err != nil || !bytes.Equal(got, next[off:off+len(got)]) {
						t.Fatalf("step %d: %d B at %d: other bytes, or %v", step, len(got), off, err)
					}
				}
				d.Close()
				if step%4 == 3 {
					copyAll(t, p, same)
					copyAll(t, p, other)
				}
				now, parent = next, m
				was[m.Name] = next
			}
			copyAll(t, p, same)
			copyAll(t, p, other)
			names := map[int64]string{}
			for _, m := range manifests(t, p.open()) {
				names[m.Time.UnixNano()] = m.Name
			}
			back := newCutPlace(t, cut)
			copyAll(t, same, back)
			for _, q := range []*place{same, other, back} {
				r := q.open()
				for _, m := range manifests(t, r) {
					sameContent(t, r, m, was[names[m.Time.UnixNano()]])
				}
			}
			sound(t, p.open(), len(was))
		})
	}
}

// slicedAlone is a repository whose one backup has slices of chunks that no backup has whole, and one with other keys that has a copy of it, of slices alone.
func slicedAlone(t *testing.T) (p, other *place, m *repository.Manifest, now content) {
	t.Helper()
	p, other = newPlace(t), newPlace(t)
	before := content(noise(82, RegionSize+1<<20))
	parent := before.whole(t, p.open())
	now, changed := scatter(rand.New(rand.NewPCG(3, 20)), before[:RegionSize], 200)
	now = append(now, before[RegionSize:]...)
	m, err := now.since(t.Context(), p.open(), parent, changed)
	if err != nil {
		t.Fatal(err)
	}
	p.forget(parent)
	copyAll(t, p, other)
	return p, other, m, now
}

// A copy with other keys has all the content, and mends what is lost of a backup with slices, although it has neither the chunks that these are of nor the pages: the backup is made anew.
func TestRepairOfSlicesFromACopy(t *testing.T) {
	p, other, m, now := slicedAlone(t)
	source := []RepairFrom{{Name: "other", Repository: other.open()}}
	anew := 0
	for i := range p.objects("packs") {
		q := p.clone()
		q.harm(q.objects("packs")[i], "gone")
		plan := q.repairDamaged(Repairing{From: source, DryRun: true})
		if plan.Lost() || len(plan.Manifests) > 0 && (plan.Manifests[0].From != "other" || plan.Manifests[0].As != "") {
			t.Fatalf("pack %d is gone, a dry run: %+v", i, plan)
		}
		if got := q.repairDamaged(Repairing{From: source}); got.Lost() || len(got.Manifests) != len(plan.Manifests) || len(got.Manifests) > 0 && (got.Manifests[0].Name != m.Name || got.Manifests[0].As == "") {
			t.Fatalf("pack %d is gone, and the repair does %+v", i, got)
		}
		anew += len(plan.Manifests)
		r := q.open()
		sound(t, r, 1)
		again := manifests(t, r)[0]
		if !again.Time.Equal(m.Time) || again.Source != m.Source || r.Identity(again) != p.open().Identity(m) {
			t.Errorf("the backup is %+v", again)
		}
		sameContent(t, r, again, now)
		if got := q.repair(Repairing{From: source}); got.Found() {
			t.Errorf("another one finds %+v", got)
		}
	}
	if anew < 2 {
		t.Errorf("%d packs had pages of slices, or chunks that are only sliced", anew)
	}
	// A copy that is damaged itself does not take the place of what can be read still.
	q, damaged := p.clone(), other.clone()
	q.harm(q.objects("packs")[0], "gone")
	damaged.flip(1<<20, 14<<20)
	before := q.content(q.openDamaged(), m, now)
	got := q.repairDamaged(Repairing{From: []RepairFrom{{Name: "other", Repository: damaged.openDamaged()}}})
	if !got.Lost() || len(got.Manifests) != 0 {
		t.Errorf("a damaged copy: %+v", got)
	}
	for off := range q.content(q.openDamaged(), m, now) {
		if !before[off] {
			t.Fatalf("what lies at %d could be read before", off)
		}
	}
}

// A repair that dies while it makes a backup anew leaves the repository no worse, and the next one finishes.
func TestRepairFromACopyDies(t *testing.T) {
	p, other, m, now := slicedAlone(t)
	p.harm(p.objects("packs")[0], "gone")
	before := p.content(p.openDamaged(), m, now)
	source := []RepairFrom{{Name: "other", Repository: other.open()}}
	for at, reached := 1, true; reached; at++ {
		q := p.clone()
		f := &backendtest.Faulty{At: at, Applied: at%2 == 0, Dead: true}
		q.wrap = func(b backend.Backend) backend.Backend { f.Backend = b; return f }
		_, err := Repair(context.Background(), q.openDamaged(), Repairing{From: source})
		reached = f.Reached()
		if reached != (err != nil) {
			t.Fatalf("change %d: %v", at, err)
		}
		q.wrap = nil
		for _, left := range manifests(t, q.openDamaged()) {
			for off := range q.content(q.openDamaged(), left, now) {
				if !before[off] {
					t.Fatalf("change %d: what lies at %d could be read before", at, off)
				}
			}
		}
		if got := q.repairDamaged(Repairing{From: source}); got.Lost() {
			t.Fatalf("change %d: the next repair does %+v", at, got)
		}
		r := q.open()
		sound(t, r, 1)
		sameContent(t, r, manifests(t, r)[0], now)
		if at > 60 {
			t.Fatal("it never ends")
		}
	}
}

// A locked increment whose parent is not locked locks the packs of all chunks that it has slices of, and a locked copy of it too.
func TestLockedSlices(t *testing.T) {
	v, other := newVault(t), newVault(t)
	before := content(noise(84, 3*RegionSize))
	parent := before.whole(t, v.open())
	now, changed := scatter(rand.New(rand.NewPCG(5, 20)), before, 300)
	changes := NewChanges()
	for _, x := range changed {
		changes.Add(x.Off, x.Len)
	}
	m := v.manifest(time.Hour)
	if err := RunIncremental(t.Context(), v.open(), now, parent, changes, m, nil); err != nil {
		t.Fatal(err)
	}
	later, changed := scatter(rand.New(rand.NewPCG(6, 20)), now, 3)
	changes = NewChanges()
	for _, x := range changed {
		changes.Add(x.Off, x.Len)
	}
	again := v.manifest(time.Hour + time.Minute)
	if err := RunIncremental(t.Context(), v.open(), later, m, changes, again, nil); err != nil {
		t.Fatal(err)
	}
	if _, sliced := extentsOf(t, v.open(), again); sliced == 0 {
		t.Fatal("there are no slices")
	}
	if _, err := Copy(t.Context(), v.open(), other.open(), Copying{Backups: []*repository.Manifest{m, again}, Locked: time.Now().Add(time.Hour).Truncate(time.Second)}); err != nil {
		t.Fatal(err)
	}
	v.destroy()
	v.uncover()
	sameContent(t, v.open(), m, now)
	sameContent(t, v.open(), again, later)
	other.destroy()
	other.uncover()
	for _, c := range manifests(t, other.open()) {
		sameContent(t, other.open(), c, map[bool][]byte{true: now, false: later}[c.Time.Equal(m.Time)])
	}
}

// A verification tells of a page that says wrong things of a chunk which is there: it cannot be restored.
func TestVerifySlices(t *testing.T) {
	p, _ := newMemoryPlace(t)
	ctx, r := t.Context(), p.open()
	for i, e := range []extent{{length: 4096, at: 4096, of: 8192}, {length: 4096, of: 8193}, {length: 8000, of: 8000}, {length: 8192, of: 8192}} {
		w, err := r.NewWriter(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out := tree{w: w, hasher: dedup.NewHasher(r.Keys().Domain)}
		if e.id, err = out.add(noise(9, 8192)); err == nil {
			err = errors.Join(out.region([]extent{e}), out.finish())
		}
		if _, closeErr := w.Close(); errors.Join(err, closeErr) != nil {
			t.Fatal(err, closeErr)
		}
		m := &repository.Manifest{Source: repository.Source{Kind: "file", Name: "f"}, Time: time.Now(), SizeBytes: uint64(e.length), Root: out.root}
		if err := w.Commit(ctx, m); err != nil {
			t.Fatal(err)
		}
		good, problems := i == 0 || i == 3, 0
		if _, err := Verify(ctx, r, Verification{Problem: func(what string, err error) {
			problems++
			if !errors.Is(err, block.ErrCorrupt) || !strings.Contains(what, m.Name) {
				t.Errorf("%s: %v", what, err)
			}
		}}); err != nil || (problems == 0) != good {
			t.Errorf("%d B at %d of %d: %d problems, %v", e.length, e.at, e.of, problems, err)
		}
		if err := Restore(ctx, r, m, discard{}, nil); (err == nil) != good {
			t.Errorf("%d B at %d of %d: restored, %v", e.length, e.at, e.of, err)
		}
		if err := r.Forget(ctx, m.Name); err != nil {
			t.Fatal(err)
		}
	}
}

// discard takes what is restored.
type discard struct{}

// WriteAt implements io.WriterAt.
func (discard) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
