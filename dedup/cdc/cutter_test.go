package cdc_test

import (
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// corpus is n bytes that stay the same for ever: ChaCha8 is specified, unlike the generators that math/rand may exchange.
func corpus(seed byte, n int) []byte {
	src := rand.NewChaCha8([32]byte{seed})
	p := make([]byte, n)
	src.Read(p)
	return p
}

func newCutter(tb testing.TB, p cdc.Params) *cdc.Cutter {
	tb.Helper()
	c, err := cdc.NewCutter(p)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func sum(lens []uint32) (n int) {
	for _, l := range lens {
		n += int(l)
	}
	return n
}

// The cut points of table version 1 are part of every store that exists. If this test fails the code is wrong, not the numbers.
func TestCutPointsAreGolden(t *testing.T) {
	small := cdc.Params{Kind: cdc.CDC, Min: 1 << 10, Avg: 4 << 10, Max: 16 << 10, TableVersion: cdc.TableVersion1}
	for _, g := range []struct {
		p     cdc.Params
		first []uint32
		n     int
		crc   uint32
	}{
		{cdc.Default(), []uint32{0x3416, 0x625f, 0x80b7, 0x1404, 0x1066, 0x1114, 0x148f, 0x5741}, 268, 0x5d386ea5},
		{small, []uint32{0x418, 0x15bf, 0x47f, 0x42f, 0x424, 0x4b6, 0x528, 0x4d6}, 1202, 0xc29ce6b6},
	} {
		lens := newCutter(t, g.p).Cut(nil, corpus(1, 4<<20), 0)
		h := crc32.NewIEEE()
		for _, l := range lens {
			h.Write([]byte{byte(l), byte(l >> 8), byte(l >> 16), byte(l >> 24)})
		}
		if !slices.Equal(lens[:8], g.first) || len(lens) != g.n || h.Sum32() != g.crc {
			t.Errorf("%v: %#v, %d, %#x", g.p, lens[:8], len(lens), h.Sum32())
		}
	}
}

func TestChunksCoverAndStayInBounds(t *testing.T) {
	p := cdc.Default()
	c := newCutter(t, p)
	data := corpus(2, 1<<20)
	for _, n := range []int{0, 1, 4095, 4096, 4097, 16 << 10, 64 << 10, 64<<10 + 1, 1 << 20} {
		lens := c.Cut(nil, data[:n], 0)
		if sum(lens) != n {
			t.Fatalf("chunks of %d B cover %d B", n, sum(lens))
		}
		for i, l := range lens {
			if l > p.Max || l == 0 || l <= p.Min && i < len(lens)-1 {
				t.Errorf("%d B: chunk %d of %d has %d B", n, i, len(lens), l)
			}
		}
	}
	zeroes := c.Cut(nil, make([]byte, 1<<20), 0)
	for _, l := range zeroes {
		if l != p.Max {
			t.Errorf("a constant run is cut at %d B", l)
		}
	}
}

func TestAverage(t *testing.T) {
	for _, avg := range []uint32{4 << 10, 8 << 10, 16 << 10, 64 << 10} {
		p := cdc.Params{Kind: cdc.CDC, Min: avg / 4, Avg: avg, Max: 4 * avg, TableVersion: cdc.TableVersion1}
		n := len(newCutter(t, p).Cut(nil, corpus(3, 16<<20), 0))
		if got := 16 << 20 / n; got < int(avg)*3/4 || got > int(avg)*5/4 {
			t.Errorf("%v: average %d B", p, got)
		}
	}
}

// After an insertion the cuts must fall into step again, or nothing behind it is ever found twice.
func TestCutsResynchronise(t *testing.T) {
	c := newCutter(t, cdc.Default())
	data := corpus(4, 8<<20)
	cuts := func(p []byte) map[int]bool { // distances from the end
		m, at := map[int]bool{}, 0
		for _, l := range c.Cut(nil, p, 0) {
			at += int(l)
			m[len(p)-at] = true
		}
		return m
	}
	before := cuts(data)
	shifted := append(append(slices.Clone(data[:1000]), corpus(5, 777)...), data[1000:]...)
	same := 0
	for d := range cuts(shifted) {
		if before[d] {
			same++
		}
	}
	if same < len(before)*9/10 {
		t.Errorf("%d of %d cuts survive an insertion near the start", same, len(before))
	}
}

// Feeding a run in pieces must cut it where feeding it whole does.
func TestNextWithMoreDataToCome(t *testing.T) {
	for _, p := range []cdc.Params{cdc.Default(), cdc.FixedSize(16 << 10)} {
		c := newCutter(t, p)
		data := corpus(6, 1<<20)
		const base = 3 * block.Size
		want := c.Cut(nil, data, base)
		var got []uint32
		rng := rand.New(rand.NewPCG(1, 2))
		for at, have := 0, 0; at < len(data); {
			n := c.Next(data[at:have], uint64(base+at), have == len(data))
			if n == 0 {
				if have-at >= int(p.Max) {
					t.Fatalf("%v: %d B decide nothing", p, have-at)
				}
				have = min(len(data), have+1+rng.IntN(20000))
				continue
			}
			got = append(got, uint32(n))
			at += n
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v: %d chunks in pieces, %d at once", p, len(got), len(want))
		}
	}
}

func TestFixedCutsAtVolumeOffsets(t *testing.T) {
	c := newCutter(t, cdc.FixedSize(16<<10))
	for _, g := range []struct {
		base uint64
		n    int
		want []uint32
	}{
		{0, 40 << 10, []uint32{16384, 16384, 8192}},
		{4 << 10, 40 << 10, []uint32{12288, 16384, 12288}},
		{1<<63 - 4096, 20 << 10, []uint32{4096, 16384}},
		{15 << 10, 100, []uint32{100}},
	} {
		if got := c.Cut(nil, make([]byte, g.n), g.base); !slices.Equal(got, g.want) {
			t.Errorf("%d B at %d: %v, want %v", g.n, g.base, got, g.want)
		}
	}
}

func TestCutterIsSharedAndDoesNotAllocate(t *testing.T) {
	c := newCutter(t, cdc.Default())
	data := corpus(7, 1<<20)
	want := c.Cut(nil, data, 0)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if !slices.Equal(c.Cut(nil, data, 0), want) {
				t.Error("goroutines cut differently")
			}
		})
	}
	wg.Wait()
	dst := make([]uint32, 0, len(want))
	if n := testing.AllocsPerRun(10, func() { c.Cut(dst, data, 0) }); n != 0 {
		t.Errorf("%v allocations per Cut", n)
	}
}

