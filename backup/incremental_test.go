package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// content is bytes as a source of both kinds.
type content []byte

func (c content) Size() uint64 { return uint64(len(c)) }

func (c content) Region(ctx context.Context, p []byte, off uint64) (bool, error) {
	return false, c.ReadRange(ctx, p, off)
}

func (c content) ReadRange(_ context.Context, p []byte, off uint64) error {
	if off+uint64(len(p)) > uint64(len(c)) {
		return block.ErrOutOfRange
	}
	copy(p, c[off:])
	return nil
}

// whole backs up all of it.
func (c content) whole(t *testing.T, r *repository.Repository) *repository.Manifest {
	t.Helper()
	m := &repository.Manifest{Source: repository.Source{Kind: "volume", Name: "v"}, Consistency: "crash"}
	if err := Run(t.Context(), r, c, m, nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// since backs up what has changed.
func (c content) since(ctx context.Context, r *repository.Repository, parent *repository.Manifest, changed []block.Range) (*repository.Manifest, error) {
	changes := NewChanges()
	for _, x := range changed {
		changes.Add(x.Off, x.Len)
	}
	m := &repository.Manifest{Source: repository.Source{Kind: "volume", Name: "v"}, Consistency: "crash"}
	return m, RunIncremental(ctx, r, c, parent, changes, m, nil)
}

// edit changes content at random: what it returns is at least what is different.
func edit(rng *rand.Rand, c content) (content, []block.Range) {
	c = bytes.Clone(c)
	var changed []block.Range
	for range 1 + rng.IntN(30) {
		off := rng.IntN(len(c)) / 512 * 512
		length := min(len(c)-off, 512*(1+rng.IntN(1<<rng.IntN(12))))
		changed = append(changed, block.Range{Off: uint64(off), Len: uint64(length)})
		switch p := c[off : off+length]; rng.IntN(4) {
		case 0:
			clear(p)
		case 1: // told, and the same
		case 2:
			copy(p, c[rng.IntN(len(c)-length+1):])
		default:
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
		}
	}
	slices.SortFunc(changed, func(a, b block.Range) int { return int(a.Off) - int(b.Off) })
	return c, changed
}

// grownOrShrunk makes content grow in step 3, with something in what is new, and shrink in step 5.
func grownOrShrunk(step int, c content, changed []block.Range) (content, []block.Range) {
	switch step {
	case 3:
		c = append(c, make([]byte, RegionSize+77*512)...)
		copy(c[len(c)-90000:], c[:70000])
		changed = append(changed, block.Range{Off: uint64(len(c) - 90000), Len: 70000})
	case 5:
		c = c[:len(c)-RegionSize-100*512]
	}
	return c, changed
}

// Without slices a backup of what has changed has the same root, and says the same of itself, as one that reads everything; whatever is edited, and when the content grows and shrinks.
func TestIncrementalIsTheSameAsAll(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	for seed := range uint64(6) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 9))
			p := newWholePlace(t)
			now := content(image(seed, 3*RegionSize-5000+512*rng.IntN(100)))
			if seed%2 == 0 {
				clear(now[RegionSize/2 : 2*RegionSize])
			}
			parent := now.whole(t, p.open())
			for step := range 8 {
				next, changed := edit(rng, now)
				next, changed = grownOrShrunk(step, next, changed)
				r := p.open()
				m, err := next.since(t.Context(), r, parent, changed)
				if err != nil {
					t.Fatal(err)
				}
				again := next.whole(t, r) // finds everything stored, with the same keys
				if again.NewBytes != 0 || !slices.Equal(again.Root, m.Root) || again.NonZero != m.NonZero || again.SizeBytes != m.SizeBytes {
					t.Fatalf("step %d: %d B non-zero, by reading all %d B, of which %d B are new; the same root: %v", step, m.NonZero, again.NonZero, again.NewBytes, slices.Equal(again.Root, m.Root))
				}
				if m.Parent != parent.Name || m.ReadBytes == 0 {
					t.Errorf("it says of itself %+v", m)
				}
				now, parent = next, m
			}
			sameContent(t, p.open(), parent, now)
		})
	}
}

// What is read is little more than what changed, and nothing if nothing did.
func TestIncrementalReadsLittle(t *testing.T) {
	p := newPlace(t)
	now := content(image(5, 4*RegionSize))
	parent := now.whole(t, p.open())
	m, err := now.since(t.Context(), p.open(), parent, nil)
	if err != nil || m.ReadBytes != 0 || m.NewBytes != 0 || !slices.Equal(m.Root, parent.Root) {
		t.Fatalf("nothing changed: %+v, %v", m, err)
	}
	next := content(bytes.Clone(now))
	copy(next[RegionSize+70000:], image(6, 1<<20))
	m, err = next.since(t.Context(), p.open(), parent, []block.Range{{Off: RegionSize + 70000/512*512, Len: 1<<20 + 512}})
	if err != nil {
		t.Fatal(err)
	}
	if m.ReadBytes < 1<<20 || m.ReadBytes > 1<<20+2*changeUnit {
		t.Errorf("1 MiB changed, and %d B were read", m.ReadBytes)
	}
	sameContent(t, p.open(), m, next)
}

