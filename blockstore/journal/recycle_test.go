package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// waitRetired waits until no released file is left with readers.
func waitRetired(t testing.TB, l *Log) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); l.Usage().Retired > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("files stay retired: %+v", l.Usage())
		}
		time.Sleep(time.Millisecond) // a poll for the goroutine that recycles, bounded by the deadline
	}
}

// TestRecycledFileKeepsNothing fills a log, releases it, and writes the same records at the same places in the recycled files. Whatever of
// the old files shines through must not be replayed.
func TestRecycledFileKeepsNothing(t *testing.T) {
	mem := vfs.NewCrashableMem()
	l, _ := openAll(t, testOptions(mem, "log", 1))
	recs := oneWrite(1)
	for l.NextPos().File() < 4 {
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitSealed(l)
	from := l.NextPos()
	if err := l.ReleaseBefore(from); err != nil {
		t.Fatal(err)
	}
	waitRetired(t, l)
	if u := l.Usage(); u.Files != 1 || u.Spare < 3 {
		t.Fatalf("%+v", u)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for n := range 12 {
		// A process that appends n records of the very same form, without a seal: the file behind them is full of old records in the right
		// places.
		l, got, err := tryOpen(testOptions(mem, "log", uint64(n+2)), from)
		if err != nil {
			t.Fatal(err)
		}
		if want := n * (n - 1) / 2; len(got) != want {
			t.Fatalf("run %d: replayed %d records, want %d", n, len(got), want)
		}
		for range n {
			if err := l.Append(recs); err != nil {
				t.Fatal(err)
			}
		}
		clone := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: 100, RNG: rand.New(rand.NewPCG(1, 1))})
		abandon(t, l)
		mem = clone
	}
}

