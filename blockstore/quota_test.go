package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

func quotaTest(t *testing.T, s *Store, name string, q VolumeQuota) {
	t.Helper()
	if err := s.SetVolumeQuota(name, q, false); err != nil {
		t.Fatal(err)
	}
}

// tryAll writes blocks through TryWrite where that goes, as nbd does, and returns the first error.
func tryAll(d *Device, off uint64, p []byte) error {
	batch := []block.Write{{Off: off, Data: p}}
	err := d.TryWrite(batch, false)
	if err == block.ErrWouldBlock {
		err = d.Write(context.Background(), batch, false)
	}
	return err
}

// A volume may refer to as much as its quota says, to the block; then what adds to it is ErrNoSpace, overwrites and trims go on, and what was trimmed may be written again. Other volumes notice nothing.
func TestQuotaIsKeptToTheBlock(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 16<<20)
	other := createTest(t, s, "w", 16<<20)
	quotaTest(t, s, "v", VolumeQuota{ReferencedBytes: 4 << 20})
	data := guestData(rand.New(rand.NewPCG(3, 3)), 16<<20)
	written := uint64(0)
	for ; written < 16<<20; written += block.Size {
		if err := tryAll(d, written, data[written:written+block.Size]); err != nil {
			if !errors.Is(err, block.ErrNoSpace) {
				t.Fatal(err)
			}
			break
		}
	}
	if written != 4<<20 {
		t.Fatalf("%d B were written into a quota of 4 MiB", written)
	}
	if err := tryAll(d, 8<<20, data[:block.Size]); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("a new block at the quota: %v", err)
	}
	for off := uint64(0); off < written; off += 64 << 10 { // 4 MiB of overwrites in the log, which count twice there
		if err := tryAll(d, off, data[4<<20+off:][:64<<10]); err != nil {
			t.Fatalf("an overwrite at %d: %v", off, err)
		}
	}
	if err := tryAll(other, 0, data[:8<<20]); err != nil {
		t.Errorf("another volume: %v", err)
	}
	if v, _ := s.Volume("v"); v.Fill != FillFull {
		t.Errorf("state %v", v.Fill)
	}
	if err := d.Trim(context.Background(), block.Range{Off: 0, Len: 64 << 10}, false); err != nil {
		t.Fatal(err)
	}
	if err := tryAll(d, 8<<20, data[:64<<10]); err != nil {
		t.Errorf("as much as was trimmed: %v", err)
	}
	if err := tryAll(d, 12<<20, data[:block.Size]); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("and a block more: %v", err)
	}
	settleTest(t, s)
	if v, _ := s.Volume("v"); v.ReferencedBytes != 4<<20 {
		t.Errorf("%d B are referenced, want the quota", v.ReferencedBytes)
	}
	quotaTest(t, s, "v", VolumeQuota{ReferencedBytes: 5 << 20})
	if err := tryAll(d, 12<<20, data[:block.Size]); err != nil {
		t.Errorf("with a larger quota: %v", err)
	}
	quotaTest(t, s, "v", VolumeQuota{})
	if err := tryAll(d, 9<<20, data[:3<<20]); err != nil {
		t.Errorf("without one: %v", err)
	}
}

