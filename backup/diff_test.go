package backup

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// diff returns the ranges in which two backups differ.
func diff(t *testing.T, r *repository.Repository, a, b *repository.Manifest, quick bool) ([]Change, Differences) {
	t.Helper()
	var found []Change
	got, err := Diff(context.Background(), r, a, b, Diffing{Quick: quick, Visit: func(c Change) error { found = append(found, c); return nil }})
	if err != nil {
		t.Fatal(err)
	}
	return found, got
}

// sectorsThatDiffer is what a comparison must find.
func sectorsThatDiffer(a, b []byte) map[uint64]bool {
	differ := make(map[uint64]bool)
	for off := 0; off < max(len(a), len(b)); off += block.SectorSize {
		end := min(off+block.SectorSize, len(a), len(b))
		if off >= len(a) || off >= len(b) || !bytes.Equal(a[off:end], b[off:end]) {
			differ[uint64(off)] = true
		}
	}
	return differ
}

// What differs is told to the sector, in order; a quick comparison tells that and what lies in the same chunks.
func TestDiff(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 7))
	p, _ := newMemoryPlace(t)
	for range 4 {
		a := image(rng.Uint64(), 2*RegionSize+512*rng.IntN(3000))
		b := bytes.Clone(a)
		for range 5 {
			at := rng.IntN(len(b) - 100_000)
			switch n := 1 + rng.IntN(99_000); rng.IntN(3) {
			case 0:
				clear(b[at : at+n])
			case 1:
				copy(b[at:at+n], b[rng.IntN(len(b)-n):])
			default:
				copy(b[at:at+n], noise(rng.Uint64(), n))
			}
		}
		if n := rng.IntN(RegionSize) / 512 * 512; rng.IntN(2) == 0 {
			b = b[:len(b)-n]
		} else {
			b = append(b, noise(rng.Uint64(), n)...)
		}
		first, err := keep(t, p.open(), a)
		if err != nil {
			t.Fatal(err)
		}
		second, err := keep(t, p.open(), b)
		if err != nil {
			t.Fatal(err)
		}
		want := sectorsThatDiffer(a, b)
		for _, quick := range []bool{false, true} {
			found, sums := diff(t, p.open(), first, second, quick)
			told, end, total := make(map[uint64]bool), uint64(0), uint64(0)
			for _, c := range found {
				if c.Off < end || c.Len == 0 {
					t.Fatalf("%+v comes after %d", c, end)
				}
				end, total = c.Off+c.Len, total+c.Len
				for off := c.Off / 512 * 512; off < end; off += 512 {
					told[off] = true
				}
				if c.Kind == Zeroed && !quick && len(bytes.Trim(b[c.Off+511:c.Off+max(c.Len, 1023)-511], "\x00")) > 0 {
					t.Errorf("%+v is not zero", c)
				}
			}
			for off := range want {
				if !told[off] {
					t.Fatalf("seed %d, quick %v: the sector at %d differs", seed, quick, off)
				}
			}
			if !quick && len(told) != len(want) || sums.Bytes != total || sums.Ranges != len(found) {
				t.Errorf("seed %d, quick %v: %d sectors differ and %d are told, %+v", seed, quick, len(want), len(told), sums)
			}
		}
		if found, sums := diff(t, p.open(), second, second, false); len(found) > 0 || sums.Pages > 0 {
			t.Errorf("a backup differs from itself: %+v", sums)
		}
	}
}

// What two backups have in common is not read.
func TestDiffReadsWhatChanged(t *testing.T) {
	p, _ := newMemoryPlace(t)
	a := noise(61, 3*RegionSize)
	b := bytes.Clone(a)
	copy(b[RegionSize+77:], "changed")
	first, err := keep(t, p.open(), a)
	if err != nil {
		t.Fatal(err)
	}
	second, err := keep(t, p.open(), b)
	if err != nil {
		t.Fatal(err)
	}
	var read atomic.Int64
	p.wrap = func(b backend.Backend) backend.Backend { return counting{b, &read} }
	r := p.open()
	read.Store(0)
	found, sums := diff(t, r, first, second, false)
	if !slices.Equal(found, []Change{{RegionSize, 512, Changed}}) || sums.Pages != 1 {
		t.Errorf("found %+v, %+v", found, sums)
	}
	if n := read.Load(); n > 6<<20 {
		t.Errorf("7 B of 48 MiB differ, and %d B were read", n)
	}
	stop := errors.New("stop")
	if _, err := Diff(context.Background(), r, first, second, Diffing{Visit: func(Change) error { return stop }}); !errors.Is(err, stop) {
		t.Errorf("a visitor that stops it: %v", err)
	}
}