// A parent that is forgotten at the last moment leaves no backup, and neither does one whose chunks are gone: with the parent's chunks unknown, those of a region that changed are read again.
func TestIncrementalWithoutItsParent(t *testing.T) {
	p := newPlace(t)
	now := content(image(7, 2*RegionSize))
	parent := now.whole(t, p.open())
	changed := []block.Range{{Off: 4096, Len: 4096}}
	next := content(bytes.Clone(now))
	copy(next[4096:8192], bytes.Repeat([]byte("new"), 2000))

	for _, after := range []bool{false, true} {
		p.wrap = func(b backend.Backend) backend.Backend { return forgetting{b, "manifests/" + parent.Name, after} }
		if m, err := next.since(t.Context(), p.open(), parent, changed); !errors.Is(err, ErrParent) {
			t.Errorf("the parent was forgotten, after %v: %+v, %v", after, m, err)
		}
		p.wrap = nil
		if left := manifests(t, p.open()); len(left) != 0 {
			t.Errorf("a backup is there whose parent was forgotten, after %v: %v", after, left[0].Name)
		}
		parent = now.whole(t, p.open())
	}
	packs, err := filepath.Glob(filepath.Join(p.root, "packs", "*", "*"))
	if err != nil || len(packs) == 0 {
		t.Fatal(packs, err)
	}
	runs, err := filepath.Glob(filepath.Join(p.root, "index", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(packs, runs...) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := next.since(t.Context(), p.open(), parent, changed); !errors.Is(err, ErrParent) {
		t.Errorf("nothing of the parent is there: %+v, %v", m, err)
	}
	m := next.whole(t, p.open())
	sameContent(t, p.open(), m, next)
}

// A backup of what has changed is whole although a pack of its parent was lost: what that held is read again, be it changed or not.
func TestIncrementalAfterLostPacks(t *testing.T) {
	ctx := t.Context()
	older := content(noise(70, 2*RegionSize))
	old := bytes.Clone(older) // has chunks in packs of that one, and pages of its own
	old[RegionSize-1], old[2*RegionSize-1] = old[RegionSize-1]^1, old[2*RegionSize-1]^1
	now := bytes.Clone(old)
	copy(now[RegionSize+8192:], noise(71, 4096))
	for lost := 0; ; lost++ {
		p, m := newMemoryPlace(t)
		older.whole(t, p.open())
		parent := content(old).whole(t, p.open())
		var packs []backend.Object
		_ = m.List(ctx, "packs/", func(o backend.Object) error { packs = append(packs, o); return nil })
		if lost == len(packs) {
			break
		}
		slices.SortFunc(packs, func(a, b backend.Object) int { return a.Created.Compare(b.Created) })
		if err := m.Delete(ctx, packs[lost].Key); err != nil {
			t.Fatal(err)
		}
		r := p.open()
		if _, err := r.Adopt(ctx, nil); err != nil {
			t.Fatal(err)
		}
		b, err := content(now).since(ctx, r, parent, []block.Range{{Off: RegionSize + 8192, Len: 4096}})
		if errors.Is(err, ErrParent) { // its pages are lost
			b, err = content(now).whole(t, r), nil
		}
		if err != nil {
			t.Fatal(err)
		}
		sameContent(t, p.open(), b, now)
	}
}

// A cancel leaves no backup.
func TestIncrementalCancelled(t *testing.T) {
	p := newPlace(t)
	now := content(image(8, 2*RegionSize))
	parent := now.whole(t, p.open())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := now.since(ctx, p.open(), parent, []block.Range{{Off: 0, Len: 2 * RegionSize}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if left := manifests(t, p.open()); len(left) != 1 {
		t.Errorf("%d backups are there", len(left))
	}
}

func TestChanges(t *testing.T) {
	c := NewChanges()
	c.Add(0, 0)
	c.Add(MaxContent, 4096)
	if c.Bytes() != 0 || c.in(0) != nil {
		t.Error("nothing was changed, and something is")
	}
	c.Add(RegionSize-1, 2)
	c.Add(RegionSize-5, 2)
	c.Add(MaxContent-1, 1<<63)
	if c.Bytes() != 3*changeUnit {
		t.Errorf("%d B changed", c.Bytes())
	}
	last := c.in(0)
	if last.any(0, RegionSize-changeUnit) || !last.any(RegionSize-changeUnit, RegionSize) || last.next(0) != RegionSize-changeUnit || last.next(RegionSize-7) != RegionSize-7 {
		t.Error("the last unit of the first region changed, and it does not say so")
	}
	if next := c.in(1); next.next(0) != 0 || next.next(changeUnit) != RegionSize {
		t.Error("the first unit of the second region changed, and it does not say so")
	}
}
