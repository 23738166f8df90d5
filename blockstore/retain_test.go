package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// The log is kept back to the first checkpoint of a store, which begins at its beginning, over a start that needs only the end of it: the metadata may be lost after that.
func TestLogIsKeptForTheFirstCheckpoint(t *testing.T) {
	mem := newCrashMem(t)
	opts := testOptions(t, mem, "data/store")
	opts.Events.Corruption, opts.Events.BackgroundError = nil, nil
	s := openTest(t, opts)
	s.checkpoints.writing.Lock() // no delta
	t.Cleanup(s.checkpoints.writing.Unlock)
	d := createTest(t, s, "v", 16<<20)
	data := guestData(rand.New(rand.NewPCG(4, 2)), 6<<20)
	writeTest(t, d, 0, data)
	if err := d.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	s.destager.all.Add(1)
	for began := time.Now(); s.watermark().File() < 2; time.Sleep(5 * time.Millisecond) {
		if s.destager.kick(); time.Since(began) > 4*time.Minute {
			t.Fatal("the first file of the log is still needed")
		}
	}
	if j := s.checkpoints.journaled.Load(); j == nil || j.Watermark != 0 {
		t.Fatalf("a delta was written: the test does not meet what it is for: %+v", j)
	}
	cut := func(from *vfs.MemFS) *vfs.MemFS {
		to := from.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		setUsage(to)
		return to
	}
	once := cut(mem)
	opts.FS = once
	openTest(t, opts)
	again := cut(once)
	if err := again.RemoveAll("data/store/meta"); err != nil {
		t.Fatal(err)
	}
	opts.FS = again
	s = openTest(t, opts)
	expect(t, deviceTest(t, s, "v", ""), 0, data)
}
