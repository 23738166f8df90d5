package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func addBitmapTest(t *testing.T, s *Store, volume, name string) {
	t.Helper()
	if _, err := s.AddBitmap(context.Background(), volume, name); err != nil {
		t.Fatal(err)
	}
}

// changedTest returns what a device says has changed since a base, in order and joined.
func changedTest(t *testing.T, d *Device, base string) (all []block.Range) {
	t.Helper()
	for at := uint64(0); at < d.Size(); {
		if err := d.Changes(context.Background(), base, block.Range{Off: at, Len: d.Size() - at}, func(n uint64, changed bool) bool {
			if k := len(all); changed && k > 0 && all[k-1].End() == at {
				all[k-1].Len += n
			} else if changed {
				all = append(all, block.Range{Off: at, Len: n})
			}
			at += n
			return true
		}); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// A row keeps for each granule the newest epoch of it that a bitmap needs.
func TestTouchedRow(t *testing.T) {
	bit := func(all ...uint64) (g granules) {
		for _, i := range all {
			g.set(i)
		}
		return g
	}
	row := touched(nil).with(touched{{12, bit(0, 255)}}, []nodeID{10, 20})
	row = row.with(touched{{25, bit(1, 255)}, {21, bit(2)}, {9, bit(3)}}, []nodeID{10, 20})
	if want := (touched{{20, bit(1, 2, 255)}, {10, bit(0)}}); !slices.Equal(row, want) {
		t.Fatalf("row %v, want %v", row, want)
	}
	if got := row.since(20); got != bit(1, 2, 255) {
		t.Errorf("since 20: %x", got)
	}
	if got := row.since(10); got != bit(0, 1, 2, 255) {
		t.Errorf("since 10: %x", got)
	}
	if got := row.with(nil, []nodeID{20}); !slices.Equal(got, touched{{20, bit(1, 2, 255)}}) {
		t.Errorf("without the older bitmap: %v", got)
	}
	if got := row.with(nil, []nodeID{10, 30}); !slices.Equal(got, touched{{10, bit(0, 1, 2, 255)}}) {
		t.Errorf("the newer bitmap began again: %v", got)
	}
	if got := row.with(nil, nil); got != nil {
		t.Errorf("without bitmaps: %v", got)
	}
	key := touchedKey{7, 1, 300}.bytes()
	b := row.encode(key)
	if got, err := decodeTouched(key, b); err != nil || !slices.Equal(got, row) {
		t.Fatalf("read as %v: %v", got, err)
	}
	if _, err := decodeTouched(touchedKey{7, 1, 301}.bytes(), b); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a row in the place of another: %v", err)
	}
	for i := range b {
		bad := slices.Clone(b)
		bad[i] ^= 0x10
		if _, err := decodeTouched(key, bad); err == nil {
			t.Errorf("a flip in byte %d is not seen", i)
		}
	}
}

// Names are those of snapshots, too; their number is bounded; what was removed cannot be asked for.
func TestBitmapNames(t *testing.T) {
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 32<<20)
	defer d.Close()
	other := createTest(t, s, "other", 1<<20)
	defer other.Close()
	addBitmapTest(t, s, "v", "b")
	addBitmapTest(t, s, "other", "b")
	if _, err := s.CreateSnapshot(ctx, "v", "s"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateSnapshot(ctx, "v", "other"); err != nil {
		t.Fatal(err)
	}
	add := func(volume, name string) error { _, err := s.AddBitmap(ctx, volume, name); return err }
	clearIt := func(volume, name string) error { _, err := s.ClearBitmap(ctx, volume, name); return err }
	snapshot := func(volume, name string) error { _, err := s.CreateSnapshot(ctx, volume, name); return err }
	for _, c := range []struct {
		what string
		err  error
		want error
	}{
		{"a second bitmap of a name", add("v", "b"), block.ErrExists},
		{"a bitmap with the name of a snapshot", add("v", "s"), block.ErrExists},
		{"a snapshot with the name of a bitmap", snapshot("v", "b"), block.ErrExists},
		{"a snapshot that gets the name of a bitmap", s.RenameSnapshot(ctx, "v", "other", "b"), block.ErrExists},
		{"a bad name", add("v", "a b"), block.ErrInvalid},
		{"no volume", add("none", "b"), block.ErrNotFound},
		{"no bitmap to clear", clearIt("v", "none"), block.ErrNotFound},
		{"no bitmap to remove", s.RemoveBitmap(ctx, "v", "s"), block.ErrNotFound},
	} {
		if !errors.Is(c.err, c.want) {
			t.Errorf("%s: %v, want %v", c.what, c.err, c.want)
		}
	}
	if _, err := s.CreateSnapshots(ctx, []StateName{{"other", "x"}, {"v", "b"}}, false); !errors.Is(err, block.ErrExists) {
		t.Errorf("a set of snapshots with the name of a bitmap: %v", err)
	}
	if got := d.ChangeBases(); !slices.Equal(got, []string{"other", "s", "b"}) {
		t.Errorf("changes can be counted from %v", got)
	}
	if f := s.super.features(); !slices.ContainsFunc(f, func(f Feature) bool { return f.Name == "bitmaps" && f.Kind == featureROCompat }) {
		t.Errorf("features %v", f)
	}
	for i := range MaxBitmaps - 1 {
		addBitmapTest(t, s, "v", fmt.Sprint("n", i))
	}
	if err := add("v", "more"); !errors.Is(err, block.ErrInvalid) || !strings.Contains(err.Error(), "64") {
		t.Errorf("one bitmap more than possible: %v", err)
	}
	if err := s.RemoveBitmap(ctx, "v", "b"); err != nil {
		t.Fatal(err)
	}
	if err := d.Changes(ctx, "b", block.Range{Len: 1 << 20}, func(uint64, bool) bool { return true }); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("what changed since a bitmap that was removed: %v", err)
	}
	if err := snapshot("v", "b"); err != nil {
		t.Errorf("the name of a bitmap that was removed: %v", err)
	}
}

