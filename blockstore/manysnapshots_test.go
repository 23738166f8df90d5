package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Snapshots whose data is in maps hold no memory of the budget for overlays: each used to keep what its empty layer had, until writers waited for a destage that had nothing to
// do.
func TestSettledSnapshotsHoldNoOverlay(t *testing.T) {
	s := openTest(t, smallLog(t))
	d := createTest(t, s, "v", 64<<20)
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(1, 2))
	data := guestData(rng, block.Size)
	const snapshots = 300
	for n := range snapshots {
		for range 4 {
			if err := d.Write(ctx, []block.Write{{Off: uint64(rng.IntN(16<<10)) * block.Size, Data: data}}, false); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := s.CreateSnapshot(ctx, "v", fmt.Sprint("s", n)); err != nil {
			t.Fatal(err)
		}
	}
	before := s.budget.Used()
	if err := s.Settle(ctx, nil); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d snapshots: %d KiB of overlays before they were settled, %d B after", snapshots, before>>10, s.budget.Used())
	if used := s.budget.Used(); used > 64<<10 {
		t.Errorf("%d B of overlays are in use, and nothing is in the log", used)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// What a read or a write goes through does not grow with the snapshots there are, written to in between or not, and neither does what it takes to find one of another volume.
func TestThousandsOfSnapshotsAreNotInTheWay(t *testing.T) {
	t.Parallel() // it waits for the disk
	s := openTest(t, smallLog(t))
	d := createTest(t, s, "v", 64<<20)
	defer d.Close()
	ctx := context.Background()
	data := guestData(rand.New(rand.NewPCG(3, 4)), block.Size)
	snapshots := 3000
	if testing.Short() {
		snapshots = 500
	}
	for n := range snapshots {
		if n%3 == 0 {
			writeTest(t, d, uint64(n)*block.Size, data)
		}
		if _, err := s.CreateSnapshots(ctx, []StateName{{"v", fmt.Sprint("s", n)}}, true); err != nil {
			t.Fatal(err)
		}
	}
	settleTest(t, s)
	depth := func() (deep int) {
		for n := d.v.head.Load(); n != nil && n.root.Load() == nil; n = n.parent.Load() {
			deep++
		}
		return deep
	}
	if deep := depth(); deep > 1 {
		t.Errorf("a read goes through %d states", deep)
	}
	writeTest(t, d, 0, data)
	expect(t, d, 0, data)
	if deep := depth(); deep > 1 {
		t.Errorf("after a write a read goes through %d states", deep)
	}
	if err := createTest(t, s, "w", 1<<20).Close(); err != nil {
		t.Fatal(err)
	}
	w, err := s.lookupVolume("w")
	if err != nil || len(w.nodes) != 1 || len(d.v.nodes) != snapshots+1 {
		t.Errorf("%d and %d states, %v", len(w.nodes), len(d.v.nodes), err)
	}
	if snaps, err := s.Snapshots("v"); err != nil || len(snaps) != snapshots || snaps[snapshots-1].Name != fmt.Sprint("s", snapshots-1) {
		t.Errorf("%d snapshots, %v", len(snaps), err)
	}
}

// rowBytes adds up the metadata, key by key, as no compression and no table of Pebble changes it: all of it, and that of each table.
func rowBytes(t *testing.T, s *Store) (all int, each map[byte]int) {
	t.Helper()
	it, err := s.db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	each = make(map[byte]int)
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		n := len(it.Key()) + len(value)
		all += n
		each[it.Key()[0]] += n
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return all, each
}

// What a snapshot costs goes with what was written since the one before, and not with the pages of the regions that it was written to: these used to be copied as a whole, 1.9 MB for each of
// 10,000 snapshots with 16 blocks between.
func TestSnapshotsCostWhatChanged(t *testing.T) {
	s := openTest(t, smallLog(t))
	const size, snapshots, writes, mostPerWrite = 64 << 20, 100, 16, 4 << 10
	d := createTest(t, s, "v", size)
	defer d.Close()
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(5, 6))
	data := guestData(rng, size)
	for off := 0; off < size; off += 1 << 20 {
		writeTest(t, d, uint64(off), data[off:off+1<<20])
	}
	settleTest(t, s)
	before, _ := rowBytes(t, s)
	for n := range snapshots {
		for range writes {
			off := rng.IntN(size/block.Size) * block.Size
			copy(data[off:], guestData(rng, block.Size))
			writeTest(t, d, uint64(off), data[off:off+block.Size])
		}
		if _, err := s.CreateSnapshot(ctx, "v", fmt.Sprint("s", n)); err != nil {
			t.Fatal(err)
		}
	}
	settleTest(t, s)
	after, tables := rowBytes(t, s)
	each := (after - before) / snapshots
	t.Logf("%d B of rows, %d for each snapshot; pages and parts %d B, deadlists %d B", after, each, tables[keyPage], tables[keyDead])
	if each > writes*mostPerWrite {
		t.Errorf("each snapshot with %d blocks costs %d B, at most %d are allowed", writes, each, writes*mostPerWrite)
	}
	if s.super.Incompat&incompatParts == 0 {
		t.Error("older programs do not refuse a store with pages in parts")
	}
	expect(t, d, 0, data)
	(&model{t: t, s: s}).audit()
	for n := range snapshots {
		if err := s.DeleteSnapshot(ctx, "v", fmt.Sprint("s", n)); err != nil {
			t.Fatal(err)
		}
	}
	settleTest(t, s)
	if left, _ := rowBytes(t, s); left > 2*before { // the volume lies in more pieces now
		t.Errorf("%d B of rows are left when the snapshots are gone, %d were there before", left, before)
	}
	expect(t, d, 0, data)
	(&model{t: t, s: s}).audit()
}
