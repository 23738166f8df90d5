package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// A hot region is rewritten again and again while a cold one fills the log: the hot one stays in the log, mostly, its old blocks move to the log's end, and what the
// volume holds is right at every moment, also after a start that has only the log.
func TestHotBlocksStayInTheLog(t *testing.T) {
	opts := smallLog(t)
	s := openTest(t, opts)
	const size = 512 << 20
	d := createTest(t, s, "v", size)
	rng := rand.New(rand.NewPCG(3, 4))
	hot := make([]byte, block.RegionSize/2)
	ctx := context.Background()
	cold := guestData(rng, 64<<10)
	buf := make([]byte, block.Size)
	coldAt := uint64(block.RegionSize)
	for n := range 60_000 {
		at := rng.IntN(len(hot)/block.Size) * block.Size
		for i := range 16 {
			hot[at+rng.IntN(block.Size)] = byte(n + i)
		}
		if err := d.Write(ctx, []block.Write{{Off: uint64(at), Data: hot[at : at+block.Size]}}, false); err != nil {
			t.Fatal(err)
		}
		if n%100 == 0 {
			cold[n%len(cold)]++
			if err := d.Write(ctx, []block.Write{{Off: coldAt, Data: cold}}, false); err != nil {
				t.Fatal(err)
			}
			coldAt += uint64(len(cold))
		}
		if n%500 == 0 {
			if _, err := d.ReadAt(ctx, buf, uint64(at), nil); err != nil || string(buf) != string(hot[at:at+block.Size]) {
				t.Fatalf("after %d writes block %d does not hold what was written: %v", n, at/block.Size, err)
			}
		}
	}
	moved := s.destager.relog.moved.Load()
	unique := s.counted.Load().Unique
	t.Logf("%d blocks moved of %d written; %d KiB in segments", moved, 60_000, unique>>10)
	if moved == 0 {
		t.Error("nothing was moved: the test does not meet what it is for")
	}
	got := make([]byte, len(hot))
	check := func(s *Store, d *Device) {
		t.Helper()
		if _, err := d.ReadAt(ctx, got, 0, nil); err != nil || string(got) != string(hot) {
			t.Fatalf("the hot region does not hold what was written: %v", err)
		}
	}
	check(s, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = openTest(t, opts)
	d, err := s.OpenDevice("v", "")
	if err != nil {
		t.Fatal(err)
	}
	check(s, d)
	if err := s.Settle(ctx, nil); err != nil {
		t.Fatal(err)
	}
	check(s, d)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// The log's old end begins where data does: files that only wait for the next checkpoint would hide it, and nothing would move until that comes.
func TestOldEndHasData(t *testing.T) {
	s := openTest(t, smallLog(t))
	d := createTest(t, s, "v", 64<<20)
	data := guestData(rand.New(rand.NewPCG(5, 6)), 1<<20)
	for i := range uint64(12) { // more than 6 files, and less than destage begins at
		if err := d.Write(context.Background(), []block.Write{{Off: i << 20, Data: data}}, false); err != nil {
			t.Fatal(err)
		}
	}
	r := newRelogger(s)
	was := s.counted.Load()
	now := *was
	now.Watermark = journal.Pos(s.log.Usage().Oldest.File()+3) << 32
	s.counted.Store(&now)
	end := r.oldEnd()
	s.counted.Store(was)
	if end <= now.Watermark {
		t.Errorf("the old end of the log is before file %d, and no data is before file %d", end.File(), now.Watermark.File())
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}
