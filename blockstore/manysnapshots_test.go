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