// Many writers at once do not get beyond the quota, aligned or not, with snapshots taken and blocks trimmed between.
func TestQuotaUnderManyWriters(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", 64<<20)
	const limit = 6 << 20
	quotaTest(t, s, "v", VolumeQuota{ReferencedBytes: limit})
	data := guestData(rand.New(rand.NewPCG(8, 8)), 64<<10)
	var wg sync.WaitGroup
	refused := [4]int{}
	for w := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(9, uint64(w)))
			for i := range 300 {
				n := 512 * (1 + rng.Uint64N(64))
				off := rng.Uint64N(64<<20-n) &^ 511
				switch err := tryAll(d, off, data[:n]); {
				case errors.Is(err, block.ErrNoSpace):
					refused[w]++
				case err != nil:
					t.Error(err)
					return
				}
				if rng.IntN(50) == 0 {
					_ = d.Trim(context.Background(), block.Range{Off: off, Len: 1 << 20}, false)
				}
				if w == 0 && i%100 == 50 {
					if _, err := s.CreateSnapshot(context.Background(), "v", fmt.Sprint("s", i)); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	settleTest(t, s)
	v, err := s.Volume("v")
	if err != nil || v.ReferencedBytes > limit || v.ReferencedBytes < limit*9/10 {
		t.Errorf("%d B are referenced, the quota is %d: %v", v.ReferencedBytes, limit, err)
	}
	if refused == [4]int{} {
		t.Error("nobody was refused")
	}
	e, err := s.Explain(context.Background(), "v", nil, nil)
	if err != nil || e.DataBytes > limit {
		t.Errorf("the maps hold %d B: %v", e.DataBytes, err)
	}
}

// States are told once each, on the way up and when there is room again.
func TestQuotaStatesAreTold(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	var mu sync.Mutex
	var told []FillState
	opts.Events.QuotaState = func(volume string, kind QuotaKind, state FillState, used, limit uint64) {
		if kind != QuotaReferenced {
			t.Errorf("told of kind %d", kind)
		}
		mu.Lock()
		defer mu.Unlock()
		told = append(told, state)
	}
	s := openTest(t, opts)
	d := createTest(t, s, "v", 256<<20)
	quotaTest(t, s, "v", VolumeQuota{ReferencedBytes: 40 << 20})
	data := guestData(rand.New(rand.NewPCG(2, 2)), 1<<20)
	for off := uint64(0); ; off += 1 << 20 {
		if err := tryAll(d, off, data); err != nil {
			break
		}
	}
	quotaTest(t, s, "v", VolumeQuota{ReferencedBytes: 400 << 20})
	mu.Lock()
	defer mu.Unlock()
	if got, want := fmt.Sprint(told), "[near full nearly full full ok]"; got != want {
		t.Errorf("told %v, want %v", got, want)
	}
}

// A state comes at its mark and goes two percent below it.
func TestFillStates(t *testing.T) {
	for _, c := range []struct {
		from FillState
		used uint64
		full bool
		want FillState
	}{
		{FillOK, 849, false, FillOK}, {FillOK, 850, false, FillNear}, {FillNear, 830, false, FillNear}, {FillNear, 829, false, FillOK},
		{FillOK, 950, false, FillCritical}, {FillCritical, 930, false, FillCritical}, {FillCritical, 929, false, FillNear}, {FillFull, 930, false, FillCritical},
		{FillNear, 10, true, FillFull}, {FillFull, 1000, false, FillCritical},
	} {
		if got := fillState(c.from, c.used, 1000, c.full, FullMarks{}.quota()); got != c.want {
			t.Errorf("from %v with %d of 1000, full %v: %v, want %v", c.from, c.used, c.full, got, c.want)
		}
	}
	if fillState(FillOK, 1<<62, 1<<62+1<<60, false, FullMarks{}.quota()) != FillOK {
		t.Error("80 % of a very large quota")
	}
	if fillState(FillOK, 601, 1000, false, FullMarks{QuotaNear: 60, QuotaCritical: 70}.quota()) != FillNear {
		t.Error("marks of the options do not count")
	}
}

// smallDisk is a file system of so many bytes, of which one folder has what it has.
type smallDisk struct {
	vfs.FS
	dir  string
	size uint64
}

func (d *smallDisk) GetDiskUsage(string) (vfs.DiskUsage, error) {
	used := uint64(0)
	err := filepath.WalkDir(d.dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // it went meanwhile
		}
		var st unix.Stat_t
		if unix.Lstat(path, &st) == nil {
			used += uint64(st.Blocks) * 512
		}
		return nil
	})
	return vfs.DiskUsage{AvailBytes: d.size - min(d.size, used), TotalBytes: d.size, UsedBytes: min(d.size, used)}, err
}

// What is kept for a volume no other one gets, and the volume does: the others fill the disk up to it, and then it writes all of it.
func TestReservationIsKept(t *testing.T) {
	const kept = 48 << 20
	disk := &smallDisk{FS: vfs.Default, dir: t.TempDir(), size: 240 << 20}
	opts := testOptions(t, disk, disk.dir)
	opts.ReserveBytes = 24 << 20
	s := openTest(t, opts)
	mine := createTest(t, s, "mine", 256<<20)
	other := createTest(t, s, "other", 512<<20)
	if err := s.SetVolumeQuota("mine", VolumeQuota{ReservedBytes: 500 << 20}, false); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("more than there is: %v", err)
	}
	before := s.Stats().FreeBytes
	quotaTest(t, s, "mine", VolumeQuota{ReservedBytes: kept})
	if now := s.Stats().FreeBytes; now+kept > before+1<<20 {
		t.Errorf("%d B were free for others, and now %d", before, now)
	}
	rng := rand.New(rand.NewPCG(6, 6))
	data := make([]byte, 1<<20)
	fill := func(d *Device, most int) (n int) {
		for ; n < most; n++ {
			for i := 0; i < len(data); i += 8 {
				binary.LittleEndian.PutUint64(data[i:], rng.Uint64())
			}
			if err := tryAll(d, uint64(n)<<20, data); err != nil {
				if !errors.Is(err, block.ErrNoSpace) {
					t.Fatal(err)
				}
				break
			}
		}
		return n
	}
	got := fill(other, 512)
	t.Logf("another volume wrote %d MiB", got)
	if got < 32 || got > (240-24-48) {
		t.Errorf("another volume wrote %d MiB of a disk of 240, of which 24 and 48 are kept", got)
	}
	if got := fill(mine, kept>>20); got != kept>>20 {
		t.Errorf("the volume got %d MiB of the %d that are kept for it", got, kept>>20)
	}
	settleTest(t, s)
}