func TestValidate(t *testing.T) {
	good := cdc.Default()
	for _, change := range []func(*cdc.Params){
		func(p *cdc.Params) { *p = cdc.Params{} },
		func(p *cdc.Params) { p.Kind = 3 },
		func(p *cdc.Params) { p.Min = 0 },
		func(p *cdc.Params) { p.Min = p.Avg },
		func(p *cdc.Params) { p.Avg = 15000 },
		func(p *cdc.Params) { p.Avg = 2 << 20 },
		func(p *cdc.Params) { p.Max = p.Avg },
		func(p *cdc.Params) { p.Max = 8 << 20 },
		func(p *cdc.Params) { *p = cdc.FixedSize(0) },
		func(p *cdc.Params) { *p = cdc.FixedSize(2048) },
		func(p *cdc.Params) { *p = cdc.FixedSize(2 << 20) },
		func(p *cdc.Params) { *p = cdc.FixedSize(12 << 10) },
		func(p *cdc.Params) { *p = cdc.FixedSize(16 << 10); p.Max++ },
		func(p *cdc.Params) { *p = cdc.FixedSize(16 << 10); p.TableVersion = 1 },
	} {
		p := good
		change(&p)
		if _, err := cdc.NewCutter(p); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%v: %v", p, err)
		}
	}
	good.TableVersion = 2
	if err := good.Validate(); !errors.Is(err, block.ErrVersion) {
		t.Errorf("unknown table: %v", err)
	}
}
