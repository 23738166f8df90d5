package journal

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

func oneWrite(seed uint64) []Record {
	return []Record{{Kind: Write, Volume: 1, Len: sectorSize, Payload: [][]byte{fill(sectorSize, seed)}}}
}

// TestFailedSyncIsFinal lets one sync fail: from then on appends and syncs fail, even if the device would work again, and reads go on.
func TestFailedSyncIsFinal(t *testing.T) {
	var bad atomic.Bool
	fsys := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileSyncData && bad.Load() {
			return syscall.EIO
		}
		return nil
	}))
	opts := testOptions(fsys, "log", 1)
	events := 0
	opts.Events.Failed = func(error) { events++ }
	l, _ := openAll(t, opts)
	recs := oneWrite(1)
	if err := l.Append(recs); err != nil {
		t.Fatal(err)
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	synced := remember(&recs[0])
	if err := l.Append(oneWrite(2)); err != nil {
		t.Fatal(err)
	}
	bad.Store(true)
	for range 2 {
		if err := l.Sync(context.Background()); !errors.Is(err, ErrFailed) || !errors.Is(err, syscall.EIO) {
			t.Fatalf("sync: %v", err)
		}
		bad.Store(false)
	}
	if err := l.Append(oneWrite(3)); !errors.Is(err, ErrFailed) {
		t.Fatalf("append: %v", err)
	}
	if err := l.ReleaseBefore(1); !errors.Is(err, ErrFailed) {
		t.Fatalf("release: %v", err)
	}
	if seq, _ := l.Durable(); seq != 1 {
		t.Fatalf("durable %d", seq)
	}
	if err := readBack(l, &synced); err != nil {
		t.Fatal(err)
	}
	if events != 1 {
		t.Fatalf("%d events", events)
	}
	if err := l.Close(); !errors.Is(err, ErrFailed) {
		t.Fatalf("close: %v", err)
	}
}

// TestFailedWrites lets writes fail: a full device leaves the log as it was, anything else ends it.
func TestFailedWrites(t *testing.T) {
	var fault atomic.Pointer[error]
	fsys := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if p := fault.Load(); p != nil && op.Kind == errorfs.OpFileWriteAt {
			return *p
		}
		return nil
	}))
	l, _ := openAll(t, testOptions(fsys, "log", 1))
	defer l.Close()
	var all []entry
	put := func(seed uint64) error {
		recs := oneWrite(seed)
		err := l.Append(recs)
		if err == nil {
			all = append(all, remember(&recs[0]))
		}
		return err
	}
	full, broken := error(syscall.ENOSPC), error(syscall.EIO)
	for i := range uint64(40) { // across several files
		fault.Store(&full)
		if i%3 == 0 {
			if err := put(1000 + i); !errors.Is(err, block.ErrNoSpace) || errors.Is(err, ErrFailed) {
				t.Fatalf("append to a full device: %v", err)
			}
		}
		fault.Store(nil)
		if err := put(i); err != nil {
			t.Fatal(err)
		}
		waitSealed(l)
		waitPrepared(l)
	}
	checkOrder(t, all)
	for i := range all {
		if err := readBack(l, &all[i]); err != nil {
			t.Fatal(err)
		}
	}
	fault.Store(&broken)
	if err := put(1); !errors.Is(err, ErrFailed) {
		t.Fatalf("append to a broken device: %v", err)
	}
	fault.Store(nil)
	if err := put(2); !errors.Is(err, ErrFailed) {
		t.Fatalf("append after a failed write: %v", err)
	}
}

// TestFailedPrepare lets no new file be created for a while.
func TestFailedPrepare(t *testing.T) {
	var bad atomic.Bool
	fsys := errorfs.Wrap(vfs.NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpCreate && strings.HasSuffix(op.Path, fileSuffix) && bad.Load() {
			return syscall.ENOSPC
		}
		return nil
	}))
	l, _ := openAll(t, testOptions(fsys, "log", 1))
	defer l.Close()
	waitPrepared(l)
	bad.Store(true)
	var err error
	for i := uint64(0); err == nil && i < 100; i++ {
		err = l.Append(oneWrite(i))
	}
	if !errors.Is(err, block.ErrNoSpace) {
		t.Fatal(err)
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatalf("sync of a log without room: %v", err)
	}
	bad.Store(false)
	// One more error may have been kept for us before the fault went away.
	if err := l.Append(oneWrite(1)); err != nil && !errors.Is(err, block.ErrNoSpace) {
		t.Fatal(err)
	}
	if err := l.Append(oneWrite(2)); err != nil {
		t.Fatal(err)
	}
}

