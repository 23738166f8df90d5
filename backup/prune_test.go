package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

const grace = repository.MinGrace

// newMemoryPlace is a repository in memory.
func newMemoryPlace(t *testing.T) (*place, *backendtest.Memory) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	m := new(backendtest.Memory)
	p := &place{t: t, in: m, id: id}
	if _, err := repository.Init(context.Background(), m, cdc.Default(), p.slot); err != nil {
		t.Fatal(err)
	}
	return p, m
}

func (p *place) tryPrune(o repository.PruneOptions) (repository.Pruned, error) {
	p.t.Helper()
	if o.Grace == 0 {
		o.Grace = grace
	}
	o.Warn = func(key string, err error) { p.t.Errorf("%s: %v", key, err) }
	return Prune(context.Background(), p.open(), o, nil)
}

func (p *place) prune(o repository.PruneOptions) repository.Pruned {
	p.t.Helper()
	got, err := p.tryPrune(o)
	if err != nil {
		p.t.Fatal(err)
	}
	return got
}

func (p *place) forget(m *repository.Manifest) {
	p.t.Helper()
	if err := p.open().Forget(context.Background(), m.Name); err != nil {
		p.t.Fatal(err)
	}
}

// noise is an image that no other shares anything with.
func noise(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 2))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// What no backup needs is marked when it is old enough, is then not relied on any more, and goes a grace later.
func TestPrune(t *testing.T) {
	p, m := newMemoryPlace(t)
	kept, gone := image(1, RegionSize), noise(2, 3<<20)
	first, err := keep(t, p.open(), kept)
	if err != nil {
		t.Fatal(err)
	}
	second, err := keep(t, p.open(), gone)
	if err != nil {
		t.Fatal(err)
	}
	p.forget(second)
	full := m.Bytes("packs/")
	if got := p.prune(repository.PruneOptions{}); got.MarkedPacks != 0 || got.YoungPacks != 1 {
		t.Fatalf("a young pack may belong to a backup under way, and the prune did %+v", got)
	}
	m.Wait(grace)
	if got := p.prune(repository.PruneOptions{DryRun: true}); got.MarkedPacks != 1 || m.Bytes("marks/") != 0 {
		t.Fatalf("a dry run did %+v and left %d B of marks", got, m.Bytes("marks/"))
	}
	if got := p.prune(repository.PruneOptions{}); got.MarkedPacks != 1 || got.MarkedBytes < 3<<20 || got.DeletedPacks != 0 {
		t.Fatalf("the prune that marks did %+v", got)
	}
	if got := p.prune(repository.PruneOptions{}); got.MarkedPacks != 0 || got.DeletedPacks != 0 || got.WaitingPacks != 1 || got.DeletableAt.IsZero() {
		t.Fatalf("the prune before the grace is over did %+v", got)
	}
	again, err := keep(t, p.open(), gone)
	if err != nil || again.NewBytes < again.NonZero {
		t.Fatalf("a backup relies on a marked pack: of %d B only %d are new, %v", again.NonZero, again.NewBytes, err)
	}
	p.forget(again)
	m.Wait(grace)
	if got := p.prune(repository.PruneOptions{}); got.DeletedPacks != 1 || got.DeletedBytes < 3<<20 || got.MarkedPacks != 1 {
		t.Fatalf("the prune after the grace did %+v", got)
	}
	m.Wait(grace)
	p.prune(repository.PruneOptions{})
	m.Wait(grace)
	if got := p.prune(repository.PruneOptions{}); m.Bytes("marks/") != 0 || got.WaitingPacks != 0 || m.Bytes("probes/") != 0 {
		t.Errorf("%d B of marks are left, and %+v", m.Bytes("marks/"), got)
	}
	if left := m.Bytes("packs/"); left > full-3<<20 {
		t.Errorf("of %d B of packs %d are left", full, left)
	}
	sound(t, p.open(), 1)
	sameContent(t, p.open(), first, kept)
}

