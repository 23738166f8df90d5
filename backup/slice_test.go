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
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// newWholePlace is a repository as it was made before there were slices.
func newWholePlace(t *testing.T) *place {
	t.Helper()
	p := newPlace(t)
	path := filepath.Join(p.root, "config")
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	const feature = "  \"incompat\": [\n    \"slices\"\n  ],\n"
	if !strings.Contains(string(text), feature) {
		t.Fatalf("the config has no slices: %s", text)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), feature, "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// extentsOf returns how many extents a backup has, and how many of them are slices.
func extentsOf(t *testing.T, r *repository.Repository, m *repository.Manifest) (all, sliced int) {
	t.Helper()
	err := walk(context.Background(), r.NewReader(0), m, func(_ uint64, extents []extent) error {
		for _, e := range extents {
			all++
			if e.sliced() {
				sliced++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all, sliced
}

// scatter writes blocks here and there, and says where.
func scatter(rng *rand.Rand, c content, blocks int) (content, []block.Range) {
	c = bytes.Clone(c)
	var changed []block.Range
	for range blocks {
		off := rng.IntN(len(c)-4096) / 4096 * 4096
		for i := range 4096 {
			c[off+i] = byte(rng.Uint32())
		}
		changed = append(changed, block.Range{Off: uint64(off), Len: 4096})
	}
	return c, changed
}

// Whatever is edited, and when the content grows and shrinks: each backup stays what it was, reads and stores no more than what changed and a little, and all else works with slices: comparing, copying, also to where there are none, pruning, verifying.
func TestSlices(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			rng := rand.New(rand.NewPCG(seed, 19))
			p, to, toWhole := newPlace(t), newPlace(t), newWholePlace(t)
			now := content(image(seed, 3*RegionSize-5120+512*rng.IntN(100)))
			parent := now.whole(t, p.open())
			was := []content{now}
			backups := []*repository.Manifest{parent}
			for step := range 8 {
				next, changed := edit(rng, now)
				if step%2 == 1 {
					next, changed = scatter(rng, now, 1+rng.IntN(300))
				}
				next, changed = grownOrShrunk(step, next, changed)
				r := p.open()
				m, err := next.since(t.Context(), r, parent, changed)
				if err != nil {
					t.Fatal(err)
				}
				sameContent(t, r, m, next)
				most := uint64(0)
				for _, x := range changed {
					most += x.Len + 4*changeUnit
				}
				if most += most/crowdShare + 2*RegionSize*uint64(step/3%2); m.ReadBytes > most || m.NewBytes > m.ReadBytes { // where it grows or shrinks a region is read whole
					t.Errorf("step %d: read %d B, at most %d wanted, and %d new", step, m.ReadBytes, most, m.NewBytes)
				}
				found, _ := diff(t, r, parent, m, false)
				want := sectorsThatDiffer(now, next)
				for _, c := range found {
					for off := c.Off; off < c.Off+c.Len; off += block.SectorSize {
						if !want[off] {
							t.Fatalf("step %d: %d is told to differ", step, off)
						}
						delete(want, off)
					}
				}
				if len(want) > 0 {
					t.Fatalf("step %d: %d sectors that differ are not told", step, len(want))
				}
				if step == 4 {
					copyAll(t, p, to)
					copyAll(t, p, toWhole)
				}
				now, parent = next, m
				was, backups = append(was, next), append(backups, m)
			}
			if _, sliced := extentsOf(t, p.open(), parent); sliced == 0 {
				t.Error("there are no slices")
			}
			copyAll(t, p, to)
			copyAll(t, p, toWhole)
			for i, place := range []*place{to, toWhole} {
				r := place.open()
				sound(t, r, len(backups))
				slicedThere := 0
				for _, m := range manifests(t, r) {
					i := slices.IndexFunc(backups, func(b *repository.Manifest) bool { return b.Time.Equal(m.Time) })
					sameContent(t, r, m, was[i])
					_, sliced := extentsOf(t, r, m)
					slicedThere += sliced
				}
				if (slicedThere > 0) != (i == 0) {
					t.Errorf("copies, %d, have %d slices", i, slicedThere)
				}
			}
			for i := range backups[:6] {
				p.forget(backups[i])
			}
			p.prune(repository.PruneOptions{Alone: true})
			r := p.open()
			sound(t, r, 3)
			for i := 6; i < len(backups); i++ {
				sameContent(t, r, backups[i], was[i])
			}
			d, err := NewDevice(r, parent, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			for range 50 {
				off := rng.IntN(len(now) - 1)
				got := make([]byte, 1+rng.IntN(min(200_000, len(now)-off)))
				if _, err := d.ReadAt(t.Context(), got, uint64(off), nil); err != nil || !bytes.Equal(got, now[off:off+len(got)]) {
					t.Fatalf("%d B at %d: other bytes, or %v", len(got), off, err)
				}
				again := make([]byte, len(got))
				if _, err := d.TryReadAt(again, uint64(off), nil); err == nil && !bytes.Equal(again, got) || err != nil && !errors.Is(err, block.ErrWouldBlock) {
					t.Fatalf("%d B at %d from memory: other bytes, or %v", len(got), off, err)
				}
			}
		})
	}
}

// Blocks that are written here and there, day after day, do not leave a disk in ever more pieces.
func TestSlicesDoNotCrowd(t *testing.T) {
	p := newPlace(t)
	rng := rand.New(rand.NewPCG(1, 20))
	now := content(noise(80, 2*RegionSize))
	parent := now.whole(t, p.open())
	before, _ := extentsOf(t, p.open(), parent)
	read, wrote := uint64(0), uint64(0)
	for range 40 {
		next, changed := scatter(rng, now, 2*RegionSize/4096/20)
		m, err := next.since(t.Context(), p.open(), parent, changed)
		if err != nil {
			t.Fatal(err)
		}
		c := NewChanges()
		for _, x := range changed {
			c.Add(x.Off, x.Len)
		}
		read, wrote = read+m.ReadBytes, wrote+c.Bytes()
		now, parent = next, m
	}
	sameContent(t, p.open(), parent, now)
	after, sliced := extentsOf(t, p.open(), parent)
	t.Logf("%d extents of a whole backup, %d after 40 backups, %d of them slices; %.2f B read for each that changed", before, after, sliced, float64(read)/float64(wrote))
	if after > 5*before {
		t.Errorf("%d extents where a whole backup has %d", after, before)
	}
	if float64(read) > 1.2*float64(wrote) {
		t.Errorf("%d B read for %d B that changed", read, wrote)
	}
}

// What a lost chunk was is found in another repository, also if only slices of it are needed.
func TestRepairOfSlices(t *testing.T) {
	p := newPlace(t)
	now := content(noise(81, RegionSize))
	parent := now.whole(t, p.open())
	next, changed := scatter(rand.New(rand.NewPCG(2, 20)), now, 200)
	m, err := next.since(t.Context(), p.open(), parent, changed)
	if err != nil {
		t.Fatal(err)
	}
	other := p.clone()
	p.forget(parent)
	p.flip(0, 16<<20)
	if got := p.repair(Repairing{DryRun: true}); len(got.Damaged) != 1 || got.Damaged[0].LostBytes == 0 {
		t.Fatalf("damage was not seen: %+v", got)
	}
	got := p.repair(Repairing{From: []RepairFrom{{Name: "other", Repository: other.open()}}})
	if got.Lost() || len(got.Mended) == 0 {
		t.Errorf("not mended: %+v", got)
	}
	sameContent(t, p.openDamaged(), m, next)
}

// A page whose slices are none is refused.
func TestBadSlices(t *testing.T) {
	id := block.Hash{1}
	for _, e := range []extent{{id, 4096, 1, 4096}, {id, 4096, 0, 4095}, {id, 4096, 0xfffff001, 0xffffffff}, {id, 4096, 0, maxSliced + 1}, {block.Hash{}, 4096, 1, 0}, {block.Hash{}, 4096, 0, 4096}} {
		b := encodePage([]extent{{id, 4096, 1, 8192}, e})
		if got, err := decodePage(b, 8192); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%d B at %d of %d, zero %v: taken, %v, %v", e.length, e.at, e.of, e.isZero(), got, err)
		}
	}
}
