package overlay

import (
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// heapBytes returns the live heap.
func heapBytes() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemory compares the bytes booked with the heap's growth, and both with the published figures.
func TestMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for _, c := range []struct {
		name  string
		fill  func(l *Layer)
		limit int64 // bytes
	}{
		{"2.6 million random slots over 2 TiB", func(l *Layer) {
			for i := range uint64(2_600_000) {
				l.PublishWrite(rng.Uint64N(2*tib), (i+1)<<12, []uint32{1})
			}
		}, 125e6},
		{"655,360 dense slots", func(l *Layer) {
			sums := make([]uint32, 16)
			for i := range uint64(40960) {
				l.PublishWrite(i*16, (i*17+1)<<12, sums)
			}
		}, 11.5e6},
		{"655,360 dense slots in random order", func(l *Layer) {
			for i, b := range rng.Perm(655360) {
				l.PublishWrite(uint64(b), uint64(i+1)<<12, []uint32{1})
			}
		}, 12e6},
		{"100 layers of 20 regions with one slot", func(l *Layer) {
			for i := range uint64(20) {
				l.PublishWrite(i*block.BlocksPerRegion*7, (i+1)<<12, []uint32{1})
			}
		}, 50e3},
		{"one region trimmed after another, 2 TiB", func(l *Layer) {
			for i := range uint64(131072) {
				l.PublishZero(i*block.BlocksPerRegion, block.BlocksPerRegion, (i+1)<<12)
			}
		}, 12e6},
	} {
		n := int64(1)
		if c.limit < 1e6 {
			n = 100
		}
		before := heapBytes()
		b := NewBudget(1 << 30)
		layers := make([]*Layer, n)
		for i := range layers {
			layers[i] = NewLayer(b)
			c.fill(layers[i])
		}
		real := heapBytes() - before
		t.Logf("%-40s booked %9d, heap %9d", c.name, b.Used()/n, real/n)
		if b.Used()/n > c.limit {
			t.Errorf("%s: %d bytes, limit %d", c.name, b.Used()/n, c.limit)
		}
		if diff := real - b.Used(); diff > real/10 || diff < -real/10 {
			t.Errorf("%s: %d bytes booked, heap grew by %d", c.name, b.Used(), real)
		}
		for _, l := range layers {
			l.Release()
		}
		if b.Used() != 0 || b.High() == 0 {
			t.Errorf("%s: %d bytes booked after release", c.name, b.Used())
		}
		runtime.KeepAlive(layers)
	}
}

// TestChurnGivesBack fills and drops the same regions again and again: memory must neither grow nor stay.
func TestChurnGivesBack(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	b := NewBudget(1 << 30)
	l := NewLayer(b)
	pos, high := uint64(1), int64(0)
	var snap RegionSnapshot
	for round := range 20 {
		for range 50_000 {
			l.PublishWrite(rng.Uint64N(100*block.BlocksPerRegion), pos<<12, []uint32{1})
			pos++
		}
		if round == 0 {
			high = b.Used()
		}
		for _, info := range l.OldestRegions(100, nil) {
			l.SnapshotRegion(info.Region, NoPos-1, &snap)
			l.DropRegion(&snap)
		}
		audit(t, l)
		if left := b.Used() - shards*shardBytes; left != 0 {
			t.Fatalf("%d bytes left in an empty layer", left)
		}
	}
	if b.High() > high*11/10 {
		t.Fatalf("high mark %d after a first round of %d", b.High(), high)
	}
}
