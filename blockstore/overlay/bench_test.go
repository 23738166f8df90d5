package overlay

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// blocks2G is a working set of 2 GiB.
const blocks2G = 2 << 30 / block.Size

// randomBlocks are drawn before the clock runs.
func randomBlocks(n uint64) []uint64 {
	rng := rand.New(rand.NewPCG(1, 2))
	out := make([]uint64, 1<<20)
	for i := range out {
		out[i] = rng.Uint64N(n)
	}
	return out
}

// fill writes n blocks in random order.
func fill(l *Layer, n int) (pos uint64) {
	pos = 1
	for _, b := range rand.New(rand.NewPCG(5, 6)).Perm(n) {
		l.PublishWrite(uint64(b), pos<<12, []uint32{1})
		pos++
	}
	return pos
}

func BenchmarkPublish4K(b *testing.B) {
	for _, c := range []struct {
		name   string
		blocks uint64
		warm   bool
	}{{"overwrite-2GiB", blocks2G, true}, {"grow-2GiB", blocks2G, false}, {"grow-2TiB", 2 * tib, false}} {
		b.Run(c.name, func(b *testing.B) {
			at := randomBlocks(c.blocks)
			l, pos, sums := NewLayer(NewBudget(1<<30)), uint64(1), []uint32{1}
			if c.warm {
				pos = fill(l, int(c.blocks))
			}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if !c.warm && i%(1<<20) == 0 && i > 0 {
					b.StopTimer()
					l.Release()
					l = NewLayer(NewBudget(1 << 30))
					b.StartTimer()
				}
				l.PublishWrite(at[i&(1<<20-1)], pos<<12, sums)
				pos++
				i++
			}
		})
	}
}

func BenchmarkPublish1M(b *testing.B) {
	at := randomBlocks(blocks2G / 256)
	l, sums := NewLayer(NewBudget(1<<30)), make([]uint32, 256)
	pos := fill(l, blocks2G)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		l.PublishWrite(at[i&(1<<20-1)]*256, pos<<12, sums)
		pos += 257
	}
}

func BenchmarkLookup4K(b *testing.B) {
	at := randomBlocks(blocks2G)
	full, half := NewLayer(NewBudget(1<<30)), NewLayer(NewBudget(1<<30))
	fill(full, blocks2G)
	for i := range uint64(blocks2G / 2) {
		half.PublishWrite(i*2, (i+1)<<12, []uint32{1})
	}
	trimmed := NewLayer(NewBudget(1 << 30))
	trimmed.PublishZero(0, 2*tib, 1<<40)
	for _, c := range []struct {
		name  string
		layer *Layer
		shift uint64
	}{
		{"hit", full, 0}, {"half", half, 0}, {"miss-no-region", full, tib}, {"range-tombstone", trimmed, 0}, {"empty-layer", NewLayer(NewBudget(1)), 0},
	} {
		b.Run(c.name, func(b *testing.B) {
			runs, sums := make([]Run, 0, 8), make([]uint32, 0, 8)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				runs, sums = c.layer.LookupInto(runs[:0], sums[:0], at[i&(1<<20-1)]+c.shift, 1)
			}
		})
	}
}

func BenchmarkLookup1M(b *testing.B) {
	l := NewLayer(NewBudget(1 << 30))
	for i := range uint64(blocks2G / 256) {
		l.PublishWrite(i*256, (i*257+1)<<12, make([]uint32, 256))
	}
	at := randomBlocks(blocks2G / 256)
	runs, sums := make([]Run, 0, 8), make([]uint32, 0, 256)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		runs, sums = l.LookupInto(runs[:0], sums[:0], at[i&(1<<20-1)]*256, 256)
	}
}

func BenchmarkZero2T(b *testing.B) {
	b.Run("empty", func(b *testing.B) {
		l, pos := NewLayer(NewBudget(1<<30)), uint64(1)
		for b.Loop() {
			l.PublishZero(1, 2*tib, pos<<12)
			pos++
		}
	})
	b.Run("over-2.6M-random-slots", func(b *testing.B) {
		var trim, sweep time.Duration
		n, pos := 0, uint64(1)
		for ; b.Loop(); n++ {
			l, rng := NewLayer(NewBudget(1<<30)), rand.New(rand.NewPCG(7, 8))
			for range 2_600_000 {
				l.PublishWrite(rng.Uint64N(2*tib), pos<<12, []uint32{1})
				pos++
			}
			start := time.Now()
			l.PublishZero(1, 2*tib, pos<<12)
			trimmed := time.Now()
			l.OldestPos()
			trim, sweep = trim+trimmed.Sub(start), sweep+time.Since(trimmed)
		}
		b.ReportMetric(float64(trim.Microseconds())/float64(n), "µs/trim")
		b.ReportMetric(float64(sweep.Microseconds())/float64(n), "µs/sweep")
	})
}

func BenchmarkPublishSnapshotDrop16M(b *testing.B) {
	l, pos := NewLayer(NewBudget(1<<30)), uint64(1)
	sums := make([]uint32, block.BlocksPerRegion)
	var snap RegionSnapshot
	b.ReportAllocs()
	for b.Loop() { // with the publish that fills the region
		l.PublishWrite(0, pos<<12, sums)
		pos += block.BlocksPerRegion
		l.SnapshotRegion(0, NoPos-1, &snap)
		l.DropRegion(&snap)
	}
}

func BenchmarkOldestRegions(b *testing.B) {
	l := NewLayer(NewBudget(1 << 30))
	rng := rand.New(rand.NewPCG(9, 10))
	for i := range uint64(1_000_000) {
		l.PublishWrite(rng.Uint64N(2*tib), (i+1)<<12, []uint32{1})
	}
	var infos []RegionInfo
	b.ReportAllocs()
	for b.Loop() {
		l.PublishWrite(rng.Uint64N(2*tib), 1<<60, []uint32{1})
		infos = l.OldestRegions(64, infos[:0])
	}
}

// BenchmarkParallel publishes and looks up from all CPUs.
func BenchmarkParallel(b *testing.B) {
	l := NewLayer(NewBudget(1 << 30))
	at := randomBlocks(blocks2G)
	pos := fill(l, blocks2G)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		runs, sums, i := make([]Run, 0, 8), make([]uint32, 0, 8), rand.IntN(1<<20)
		one := []uint32{1}
		for pb.Next() {
			if i++; i%2 == 0 {
				l.PublishWrite(at[i&(1<<20-1)], (pos+uint64(i))<<12, one)
			} else {
				runs, sums = l.LookupInto(runs[:0], sums[:0], at[i&(1<<20-1)], 1)
			}
		}
	})
}