// TestFullLog fills a log to its cap: Append is refused before the reserve, AppendControl at the cap, and a release makes room.
func TestFullLog(t *testing.T) {
	opts := testOptions(vfs.NewCrashableMem(), "log", 1)
	opts.CapBytes, opts.ReserveBytes = 4*opts.FileSize, opts.FileSize
	l, _ := openAll(t, opts)
	defer l.Close()
	var err error
	n := 0
	for ; err == nil; n++ {
		err = l.Append(oneWrite(1))
	}
	if !errors.Is(err, block.ErrNoSpace) {
		t.Fatal(err)
	}
	if u := l.Usage(); u.Live > u.Cap-u.Reserve || u.Live < u.Cap-u.Reserve-16<<10 {
		t.Fatalf("refused at %+v", u)
	}
	seq, last := l.Last()
	big := Record{Kind: Write, Len: 5 * sectorSize, Payload: [][]byte{fill(5*sectorSize, 1)}}
	if err := l.Append([]Record{{Kind: Trim}, big}); !errors.Is(err, block.ErrNoSpace) {
		t.Fatal(err)
	}
	if s, _ := l.Last(); s != seq {
		t.Fatal("a refused batch was appended in part")
	}
	used := 0
	for err = nil; err == nil; used++ {
		err = l.AppendControl(&Record{Kind: Trim, Len: 1})
	}
	if !errors.Is(err, block.ErrNoSpace) || used < 100 {
		t.Fatalf("%d records in the reserve: %v", used, err)
	}
	if u := l.Usage(); u.Live > u.Cap || u.Live < u.Cap-opts.FileSize/2 {
		t.Fatalf("reserve ends at %+v", u)
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitSealed(l)
	if err := l.ReleaseBefore(last); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(oneWrite(1)); err != nil {
		t.Fatalf("append after a release: %v", err)
	}
}

// TestInvalidRecords offers records that the format cannot hold.
func TestInvalidRecords(t *testing.T) {
	l, _ := openAll(t, testOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	sector := [][]byte{make([]byte, sectorSize)}
	for _, r := range []Record{
		{Kind: 0}, {Kind: 4}, {Kind: 15},
		{Kind: Write}, {Kind: Write, Len: sectorSize}, {Kind: Write, Len: sectorSize, Off: 512, Payload: sector},
		{Kind: Write, Len: 512, Payload: [][]byte{make([]byte, 512)}}, {Kind: Write, Len: 2 * sectorSize, Payload: sector},
		{Kind: Write, Len: sectorSize, Payload: sector, Summed: true}, {Kind: Write, Len: sectorSize, Payload: sector, Sums: make([]uint32, 2), Summed: true},
		{Kind: Trim, Payload: sector}, {Kind: Zero, Payload: sector},
		{Kind: FirstControl, Payload: [][]byte{make([]byte, MaxControl+1)}},
		{Kind: FirstControl, Payload: [][]byte{make([]byte, 64<<10)}}, // more than a file of this log
	} {
		if err := l.Append([]Record{r}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", r.Kind, err)
		}
	}
	if err := l.ReadAt(make([]byte, 100), 0, nil); !errors.Is(err, block.ErrInvalid) {
		t.Error(err)
	}
	if err := l.ReadAt(make([]byte, sectorSize), makePos(77, 4096), make([]uint32, 1)); !errors.Is(err, block.ErrNotFound) {
		t.Error(err)
	}
	if seq, _ := l.Last(); seq != 0 {
		t.Fatalf("%d records appended", seq)
	}
}

// TestSummed appends with the caller's sums: what they fit is read back, and what they do not fit is found, as they are what the payload was verified by before.
func TestSummed(t *testing.T) {
	l, _ := openAll(t, plainOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	sector := fill(sectorSize, 3)
	sum := checksum(sector)
	recs := []Record{
		{Kind: Write, Len: sectorSize, Payload: [][]byte{sector}, Sums: []uint32{sum}, Summed: true},
		{Kind: Write, Len: sectorSize, Payload: [][]byte{sector}, Sums: []uint32{sum ^ 1}, Summed: true},
	}
	if err := l.Append(recs); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, sectorSize)
	if err := l.ReadAt(got, recs[0].Pos, recs[0].Sums); err != nil || !bytes.Equal(got, sector) {
		t.Errorf("read back: %v", err)
	}
	if err := l.ReadAt(got, recs[1].Pos, recs[1].Sums); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("a payload that never fitted its sum: %v", err)
	}
}

// TestClock turns the clock back and checks that the times of records do not follow.
func TestClock(t *testing.T) {
	now := time.Unix(1000, 0)
	opts := testOptions(vfs.NewCrashableMem(), "log", 1)
	opts.Now = func() time.Time { return now }
	events := 0
	opts.Events.ClockBehind = func(time.Duration) { events++ }
	l, _ := openAll(t, opts)
	var times []int64
	for _, at := range []int64{1000, 2000, 500, 500, 3000, 100} {
		now = time.Unix(at, 0)
		r := Record{Kind: Trim}
		if err := l.AppendControl(&r); err != nil {
			t.Fatal(err)
		}
		times = append(times, r.Time)
	}
	l.Close()
	opts.BootEpoch = 2
	l, _ = openAll(t, opts)
	defer l.Close()
	r := Record{Kind: Trim}
	if err := l.AppendControl(&r); err != nil {
		t.Fatal(err)
	}
	times = append(times, r.Time)
	for i := 1; i < len(times); i++ {
		if times[i] <= times[i-1] {
			t.Fatal(times)
		}
	}
	if events != 3 {
		t.Fatalf("%d events", events)
	}
}

// TestClosed uses a log after Close.
func TestClosed(t *testing.T) {
	l, _ := openAll(t, testOptions(vfs.NewCrashableMem(), "log", 1))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := l.Append(oneWrite(1)); !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
	if err := l.Sync(context.Background()); !errors.Is(err, block.ErrClosed) {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}
