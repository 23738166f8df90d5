package idset

import (
	"math/rand/v2"
	"testing"
)

// A set does what a Go map does, whatever the order, at borders of words and pages, and after Clear.
func TestSetIsASet(t *testing.T) {
	const end = 3*pageIDs + 100
	s := New(end)
	rng := rand.New(rand.NewPCG(1, 7))
	for round := range 3 {
		model := map[uint64]bool{}
		for range 50_000 {
			id := rng.Uint64N(end)
			if rng.IntN(4) == 0 { // borders
				id = []uint64{0, 63, 64, pageIDs - 1, pageIDs, end - 1}[rng.IntN(6)]
			}
			switch rng.IntN(3) {
			case 0:
				if got := s.Remove(id); got != model[id] {
					t.Fatalf("remove %d: %v, want %v", id, got, model[id])
				}
				delete(model, id)
			case 1:
				if got := s.Add(id); got == model[id] {
					t.Fatalf("add %d: fresh %v, but known %v", id, got, model[id])
				}
				model[id] = true
			default:
				if got := s.Has(id); got != model[id] {
					t.Fatalf("has %d: %v, want %v", id, got, model[id])
				}
			}
		}
		if got := s.Len(); got != uint64(len(model)) {
			t.Fatalf("round %d: %d members, want %d", round, got, len(model))
		}
		if got := s.Bytes(); got > MostBytes(end) {
			t.Fatalf("%d bytes, above the bound of %d", got, MostBytes(end))
		}
		s.Clear()
		if s.Len() != 0 || s.Has(0) {
			t.Fatal("members are left after Clear")
		}
	}
}

// What lies beyond the bound is no member, and does no harm.
func TestBeyondTheBound(t *testing.T) {
	s := New(10)
	if s.Has(1<<40) || s.Add(1<<40) || s.Remove(1<<40) {
		t.Fatal("an id beyond the bound counts")
	}
	var none Set
	if none.Has(0) || none.Add(0) {
		t.Fatal("the zero set takes ids")
	}
}

// The published memory: a TiB of chunks of 16 KiB takes 8 MiB and a little.
func TestMemoryOfATiB(t *testing.T) {
	const chunks = 1 << 40 / (16 << 10)
	if got := MostBytes(chunks); got > 8<<20+64<<10 {
		t.Fatalf("%d bytes for %d chunks", got, chunks)
	}
}