// A bitmap that is cleared while somebody reads it is an error, not half an answer.
func TestBitmapClearedWhileRead(t *testing.T) {
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 4<<30)
	defer d.Close()
	addBitmapTest(t, s, "v", "b")
	told := 0
	err := d.Changes(ctx, "b", block.Range{Len: d.Size()}, func(uint64, bool) bool {
		if told++; told == 1 {
			if _, err := s.ClearBitmap(ctx, "v", "b"); err != nil {
				t.Error(err)
			}
		}
		return true
	})
	if !errors.Is(err, block.ErrNotFound) || told == 0 {
		t.Errorf("%v after %d runs", err, told)
	}
}

// What layers hold, frozen ones too, counts before it is destaged and after, to the granule; a trim of terabytes costs a few rows, and nothing that is stored anew counts.
func TestBitmapOfALargeVolume(t *testing.T) {
	const tib, gib, mib, g = 1 << 40, 1 << 30, 1 << 20, BitmapGranule
	ctx := context.Background()
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.DestageAfter = time.Hour
	s := openTest(t, opts)
	d := createTest(t, s, "v", 6*tib)
	defer d.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	writeTest(t, d, 2*tib, guestData(rng, 3*mib))
	addBitmapTest(t, s, "v", "old")
	writeTest(t, d, 5*mib+4096, guestData(rng, 4096))
	if _, err := s.CreateSnapshot(ctx, "v", "s"); err != nil {
		t.Fatal(err)
	}
	addBitmapTest(t, s, "v", "new")
	for _, r := range []block.Range{{Off: tib + 5*gib, Len: 2 * tib}, {Off: 4*tib + g, Len: 2 * g}, {Off: 4*tib + 16*mib, Len: 16 * mib}, {Off: 5 * tib, Len: tib}} {
		if err := d.Trim(ctx, r, false); err != nil {
			t.Fatal(err)
		}
	}
	recent := []block.Range{{Off: tib + 5*gib, Len: 2 * tib}, {Off: 4*tib + g, Len: 2 * g}, {Off: 4*tib + 16*mib, Len: 16 * mib}, {Off: 5 * tib, Len: tib}}
	first := block.Range{Off: 5 * mib, Len: g}
	snap := deviceTest(t, s, "v", "s")
	defer snap.Close()
	if got := snap.ChangeBases(); !slices.Equal(got, []string{"old"}) {
		t.Errorf("the snapshot knows %v", got)
	}
	for _, where := range []string{"in the log", "in maps", "cold"} {
		if got := changedTest(t, d, "old"); !slices.Equal(got, append([]block.Range{first}, recent...)) {
			t.Errorf("%s: since old %v", where, got)
		}
		if got := changedTest(t, d, "new"); !slices.Equal(got, recent) {
			t.Errorf("%s: since new %v", where, got)
		}
		if got := changedTest(t, snap, "old"); len(got) == 0 || got[0] != first {
			t.Errorf("%s: of the snapshot, since old %v", where, got)
		}
		settleTest(t, s)
		if where == "in maps" {
			if err := s.SettleCold(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := touchedRows(t, s); n > 20 {
		t.Errorf("%d rows for four trims and a write", n)
	}
	clone, err := s.Clone(ctx, "v", "s", "c")
	if err != nil || len(clone.Bitmaps) != 0 {
		t.Errorf("a clone has bitmaps %v: %v", clone.Bitmaps, err)
	}
	if err := errors.Join(d.Close(), snap.Close(), s.DeleteVolume(ctx, "v")); err != nil {
		t.Fatal(err)
	}
	settleTest(t, s)
	if n := touchedRows(t, s); n != 0 {
		t.Errorf("%d rows are left of a volume that is gone", n)
	}
}

// A row that is damaged counts as all changed, and the next destage makes it whole.
func TestBitmapDamagedRow(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	reports := make(chan error, 100)
	opts.Events.Corruption = func(err error) {
		select {
		case reports <- err:
		default:
		}
	}
	opts.Events.BackgroundError = func(string, error) {}
	s := openTest(t, opts)
	d := createTest(t, s, "v", 64<<20)
	defer d.Close()
	addBitmapTest(t, s, "v", "b")
	rng := rand.New(rand.NewPCG(5, 6))
	writeTest(t, d, 17<<20, guestData(rng, 4096))
	settleTest(t, s)
	key := touchedKey{d.v.id, 0, 1}.bytes()
	if err := s.db.Set(key, []byte("this is no row"), pebble.Sync); err != nil {
		t.Fatal(err)
	}
	whole := []block.Range{{Off: 16 << 20, Len: 16 << 20}}
	if got := changedTest(t, d, "b"); !slices.Equal(got, whole) || len(reports) == 0 {
		t.Errorf("changed %v, %d reports", got, len(reports))
	}
	writeTest(t, d, 20<<20, guestData(rng, 4096))
	settleTest(t, s)
	if touchedRows(t, s) != 1 {
		t.Error("the row is not whole")
	}
	if got := changedTest(t, d, "b"); !slices.Equal(got, whole) {
		t.Errorf("changed %v", got)
	}
}