// A pack that is mostly dead is copied, as far as it is alive and the budget allows, and goes like others.
func TestPruneRepacks(t *testing.T) {
	p, m := newMemoryPlace(t)
	data := noise(3, 8<<20)
	whole, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	part, err := keep(t, p.open(), data[:2<<20])
	if err != nil || part.NewBytes > 100_000 {
		t.Fatalf("the part has %d new bytes, %v", part.NewBytes, err)
	}
	p.forget(whole)
	m.Wait(grace)
	if got := p.prune(repository.PruneOptions{RepackBytes: 1 << 20}); got.RepackedPacks != 0 || got.MarkedPacks != 0 {
		t.Errorf("with a budget of 1 MiB: %+v", got)
	}
	before := p.open() // a restore that begins now and ends after the old pack has gone
	if got := p.prune(repository.PruneOptions{RepackBytes: 1 << 30}); got.RepackedPacks != 1 || got.MarkedPacks != 1 || got.RepackedBytes > 3<<20 {
		t.Errorf("with budget enough: %+v", got)
	}
	sound(t, p.open(), 1)
	m.Wait(grace)
	if got := p.prune(repository.PruneOptions{}); got.DeletedPacks != 1 {
		t.Errorf("a grace later: %+v", got)
	}
	if left := m.Bytes("packs/"); left > 4<<20 {
		t.Errorf("%d B are left for 2 MiB", left)
	}
	sound(t, p.open(), 1)
	sameContent(t, p.open(), part, data[:2<<20])
	sameContent(t, before, part, data[:2<<20])
}

