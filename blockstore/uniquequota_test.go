package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// noise is data that does not compress, and that no other seed makes.
func noise(seed uint64, n int) []byte {
	rng := rand.New(rand.NewPCG(seed, 77))
	p := make([]byte, n)
	for i := 0; i < n; i += 8 {
		for j, x := i, rng.Uint64(); j < min(n, i+8); j, x = j+1, x>>8 {
			p[j] = byte(x)
		}
	}
	return p
}

// surveyTest has everything measured and returns what a volume alone holds.
func surveyTest(t *testing.T, s *Store, name string) UniqueUse {
	t.Helper()
	if err := s.surveyor.next(context.Background()); err != nil {
		t.Fatal(err)
	}
	v, err := s.Volume(name)
	if err != nil {
		t.Fatal(err)
	}
	return v.Unique
}

// fill writes noise in pieces of 64 KiB until the volume refuses, and returns how much went.
func fill(t *testing.T, d *Device, seed uint64, most int) (written int) {
	t.Helper()
	data := noise(seed, most)
	for ; written < most; written += 64 << 10 {
		err := tryAll(d, uint64(written), data[written:written+64<<10])
		if errors.Is(err, block.ErrNoSpace) {
			return written
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return written
}

// What a volume alone holds is what Explain says of it: not what it shares with another volume, and what its snapshots hold as well; and what was shared becomes its own when the other one is deleted.
func TestUniqueUseIsWhatNobodyElseNeeds(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	a := createTest(t, s, "a", 16<<20)
	writeTest(t, a, 0, noise(1, 8<<20))
	settleTest(t, s)
	if _, err := s.CreateSnapshot(context.Background(), "a", "base"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Clone(context.Background(), "a", "base", "c"); err != nil {
		t.Fatal(err)
	}
	c := deviceTest(t, s, "c", "")
	quotaTest(t, s, "c", VolumeQuota{UniqueBytes: 64 << 20})
	if use := surveyTest(t, s, "c"); use.StoredBytes != 0 || use.LogBytes != 0 || use.ErrorBytes != 0 {
		t.Errorf("a clone that nobody wrote to: %+v", use)
	}
	writeTest(t, c, 0, noise(2, 1<<20))
	if _, err := s.CreateSnapshot(context.Background(), "c", "one"); err != nil {
		t.Fatal(err)
	}
	writeTest(t, c, 0, noise(3, 1<<20)) // the snapshot holds what was there
	writeTest(t, c, 12<<20, make([]byte, 1<<20))
	use := surveyTest(t, s, "c")
	e, err := s.Explain(context.Background(), "c", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := e.Unique.StoredBytes + e.Snapshots.StoredBytes; use.StoredBytes+64 < want || use.StoredBytes > want+64 || use.StoredBytes < 2<<20 {
		t.Errorf("%d B, explain says %d and %d", use.StoredBytes, e.Unique.StoredBytes, e.Snapshots.StoredBytes)
	}
	if use.LogBytes != 0 {
		t.Errorf("%d B in the log after it was brought down", use.LogBytes)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.DeleteVolume(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	if after := surveyTest(t, s, "c"); after.StoredBytes < use.StoredBytes+6<<20 {
		t.Errorf("%d B alone after the other volume is gone, %d before", after.StoredBytes, use.StoredBytes)
	}
}

// A volume is refused what would bring what it alone holds over its bound, overwrites too; data that is there already, zeroes, trims and other volumes are not. Two percent below the bound it goes on.
func TestUniqueQuotaIsKept(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	var mu sync.Mutex
	var told []FillState
	opts.Events.QuotaState = func(volume string, kind QuotaKind, state FillState, used, limit uint64) {
		mu.Lock()
		defer mu.Unlock()
		if kind != QuotaUnique || volume != "v" {
			t.Errorf("told of kind %d of %s", kind, volume)
		}
		if len(told) == 0 || told[len(told)-1] != state {
			told = append(told, state)
		}
	}
	s := openTest(t, opts)
	other := createTest(t, s, "other", 32<<20)
	shared := noise(9, 16<<20)
	writeTest(t, other, 0, shared)
	settleTest(t, s)
	d := createTest(t, s, "v", 64<<20)
	const limit = 6 << 20
	quotaTest(t, s, "v", VolumeQuota{UniqueBytes: limit})
	surveyTest(t, s, "v")
	for off := uint64(0); off < 16<<20; off += 1 << 20 { // far more than the bound, and none of it new
		if err := tryAll(d, 40<<20+off, shared[off:off+1<<20]); err != nil {
			t.Fatalf("data that another volume has, at %d: %v", off, err)
		}
	}
	written := fill(t, d, 5, 32<<20)
	if written < limit*8/10 || written > limit {
		t.Errorf("%d B of noise were written under a bound of %d", written, limit)
	}
	// Noise does not get smaller: what is stored may be more than what was written, by the headers of frames, which depend on how destage fell.
	if use := surveyTest(t, s, "v"); use.bytes() > limit+limit/128 || use.bytes() < limit*8/10 {
		t.Errorf("it holds %+v", use)
	}
	err := tryAll(d, 0, noise(6, 4<<20))
	if !errors.Is(err, block.ErrNoSpace) || !strings.Contains(fmt.Sprint(err), "volume quota set --unique") {
		t.Errorf("an overwrite at the bound: %v", err)
	}
	if v, _ := s.Volume("v"); v.Fill != FillFull {
		t.Errorf("state %v", v.Fill)
	}
	if err := tryAll(other, 20<<20, noise(7, 1<<20)); err != nil {
		t.Errorf("another volume: %v", err)
	}
	if err := d.Zero(context.Background(), block.Range{Off: 0, Len: 64 << 10}, false, false); err != nil {
		t.Errorf("zeroes at the bound: %v", err)
	}
	if err := d.Trim(context.Background(), block.Range{Off: 0, Len: uint64(written) / 2}, false); err != nil {
		t.Fatal(err)
	}
	if err := tryAll(d, 0, noise(8, 1<<20)); err != nil {
		t.Errorf("after a trim of half of it: %v", err)
	}
	quotaTest(t, s, "v", VolumeQuota{UniqueBytes: 10 * limit, ReferencedBytes: 1 << 30})
	surveyTest(t, s, "v")
	if err := tryAll(d, 8<<20, noise(10, 4<<20)); err != nil {
		t.Errorf("with a larger bound: %v", err)
	}
	mu.Lock()
	if got := fmt.Sprint(told); !strings.Contains(got, "full") || !strings.HasSuffix(got, "ok]") {
		t.Errorf("told %s", got)
	}
	mu.Unlock()
	quotaTest(t, s, "v", VolumeQuota{ReferencedBytes: 1 << 30})
	if v, _ := s.Volume("v"); v.Unique != (UniqueUse{}) {
		t.Errorf("without a bound: %+v", v.Unique)
	}
}

// What snapshots hold counts, and deleting them gives room: overwrites of one place, each in a snapshot, meet the bound.
func TestUniqueQuotaCountsSnapshots(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 16<<20)
	quotaTest(t, s, "v", VolumeQuota{UniqueBytes: 5 << 20})
	surveyTest(t, s, "v")
	var err error
	made := 0
	for ; made < 12; made++ {
		if err = tryAll(d, 0, noise(uint64(100+made), 1<<20)); err != nil {
			break
		}
		if _, err := s.CreateSnapshot(context.Background(), "v", fmt.Sprint("s", made)); err != nil {
			t.Fatal(err)
		}
	}
	if !errors.Is(err, block.ErrNoSpace) || made < 4 || made > 5 {
		t.Fatalf("after %d MiB under a bound of 5 MiB: %v", made, err)
	}
	for i := range 3 {
		if err := s.DeleteSnapshot(context.Background(), "v", fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tryAll(d, 0, noise(200, 1<<20)); err != nil {
		t.Errorf("after three snapshots are gone: %v", err)
	}
}

// Many writers at once get no further than one: what all of them were let write since a survey counts.
func TestUniqueQuotaUnderManyWriters(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 64<<20)
	const limit = 8 << 20
	quotaTest(t, s, "v", VolumeQuota{UniqueBytes: limit})
	surveyTest(t, s, "v")
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			data := noise(uint64(300+w), 8<<20)
			for off := 0; off < len(data); off += 128 << 10 {
				if err := tryAll(d, uint64(w)<<24+uint64(off), data[off:off+128<<10]); err != nil {
					if !errors.Is(err, block.ErrNoSpace) {
						t.Error(err)
					}
					return
				}
			}
			t.Errorf("writer %d was never refused", w)
		})
	}
	wg.Wait()
	if use := surveyTest(t, s, "v"); use.bytes() > limit+limit/50 || use.bytes() < limit/2 { // what frames and directories add shows after it was written
		t.Errorf("%+v under a bound of %d", use, limit)
	}
}

// In a sample the figure comes with how far it may be off, and is no further off than that.
func TestUniqueUseIsSampled(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.explainShift = 3
	s := openTest(t, opts)
	d := createTest(t, s, "v", 64<<20)
	quotaTest(t, s, "v", VolumeQuota{UniqueBytes: 1 << 30})
	writeTest(t, d, 0, noise(4, 24<<20))
	settleTest(t, s)
	use, truth := surveyTest(t, s, "v"), s.Stats().StoredBytes
	off := max(use.StoredBytes, truth) - min(use.StoredBytes, truth)
	if use.ErrorBytes == 0 || use.ErrorBytes > truth/3 || off > use.ErrorBytes {
		t.Errorf("%d ± %d B, in truth %d", use.StoredBytes, use.ErrorBytes, truth)
	}
}
