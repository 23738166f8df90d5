package blockstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// What the store says of a volume is compared with its bytes, while data lies in overlays, in maps, and on its way between them.
func TestStatus(t *testing.T) {
	const size = 3*block.RegionSize + 12345*512
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", size)
	defer d.Close()
	rng := rand.New(rand.NewPCG(5, 6))
	var snaps []string
	for round := range 12 {
		for range 20 {
			off := rng.Uint64N(size-1<<20) &^ 511
			n := 512 * (1 + rng.Uint64N(300))
			var err error
			switch rng.IntN(4) {
			case 0:
				err = d.Trim(ctx, block.Range{Off: off, Len: n * 20 % (size - off)}, false)
			default:
				err = d.Write(ctx, []block.Write{{Off: off, Data: guestData(rng, int(n))}}, false)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		verifyStatus(t, s, d, snaps)
		if round%3 == 1 {
			name := fmt.Sprintf("s%d", round)
			if _, err := s.CreateSnapshot(ctx, "v", name); err != nil {
				t.Fatal(err)
			}
			snaps = append(snaps, name)
		}
		if round%4 == 2 {
			done := make(chan error)
			go func() { done <- s.Settle(ctx, nil) }()
			verifyStatus(t, s, d, snaps) // while it goes on
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			verifyStatus(t, s, d, snaps)
		}
		if round == 9 {
			if err := s.DeleteSnapshot(ctx, "v", snaps[0]); err != nil {
				t.Fatal(err)
			}
			snaps = snaps[1:]
		}
	}
	if err := d.Changes(ctx, "none", block.Range{Len: size}, func(uint64, bool) bool { return true }); err == nil {
		t.Error("changes since a snapshot that does not exist are told")
	}
}

func readAll(t *testing.T, d *Device) []byte {
	t.Helper()
	p := make([]byte, d.Size())
	if _, err := d.ReadAt(context.Background(), p, 0, nil); err != nil {
		t.Fatal(err)
	}
	return p
}

func verifyStatus(t *testing.T, s *Store, d *Device, snaps []string) {
	t.Helper()
	ctx, size := context.Background(), d.Size()
	now := readAll(t, d)
	at, own := uint64(0), uint64(0)
	if err := d.Depths(ctx, block.Range{Len: size}, func(n uint64, depth uint32) bool {
		if n%block.SectorSize != 0 {
			t.Fatalf("depth %d of %d+%d ends in a sector", depth, at, n)
		}
		if depth == 0 && len(bytes.Trim(now[at:at+n], "\x00")) != 0 {
			t.Fatalf("%d+%d is told to be a hole and is not", at, n)
		}
		if depth == 1 {
			own += n
		}
		if depth > uint32(len(snaps)+2) {
			t.Fatalf("%d+%d comes from depth %d of %d snapshots", at, n, depth, len(snaps))
		}
		at += n
		return true
	}); err != nil || at != size {
		t.Fatalf("depths are told up to %d of %d: %v", at, size, err)
	}
	for _, name := range snaps {
		snap := deviceTest(t, s, "v", name)
		then := readAll(t, snap)
		if err := snap.Close(); err != nil {
			t.Fatal(err)
		}
		at, changed := uint64(0), uint64(0)
		if err := d.Changes(ctx, name, block.Range{Len: size}, func(n uint64, differs bool) bool {
			if n%block.SectorSize != 0 {
				t.Fatalf("changes since %s are told of %d+%d, which ends in a sector", name, at, n)
			}
			if !differs && !bytes.Equal(now[at:at+n], then[at:at+n]) {
				t.Fatalf("%d+%d is told to be as in %s and is not", at, n, name)
			}
			if differs {
				changed += n
			}
			at += n
			return true
		}); err != nil || at != size {
			t.Fatalf("changes since %s are told up to %d of %d: %v", name, at, size, err)
		}
		if changed == size {
			t.Errorf("everything is told to have changed since %s", name)
		}
	}
}
