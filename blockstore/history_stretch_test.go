package blockstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// What was written of a stretch is counted by blocks, up to a bound of the memory that takes, beyond which it counts as if all were different.
func TestStretch(t *testing.T) {
	h, rng := &historian{}, rand.New(rand.NewPCG(1, 2))
	a, b := stretch{root: 1}, stretch{root: 2}
	seen := map[uint64]bool{}
	bytes := int64(0)
	for range 5000 {
		first, n := rng.Uint64N(3*block.BlocksPerRegion), 1+rng.Uint64N(300)
		if rng.IntN(50) == 0 {
			n = block.BlocksPerRegion + rng.Uint64N(block.BlocksPerRegion)
		}
		h.touch(&a, first*block.Size, n*block.Size)
		for i := range n {
			seen[first+i] = true
		}
		bytes += int64(n * block.Size)
		if a.blocks != int64(len(seen)) || a.copied != bytes {
			t.Fatalf("%d blocks in %d B, want %d in %d", a.blocks, a.copied, len(seen), bytes)
		}
	}
	h.touch(&b, 0, block.Size)
	if h.touched != len(a.touched)+1 {
		t.Fatalf("%d regions, want %d", h.touched, len(a.touched)+1)
	}
	h.touched = stretchRegions
	for range 2 {
		h.touch(&b, 9*block.RegionSize-block.Size, 3*block.Size)
	}
	if b.blocks != 7 || len(b.touched) != 1 {
		t.Errorf("%d blocks in %d regions without memory for more, want 7 in 1", b.blocks, len(b.touched))
	}
	h.restart(&b, 3)
	if h.touched != stretchRegions-1 || b.root != 3 || b.blocks+b.copied != 0 {
		t.Errorf("%d regions after a restart, %+v", h.touched, b)
	}
}

// Roots come by how many different blocks were written, or how much is stored behind the last one, and not by how often the same were: each root takes all of them down. Each moment can be had wherever its root is, and an open knows how far it was.
func TestHistoryRootsByBlocks(t *testing.T) {
	const mib = 1 << 20
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogCapBytes, opts.LogFileBytes, opts.historyRootDifferent = 128*mib, 8*mib, 96*mib
	s := openTest(t, opts)
	ctx := context.Background()
	d := createTest(t, s, "a", 256*mib)
	const budget = 768 * mib // 256 MiB stored behind a root
	if err := s.SetHistory(ctx, "a", HistoryPolicy{Window: time.Hour, BudgetBytes: budget}); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(3, 4))
	noise, half := make([]byte, mib), make([]byte, mib)
	written := 0
	type moment struct {
		seq uint64
		at  uint64
		b   byte
	}
	var moments []moment
	write := func(p []byte, at uint64) {
		t.Helper()
		for i := 0; i < len(p); i += 8 {
			if v := rng.Uint64(); &p[0] == &noise[0] || i%block.Size < block.Size/4 {
				p[i], p[i+1], p[i+2], p[i+3], p[i+4], p[i+5], p[i+6], p[i+7] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56)
			}
		}
		written++
		p[0] = byte(written)
		writeTest(t, d, at, p)
		seq, _ := s.log.Last()
		moments = append(moments, moment{seq, at, p[0]})
		if written%8 == 0 {
			settleHistory(t, s)
		}
	}
	roots := func() int {
		settleHistory(t, s)
		return len(s.historian.rootsOf(s.historian.all()[0].v))
	}
	begin := roots()
	for i := range 200 { // the same 16 MiB: by amount two roots were due
		write(noise, uint64(i%16)*mib)
	}
	if n := roots(); n != begin {
		t.Errorf("%d roots after 200 MiB that rewrite 16, want %d", n, begin)
	}
	for i := range 120 { // more than is stored behind one root
		write(noise, uint64(i%16)*mib)
	}
	if n := roots(); n != begin+1 {
		t.Errorf("%d roots after 320 MiB that do not compress, want %d", n, begin+1)
	}
	for i := range 280 { // what compresses is less
		write(half, uint64(i%16)*mib)
	}
	if n := roots(); n != begin+1 {
		t.Errorf("%d roots after 280 MiB more that compress, want %d", n, begin+1)
	}
	for i := range 112 { // different ones
		write(half, uint64(32+i)*mib)
	}
	if n := roots(); n != begin+2 {
		t.Errorf("%d roots after 112 MiB of different blocks, want %d", n, begin+2)
	}
	for _, i := range []int{10, 199, 205, 250, 319, 330, 500, 590, 650, len(moments) - 1} {
		m := moments[i]
		p, err := s.OpenPoint(ctx, "a", Moment{Seq: m.seq})
		if err != nil {
			t.Fatalf("moment %d: %v", i, err)
		}
		want := map[uint64]byte{}
		for _, m := range moments[:i+1] {
			want[m.at] = m.b
		}
		for at, b := range want {
			var got [1]byte
			if _, err := p.ReadAt(ctx, got[:], at, nil); err != nil || !bytes.Equal(got[:], []byte{b}) {
				t.Fatalf("moment %d has %d at %d, want %d: %v", i, got[0], at, b, err)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	before := roots()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	dev, err := s.OpenDevice("a", "")
	if err != nil {
		t.Fatal(err)
	}
	d = dev
	for i := range 40 {
		write(half, uint64(i%16)*mib)
	}
	if n := roots(); n != before {
		t.Errorf("%d roots after an open and 40 MiB, want %d", n, before)
	}
}

// settleHistory copies what the log has, and makes the roots that are due.
func settleHistory(t *testing.T, s *Store) {
	t.Helper()
	if err := s.log.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.historian.step(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
}