// A prune tells how far each of its phases is.
func TestPruneProgress(t *testing.T) {
	p, m := newMemoryPlace(t)
	data := noise(17, 8<<20)
	whole, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keep(t, p.open(), data[:1<<20]); err != nil {
		t.Fatal(err)
	}
	p.forget(whole)
	phases := make(map[string]uint64)
	for range 2 {
		m.Wait(grace)
		o := repository.PruneOptions{Grace: grace, RepackBytes: 1 << 30}
		if _, err := Prune(context.Background(), p.open(), o, func(phase string, done, total uint64) {
			if phases[phase] = max(phases[phase], total); done > total {
				t.Errorf("%s: %d of %d B", phase, done, total)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
	for phase, least := range map[string]uint64{PhaseLook: 1 << 20, repository.PhaseCopy: 900_000, repository.PhaseCheck: 8 << 20, repository.PhaseDelete: 8 << 20} {
		if phases[phase] < least {
			t.Errorf("%s: %d B in all, at least %d are expected", phase, phases[phase], least)
		}
	}
}

// When nobody else is there a prune need not wait.
func TestPruneAlone(t *testing.T) {
	p, m := newMemoryPlace(t)
	one, err := keep(t, p.open(), noise(5, 2<<20))
	if err != nil {
		t.Fatal(err)
	}
	p.forget(one)
	p.prune(repository.PruneOptions{Alone: true})
	if got := p.prune(repository.PruneOptions{Alone: true}); got.DeletedPacks != 1 || m.Bytes("packs/") != 0 {
		t.Errorf("%+v, and %d B are left", got, m.Bytes("packs/"))
	}
}

// A prune that does not know all of a repository deletes nothing of it.
func TestPruneRefuses(t *testing.T) {
	p, m := newMemoryPlace(t)
	ctx := context.Background()
	if _, err := p.tryPrune(repository.PruneOptions{Grace: time.Hour}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a grace of an hour: %v", err)
	}
	kept, err := keep(t, p.open(), noise(7, 1<<20))
	if err != nil {
		t.Fatal(err)
	}
	m.Wait(grace)
	damage := func(prefix string) {
		var key string
		_ = m.List(ctx, prefix, func(o backend.Object) error { key = o.Key; return nil })
		o, _ := m.Stat(ctx, key)
		whole := make([]byte, o.SizeBytes)
		if err := errors.Join(m.ReadAt(ctx, key, whole, 0), m.Delete(ctx, key), m.Create(ctx, key, whole[:len(whole)-1])); err != nil {
			t.Fatal(err)
		}
		m.Wait(grace)
		if _, err := Prune(ctx, p.openWarning(), repository.PruneOptions{Grace: grace, Warn: func(string, error) {}}, nil); !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrNotFound) {
			t.Errorf("damage among %s: got %v", prefix, err)
		}
		if m.Bytes("marks/") != 0 {
			t.Errorf("damage among %s: something is marked", prefix)
		}
		if err := errors.Join(m.Delete(ctx, key), m.Create(ctx, key, whole)); err != nil {
			t.Fatal(err)
		}
	}
	damage("manifests/")
	damage("index/")
	damage("packs/")
	sameContent(t, p.open(), kept, noise(7, 1<<20))
}

// openWarning opens a repository some of which is damaged.
func (p *place) openWarning() *repository.Repository {
	p.t.Helper()
	r, err := repository.Open(context.Background(), p.in, seal.Credentials{Identities: []age.Identity{p.id}})
	if err != nil {
		p.t.Fatal(err)
	}
	return r
}

// A prune that is killed at any of its steps, or loses the answer of one, leaves everything that backups need, and the next ones finish.
func TestPruneFaults(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	data := noise(11, 6<<20)
	for round := range 3 {
		w := newPrunedWorld(t, data, round)
		for _, dead := range []bool{true, false} {
			for _, applied := range []bool{false, true} {
				if testing.Short() && applied != dead {
					continue
				}
				for at, reached := 1, true; reached; at++ {
					reached = w.fault(t, &backendtest.Faulty{At: at, Applied: applied, Dead: dead})
				}
			}
		}
	}
}

// prunedWorld is a repository with a backup that was forgotten and two that need parts of it, at which one round of prunes is due. The first repacks and marks, the second deletes, the third removes marks.
type prunedWorld struct {
	id          *age.X25519Identity
	m           *backendtest.Memory
	data        []byte
	part, other *repository.Manifest
	round       int
}

var pruneAll = repository.PruneOptions{RepackBytes: 1 << 30}

func newPrunedWorld(t *testing.T, data []byte, round int) *prunedWorld {
	t.Helper()
	p, m := newMemoryPlace(t)
	w := &prunedWorld{id: p.id, m: m, data: data, round: round}
	whole, err := keep(t, p.open(), data)
	if err != nil {
		t.Fatal(err)
	}
	if w.part, err = keep(t, p.open(), data[:1<<20]); err != nil {
		t.Fatal(err)
	}
	if w.other, err = keep(t, p.open(), data[4<<20:5<<20]); err != nil {
		t.Fatal(err)
	}
	p.forget(whole)
	for range round {
		m.Wait(grace)
		p.prune(pruneAll)
	}
	return w
}

// fault lets the prune of that round fail, in a copy.
func (w *prunedWorld) fault(t *testing.T, fault *backendtest.Faulty) (reached bool) {
	t.Helper()
	m := w.m.Clone()
	p := &place{t: t, in: m, id: w.id}
	m.Wait(grace)
	p.wrap = func(b backend.Backend) backend.Backend { fault.Backend = b; return fault }
	_, err := p.tryPrune(pruneAll)
	p.wrap = nil
	if reached = fault.Reached(); reached != (err != nil) {
		t.Fatalf("round %d, fault at %d (applied %v, dead %v): got %v", w.round, fault.At, fault.Applied, fault.Dead, err)
	}
	sound(t, p.open(), 2)
	again, err := keep(t, p.open(), w.data[:3<<20])
	if err != nil {
		t.Fatal(err)
	}
	p.forget(again)
	for range 4 - w.round {
		m.Wait(grace)
		p.prune(pruneAll)
	}
	sound(t, p.open(), 2)
	sameContent(t, p.open(), w.part, w.data[:1<<20])
	sameContent(t, p.open(), w.other, w.data[4<<20:5<<20])
	if left := m.Bytes("packs/"); left > 6<<20 {
		t.Errorf("round %d, fault at %d (applied %v, dead %v): %d B are left for 2 MiB", w.round, fault.At, fault.Applied, fault.Dead, left)
	}
	return reached
}

// Prunes, backups and forgets at once, day after day: every backup that exists is whole each night.
func TestPruneModel(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	days := 60
	if testing.Short() {
		days = 12
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 3))
	p, m := newMemoryPlace(t)
	base := noise(13, 4<<20)
	content := make(map[string][]byte)
	var backups []*repository.Manifest
	for range days {
		var wait sync.WaitGroup
		var mu sync.Mutex
		for range 1 + rng.IntN(3) {
			from := rng.IntN(len(base) / 2)
			data := bytes.Clone(base[from : from+1+rng.IntN(len(base)/2)])
			copy(data[rng.IntN(len(data)):], noise(rng.Uint64(), rng.IntN(300_000)))
			wait.Go(func() {
				r := p.open()
				if _, err := r.Adopt(context.Background(), nil); err != nil {
					t.Error(err)
				}
				b, err := keep(t, r, data)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				backups, content[b.Name] = append(backups, b), data
			})
		}
		for range rng.IntN(3) {
			wait.Go(func() { // one of two at once may give up
				if _, err := Prune(context.Background(), p.open(), repository.PruneOptions{Grace: grace, RepackBytes: 2 << 20, Warn: func(string, error) {}}, nil); err != nil {
					t.Logf("a prune gives up: %v", err)
				}
			})
		}
		var forgotten []*repository.Manifest
		mu.Lock()
		for range rng.IntN(3) {
			if len(backups) > 2 {
				n := rng.IntN(len(backups))
				forgotten, backups = append(forgotten, backups[n]), slices.Delete(backups, n, n+1)
			}
		}
		mu.Unlock()
		for _, b := range forgotten {
			p.forget(b)
		}
		wait.Wait()
		r := p.open()
		sound(t, r, len(backups))
		if len(backups) > 0 {
			b := backups[rng.IntN(len(backups))]
			sameContent(t, r, b, content[b.Name])
		}
		m.Wait(time.Duration(rng.Int64N(int64(30 * time.Hour))))
		if t.Failed() {
			t.Fatalf("repeat with seed %d", seed)
		}
	}
	for _, b := range backups {
		sameContent(t, p.open(), b, content[b.Name])
		p.forget(b)
	}
	for range 4 {
		m.Wait(grace)
		p.prune(repository.PruneOptions{RepackBytes: 1 << 30})
	}
	if left := fmt.Sprint(m.Bytes("packs/"), " ", m.Bytes("marks/"), " ", m.Bytes("index/")); left != "0 0 0" {
		t.Errorf("without a backup, bytes of packs, marks and runs that are left: %s", left)
	}
}

// Packs are lost again and again, and prunes go on: every backup that was made since the last loss is whole, and stays so.
func TestPruneModelOfLosses(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	days := 40
	if testing.Short() {
		days = 10
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 4))
	p, m := newMemoryPlace(t)
	ctx := context.Background()
	base := noise(14, 3<<20)
	content := make(map[string][]byte) // of the backups since the last loss
	var backups []*repository.Manifest // all
	backUp := func() {
		from := rng.IntN(len(base) / 2)
		data := bytes.Clone(base[from : from+1+rng.IntN(len(base)/2)])
		copy(data[rng.IntN(len(data)):], noise(rng.Uint64(), rng.IntN(300_000)))
		r := p.open()
		_, err := r.Adopt(ctx, nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := keep(t, r, data)
		if err != nil {
			t.Fatal(err)
		}
		backups, content[b.Name] = append(backups, b), data
	}
	prune := func() {
		o := repository.PruneOptions{Grace: grace, RepackBytes: 2 << 20, Damaged: true, Warn: func(string, error) {}}
		if _, err := Prune(ctx, p.open(), o, nil); err != nil {
			t.Errorf("a prune: %v", err)
		}
	}
	for range days {
		if rng.IntN(3) == 0 {
			var packs []string
			_ = m.List(ctx, "packs/", func(o backend.Object) error { packs = append(packs, o.Key); return nil })
			if len(packs) > 0 {
				slices.Sort(packs)
				if err := m.Delete(ctx, packs[rng.IntN(len(packs))]); err != nil {
					t.Fatal(err)
				}
				clear(content)
			}
		}
		for range 1 + rng.IntN(2) {
			backUp()
		}
		if rng.IntN(4) > 0 {
			prune()
		}
		for range rng.IntN(3) {
			n := rng.IntN(len(backups))
			p.forget(backups[n])
			delete(content, backups[n].Name)
			if backups = slices.Delete(backups, n, n+1); len(backups) == 0 {
				break
			}
		}
		for _, b := range backups {
			if data, whole := content[b.Name]; whole {
				sameContent(t, p.open(), b, data)
			}
		}
		m.Wait(time.Duration(rng.Int64N(int64(30 * time.Hour))))
		if t.Failed() {
			t.Fatalf("repeat with seed %d", seed)
		}
	}
	for _, b := range backups {
		p.forget(b)
	}
	for range 4 {
		m.Wait(grace)
		prune()
	}
	if left := fmt.Sprint(m.Bytes("packs/"), " ", m.Bytes("marks/"), " ", m.Bytes("index/")); left != "0 0 0" {
		t.Errorf("without a backup, bytes of packs, marks and runs that are left: %s", left)
	}
}
