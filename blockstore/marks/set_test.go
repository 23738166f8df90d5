package marks

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestSet compares sets with a map, under bounds that hold all ids, some, and a single leaf: what a set covers is exact, and what it does not cover any more it says.
func TestSet(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		first := rng.Uint64N(1 << 40)
		most := []int64{0, 3 * leafBytes, 1 << 30}[seed%3]
		s := New(first, most)
		want := map[uint64]bool{}
		spread := []uint64{1 << 10, 1 << 17, 1 << 21}[rng.IntN(3)]
		for range 3000 {
			id := first + rng.Uint64N(spread)
			if rng.IntN(50) == 0 {
				id = first - min(first, 1+rng.Uint64N(100))
			}
			s.Add(id)
			if id >= first {
				want[id] = true
			}
		}
		if s.End() <= first || most == 1<<30 && s.End() != ^uint64(0) {
			t.Fatalf("seed %d: it covers [%d, %d)", seed, first, s.End())
		}
		var sorted, got []uint64
		for id := range want {
			if id < s.End() {
				sorted = append(sorted, id)
			}
			if s.Has(id) != (id < s.End()) {
				t.Fatalf("seed %d: has %d: %v, it covers ids below %d", seed, id, s.Has(id), s.End())
			}
			if s.Has(id+1) && !want[id+1] {
				t.Fatalf("seed %d: %d was never added", seed, id+1)
			}
		}
		slices.Sort(sorted)
		for id, ok := s.Next(0); ok; id, ok = s.Next(id + 1) {
			got = append(got, id)
		}
		if !slices.Equal(sorted, got) {
			t.Fatalf("seed %d: %d ids, want %d", seed, len(got), len(sorted))
		}
	}
}

// TestPasses goes over ids again from where a set ended, as an audit does, and finds each one once.
func TestPasses(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 6))
	var ids []uint64
	for range 5000 {
		ids = append(ids, 1+rng.Uint64N(1<<24))
	}
	var got []uint64
	passes := 0
	for first := uint64(1); first != ^uint64(0); passes++ {
		s := New(first, 64*leafBytes)
		for _, id := range ids {
			s.Add(id)
		}
		for id, ok := s.Next(first); ok; id, ok = s.Next(id + 1) {
			got = append(got, id)
		}
		if s.Bytes() > 64*leafBytes+slotBytes<<10 {
			t.Fatalf("it took %d B", s.Bytes())
		}
		first = s.End()
	}
	slices.Sort(ids)
	if ids = slices.Compact(ids); !slices.Equal(ids, got) {
		t.Fatalf("%d ids, want %d", len(got), len(ids))
	}
	if passes != 8 {
		t.Errorf("%d passes over 512 leaves, 64 at once", passes)
	}
}

// TestDense is the published figure: 256 GiB in chunks of 16 KiB take 2 MiB, so a TiB takes 8.
func TestDense(t *testing.T) {
	s := New(1, 1<<30)
	for id := uint64(1); id <= 1<<24; id++ {
		s.Add(id)
	}
	if got := s.Bytes(); got > 2<<20+64<<10 {
		t.Errorf("2^24 ids take %d B", got)
	}
}
