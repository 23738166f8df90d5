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
