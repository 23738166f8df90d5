package blockstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// What a stretch takes in the layer of a moment is known within a quarter, scattered or dense, up to a bound of the memory that takes, beyond which all counts as scattered.
func TestStretch(t *testing.T) {
	for _, c := range []struct {
		name           string
		volume, blocks uint64 // blocks
		writes         int
	}{{"dense", 20 * block.BlocksPerRegion, 1, 600_000}, {"half", 64 * block.BlocksPerRegion, 3, 100_000}, {"scattered", 1 << 26, 1, 300_000}, {"runs", 1 << 22, 600, 2000}} {
		h, rng := &historian{}, rand.New(rand.NewPCG(1, 2))
		s, layer := stretch{root: 1}, overlay.NewLayer(overlay.NewBudget(1<<30))
		sums := make([]uint32, c.blocks)
		for i := range c.writes {
			first, n := rng.Uint64N(c.volume), 1+rng.Uint64N(c.blocks)
			h.touch(&s, first*block.Size, n*block.Size)
			layer.PublishWrite(first, uint64(i+1)<<22, sums[:n])
		}
		t.Logf("%-10s %9d B, %9d estimated, %d B copied", c.name, layer.Bytes(), s.layer, s.copied)
		if diff := s.layer - layer.Bytes(); diff > layer.Bytes()/4 || diff < -layer.Bytes()/4 {
			t.Errorf("%s: %d B estimated, %d taken", c.name, s.layer, layer.Bytes())
		}
		if h.touched != len(s.touched) {
			t.Errorf("%s: %d regions, counted %d", c.name, len(s.touched), h.touched)
		}
		h.restart(&s, 3)
		if h.touched != 0 || s.root != 3 || s.layer+s.copied != 0 {
			t.Errorf("%s: %d regions after a restart, %+v", c.name, h.touched, s)
		}
		layer.Release()
	}
	h := &historian{touched: stretchRegions}
	var s stretch
	for range 2 {
		h.touch(&s, 9*block.RegionSize-block.Size, 3*block.Size)
	}
	if s.layer != 6*slotMemory || len(s.touched) != 0 || h.touched != stretchRegions {
		t.Errorf("%d B in %d regions without memory for more, want %d in none", s.layer, len(s.touched), 6*slotMemory)
	}
}

// Roots come by how many different blocks were written, or how much is stored behind the last one, and not by how often the same were: each root takes all of them down. Each moment can be had wherever its root is, and an open knows how far it was.
func TestHistoryRootsByBlocks(t *testing.T) {
	const mib = 1 << 20
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogCapBytes, opts.LogFileBytes, opts.historyRootLayer = 128*mib, 8*mib, 96<<8*layerSlot
	var ahead atomic.Int64
	opts.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := openTest(t, opts)
	ctx := context.Background()
	d := createTest(t, s, "a", 256*mib)
	const budget = 512 * mib // 256 MiB stored behind a root that is young, and 64 MiB behind others
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
	for i := range 200 { // what compresses is less
		write(half, uint64(i%16)*mib)
	}
	if n := roots(); n != begin+1 {
		t.Errorf("%d roots after 200 MiB more that compress, want %d", n, begin+1)
	}
	for i := range 112 { // different ones
		write(half, uint64(32+i)*mib)
	}
	if n := roots(); n != begin+2 {
		t.Errorf("%d roots after 112 MiB of different blocks, want %d", n, begin+2)
	}
	ahead.Add(int64(historyRootRest))
	for i := range 48 {
		write(noise, uint64(i%16)*mib)
	}
	if n := roots(); n != begin+2 {
		t.Errorf("%d roots after 48 MiB that do not compress, a minute later, want %d", n, begin+2)
	}
	for i := range 40 {
		write(noise, uint64(i%16)*mib)
	}
	if n := roots(); n != begin+3 {
		t.Errorf("%d roots after 88 MiB that do not compress, a minute later, want %d", n, begin+3)
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
