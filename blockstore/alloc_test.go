package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// fewestAllocations is the least of several counts per call: the count is one of the whole process, and the store's own goroutines wake up now and then.
func fewestAllocations(calls int, f func()) float64 {
	fewest := testing.AllocsPerRun(calls, f)
	for range 4 {
		if fewest == 0 {
			break
		}
		fewest = min(fewest, testing.AllocsPerRun(calls, f))
	}
	return fewest
}

// TestHotPathsAllocateNothing: what a guest does most costs the garbage collector nothing.
func TestHotPathsAllocateNothing(t *testing.T) {
	skipEncrypted(t)
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.DestageAfter, opts.LogFileBytes, opts.LogCapBytes = time.Hour, 64<<20, 512<<20 // no new file meanwhile
	s := openTest(t, opts)
	const size = 4 << 20
	d := createTest(t, s, "v", size)
	rng := rand.New(rand.NewPCG(1, 1))
	writeTest(t, d, 0, guestData(rng, size))
	ctx := context.Background()
	offset := func() uint64 { return rng.Uint64N(size/block.Size) * block.Size }
	read := func(p []byte) func() {
		holes := make([]block.Range, 0, 4)
		return func() {
			if _, err := d.TryReadAt(p, rng.Uint64N((size-uint64(len(p)))/block.Size+1)*block.Size, holes[:0]); err != nil {
				t.Fatal(err)
			}
		}
	}
	write := func(n int) func() {
		data := guestData(rng, n*block.Size)
		batch := make([]block.Write, n)
		return func() {
			for i := range batch {
				batch[i] = block.Write{Off: offset(), Data: data[i*block.Size : (i+1)*block.Size]}
			}
			if err := d.TryWrite(batch, false); err != nil && err != block.ErrWouldBlock {
				t.Fatal(err)
			}
		}
	}
	count := func(what string, f func()) {
		t.Helper()
		for range 20 { // scratch grows, pools fill
			f()
		}
		if n := fewestAllocations(100, f); n != 0 {
			t.Errorf("%s: %v allocations", what, n)
		}
	}
	one, some := make([]byte, block.Size), make([]byte, 64<<10)
	count("read 4 KiB from the log", read(one))
	count("read 64 KiB from the log", read(some))
	count("write 4 KiB", write(1))
	count("write 32 of 4 KiB", write(32))
	single := write(1)
	count("write 4 KiB and flush", func() {
		single()
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
	})
	settleTest(t, s)
	for off := uint64(0); off < size; off += block.Size { // into the cache of frames
		if _, err := d.ReadAt(ctx, one, off, nil); err != nil {
			t.Fatal(err)
		}
	}
	count("read 4 KiB from cached frames", read(one))
	count("read 64 KiB from cached frames", read(some))
}
