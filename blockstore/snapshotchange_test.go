package blockstore

import (
	"context"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Renaming and protecting are records of the log: TestKill, TestPower and the like replay them. Here is what they refuse, and that a store has the feature from the first of them on and not before.
func TestSnapshotRenameAndProtect(t *testing.T) {
	ctx := context.Background()
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	must(createTest(t, s, "v", 1<<20).Close())
	for _, name := range []string{"a", "b"} {
		_, err := s.CreateSnapshot(ctx, "v", name)
		must(err)
	}
	if s.super.Incompat&incompatSnapshots != 0 {
		t.Error("older programs refuse a store that they could read")
	}
	refused(s.RenameSnapshot(ctx, "v", "a", "b"), block.ErrExists)
	refused(s.RenameSnapshot(ctx, "v", "x", "y"), block.ErrNotFound)
	refused(s.RenameSnapshot(ctx, "v", "a", "a/b"), block.ErrInvalid)
	refused(s.ProtectSnapshot(ctx, "v", "x", true), block.ErrNotFound)
	open := deviceTest(t, s, "v", "a")
	refused(s.RenameSnapshot(ctx, "v", "a", "c"), block.ErrInUse)
	must(open.Close())
	if s.super.Incompat&incompatSnapshots != 0 {
		t.Error("older programs refuse a store for what was refused itself")
	}

	must(s.RenameSnapshot(ctx, "v", "a", "c"))
	must(s.ProtectSnapshot(ctx, "v", "c", true))
	must(s.ProtectSnapshot(ctx, "v", "c", true))
	_, err := s.Clone(ctx, "v", "c", "w")
	must(err)
	must(s.RenameVolume(ctx, "v", "v2"))
	for range 2 {
		refused(s.DeleteSnapshot(ctx, "v2", "c"), block.ErrProtected)
		refused(s.DeleteVolume(ctx, "v2"), block.ErrProtected)
		snaps, err := s.Snapshots("v2")
		must(err)
		if len(snaps) != 2 || snaps[0].Name != "c" || !snaps[0].Protected || snaps[0].Clones != 1 || snaps[1].Protected || snaps[1].Clones != 0 || snaps[0].Epoch >= snaps[1].Epoch {
			t.Fatalf("snapshots: %+v", snaps)
		}
		if s.super.Incompat&incompatSnapshots == 0 {
			t.Error("older programs do not refuse the store")
		}
		must(s.Close())
		checkWhole(t, opts.Dir, "with a protected snapshot")
		s = openTest(t, opts)
	}
	must(s.DeleteVolume(ctx, "w"))
	must(s.ProtectSnapshot(ctx, "v2", "c", false))
	must(s.DeleteSnapshot(ctx, "v2", "c"))
	must(s.DeleteVolume(ctx, "v2"))
	settleTest(t, s)
	if len(s.nodes) != 0 {
		t.Errorf("%d states are left of no volume", len(s.nodes))
	}
}