// TestPinHoldsFiles releases files that a reader is in.
func TestPinHoldsFiles(t *testing.T) {
	l, _ := openAll(t, testOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	recs := oneWrite(1)
	if err := l.Append(recs); err != nil {
		t.Fatal(err)
	}
	first := remember(&recs[0])
	for l.NextPos().File() < 3 {
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitSealed(l)
	pin := l.Pin()
	if err := l.ReleaseBefore(l.NextPos()); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(30 * time.Millisecond); time.Now().Before(end); {
		// Pins of others come and go and must not let the files go, however often the recycler looks.
		l.Pin().Release()
		l.kick(l.prepKick)
		if err := readBack(l, &first); err != nil {
			t.Fatal(err)
		}
	}
	if u := l.Usage(); u.Retired != 2 || u.Files != 1 {
		t.Fatalf("%+v", u)
	}
	pin.Release()
	waitRetired(t, l)
	if err := readBack(l, &first); !errors.Is(err, block.ErrNotFound) {
		t.Fatal(err)
	}
}

// TestReleaseBeforeSeal releases files that are not sealed yet: they go when they are.
func TestReleaseBeforeSeal(t *testing.T) {
	l, _ := openAll(t, testOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	if err := l.ReleaseBefore(makePos(1<<20, 0)); err != nil {
		t.Fatal(err)
	}
	for l.NextPos().File() < 6 {
		if err := l.Append(oneWrite(1)); err != nil {
			t.Fatal(err)
		}
	}
	waitSealed(l)
	// The last full file may wait for the sync that makes the header of the next one durable, but no longer.
	if u := l.Usage(); u.Files > 2 {
		t.Fatalf("%+v", u)
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	if u := l.Usage(); u.Files != 1 || u.Live != l.NextPos().Offset() {
		t.Fatalf("%+v", u)
	}
	if err := l.Append(oneWrite(1)); err != nil {
		t.Fatal(err)
	}
}

// TestPinEpochs walks through the epochs of pins by hand.
func TestPinEpochs(t *testing.T) {
	var s pinSet
	for range 5 {
		e := s.epoch.Load()
		first := s.pin()
		if !s.tryAdvance() {
			t.Fatal("a pin of this epoch holds up the next")
		}
		second := s.pin()
		if s.tryAdvance() || s.epoch.Load() != e+1 {
			t.Fatal("the epoch passes a pin")
		}
		first.Release()
		if !s.tryAdvance() || s.tryAdvance() {
			t.Fatal("the epoch advances once when the first pin ends, and waits for the second")
		}
		second.Release()
		if !s.tryAdvance() {
			t.Fatal("the epoch is held by nobody")
		}
	}
}

// TestSparesAreBounded releases many files at once and counts what stays in the directory.
func TestSparesAreBounded(t *testing.T) {
	dir := t.TempDir()
	opts := testOptions(vfs.Default, dir, 1)
	opts.FileSize = MinFileSize
	l, _ := openAll(t, opts)
	for l.NextPos().File() < 15 {
		if err := l.Append(oneWrite(1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitSealed(l)
	from := l.NextPos()
	if err := l.ReleaseBefore(from); err != nil {
		t.Fatal(err)
	}
	waitRetired(t, l)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for boot := uint64(2); boot < 5; boot++ {
		names, err := filepath.Glob(filepath.Join(dir, "*"+fileSuffix))
		if err != nil || len(names) > int(boot)+maxSpares+1 {
			t.Fatalf("%d files: %v", len(names), err)
		}
		opts.BootEpoch = boot
		l, _, err := tryOpen(opts, from)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}

// TestEverythingAtOnce appends, syncs, reads and releases from many goroutines.
func TestEverythingAtOnce(t *testing.T) {
	opts := testOptions(vfs.Default, t.TempDir(), 1)
	opts.FileSize, opts.CapBytes, opts.SyncEvery = 256<<10, 1<<30, time.Millisecond
	l, _ := openAll(t, opts)
	var wg, side sync.WaitGroup
	var mu sync.Mutex
	all := map[uint64]entry{}
	var stop atomic.Bool
	for w := range 4 {
		wg.Add(1)
		go func() {
			defer wg.Done()
			rng := rand.New(rand.NewPCG(9, uint64(w)))
			for range 80 {
				batch := appendRandom(t, l, rng)
				mu.Lock()
				for _, e := range batch {
					all[e.Seq] = e
				}
				mu.Unlock()
				if rng.IntN(4) == 0 {
					if err := l.Sync(context.Background()); err != nil {
						t.Error(err)
					}
					if seq, _ := l.Durable(); seq < batch[len(batch)-1].Seq {
						t.Errorf("sync returned with %d durable of %d", seq, batch[len(batch)-1].Seq)
					}
				}
			}
		}()
	}
	var floor atomic.Uint64 // the replay position: what is before it may be gone
	for w := range 2 {
		side.Add(1)
		go func() {
			defer side.Done()
			for n := 0; !stop.Load(); n++ {
				pin := l.Pin()
				low := Pos(floor.Load())
				mu.Lock()
				var e entry
				for _, e = range all {
					if e.Kind == Write && e.Pos >= low {
						break
					}
				}
				mu.Unlock()
				if e.Kind == Write && e.Pos >= low {
					if err := l.ReadAt(make([]byte, e.Len), e.Pos, e.Sums); err != nil {
						t.Error(err)
						pin.Release()
						return
					}
				}
				pin.Release()
				if w == 0 && n%50 == 0 {
					_, pos := l.Durable()
					floor.Store(uint64(max(pos, low)))
					if err := l.ReleaseBefore(pos); err != nil {
						t.Error(err)
					}
				}
				l.Usage()
			}
		}()
	}
	wg.Wait()
	stop.Store(true)
	side.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	opts.BootEpoch = 2
	from := Pos(floor.Load())
	l, got, err := tryOpen(opts, from)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if len(got) == 0 || got[len(got)-1].Seq != uint64(len(all)) {
		t.Fatalf("replayed %d records of %d", len(got), len(all))
	}
	for i := range got {
		want := all[got[i].Seq]
		r := got[i].Replayed
		r.Payload = got[i].data
		if err := want.check(&r); err != nil {
			t.Fatal(err)
		}
	}
}

// TestTryAppend never waits, and appends nothing when it would.
func TestTryAppend(t *testing.T) {
	l, _ := openAll(t, testOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	blocked := 0
	for l.NextPos().File() < 4 {
		before, _ := l.Last()
		err := l.TryAppend(oneWrite(1))
		if err == nil {
			continue
		}
		if after, _ := l.Last(); !errors.Is(err, block.ErrWouldBlock) || after != before {
			t.Fatalf("%v, %d records after %d", err, after, before)
		}
		blocked++
		waitPrepared(l)
		waitSealed(l)
	}
	t.Logf("would have waited %d times", blocked)
}

// TestSyncHonoursContext ends a wait for the sync of another.
func TestSyncHonoursContext(t *testing.T) {
	l, _ := openAll(t, testOptions(vfs.NewCrashableMem(), "log", 1))
	defer l.Close()
	if err := l.Append(oneWrite(1)); err != nil {
		t.Fatal(err)
	}
	l.group.Lock() // stand in for a sync that takes for ever
	l.group.running, l.group.done = true, make(chan struct{})
	l.group.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := l.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	l.group.Lock()
	l.group.running = false
	close(l.group.done)
	l.group.Unlock()
	if err := l.Sync(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestSyncByItself leaves the log alone and waits for it to be durable.
func TestSyncByItself(t *testing.T) {
	for name, set := range map[string]func(*Options){
		"time":   func(o *Options) { o.SyncEvery = time.Millisecond },
		"amount": func(o *Options) { o.SyncBytes = 4096 },
	} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(vfs.NewCrashableMem(), "log", 1)
			set(&opts)
			l, _ := openAll(t, opts)
			defer l.Close()
			if err := l.Append(oneWrite(1)); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
				if seq, _ := l.Durable(); seq == 1 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatal("not synced")
				}
			}
		})
	}
}

// TestStrangeNames leaves files alone that are not of the log.
func TestStrangeNames(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"notes", "1.log", "0000000G.log", "00000000.log", "0000000a.log.bak", "0000000A.log"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l, _ := openAll(t, testOptions(vfs.Default, dir, 1))
	l.Close()
	names, err := fs.Glob(os.DirFS(dir), "*")
	if err != nil || len(names) < 7 {
		t.Fatal(fmt.Sprint(names), err)
	}
}
