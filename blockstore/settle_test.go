package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A settle brings down what was there when it began, so it ends while others write, trim and delete snapshots without a pause.
func TestSettleEndsUnderConstantWrites(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	still := createTest(t, s, "still", 8<<20)
	ctx, stop := context.WithCancel(context.Background())
	var busy sync.WaitGroup
	defer busy.Wait()
	defer stop()
	for i := range 2 {
		name := fmt.Sprintf("busy%d", i)
		d := createTest(t, s, name, 32<<20)
		rng := rand.New(rand.NewPCG(1, uint64(i)))
		busy.Go(func() { keepBusy(ctx, t, s, d, name, rng) })
	}
	data := guestData(rand.New(rand.NewPCG(9, 9)), 8<<20)
	for round := range 5 {
		data[round] ^= 1
		writeTest(t, still, 0, data)
		before := s.log.NextPos()
		patient, cancel := context.WithTimeout(ctx, 4*time.Minute)
		began := time.Now()
		err := s.Settle(patient, nil)
		cancel()
		if err != nil {
			t.Fatalf("settle %d under constant writes: %v", round, err)
		}
		if n := still.v.head.Load(); !n.layer.Empty() {
			t.Errorf("settle %d left %d blocks of a volume that was written before it", round, n.layer.Blocks())
		}
		if low := s.oldestLayerPos(s.log.NextPos()); low < before {
			t.Errorf("settle %d left something at %v, it began at %v", round, low, before)
		}
		t.Logf("settle %d took %v, %d KiB were not destaged at its end", round, time.Since(began).Round(time.Millisecond), s.undestaged()>>10)
	}
}

// keepBusy overwrites, trims, takes and deletes snapshots until ctx ends.
func keepBusy(ctx context.Context, t *testing.T, s *Store, d *Device, name string, rng *rand.Rand) {
	data := guestData(rng, 256<<10)
	for n := 0; ctx.Err() == nil; n++ {
		data[rng.IntN(len(data))]++
		at := rng.Uint64N(31<<20) &^ 4095
		err := d.Write(ctx, []block.Write{{Off: at, Data: data}}, false)
		if n%16 == 0 {
			err = errors.Join(err, d.Trim(ctx, block.Range{Off: at, Len: 128 << 10}, false))
		}
		if n%64 == 0 {
			_, snapErr := s.CreateSnapshot(ctx, name, "s")
			err = errors.Join(err, snapErr)
		}
		if n%64 == 32 {
			err = errors.Join(err, s.DeleteSnapshot(ctx, name, "s"))
		}
		if err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v", name, err)
			return
		}
	}
}

// A settle that background work cannot follow says why and what to do, and does not hang; once the fault is gone the next one ends well.
func TestSettleReportsAStuckDestage(t *testing.T) {
	t.Parallel() // it waits
	var broken atomic.Bool
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpCreate && strings.Contains(op.Path, "/segments/") {
			return fmt.Errorf("injected: %w", block.ErrNoSpace)
		}
		return nil
	}))
	opts := testOptions(t, fs, t.TempDir())
	opts.Events.BackgroundError = nil
	s := openTest(t, opts)
	d := createTest(t, s, "v", 8<<20)
	data := guestData(rand.New(rand.NewPCG(1, 1)), 1<<20)
	writeTest(t, d, 0, data)
	broken.Store(true)
	patient, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	err := s.Settle(patient, nil)
	if !errors.Is(err, block.ErrNoSpace) || !strings.Contains(err.Error(), "make room") {
		t.Errorf("settle on a disk that is full: %v", err)
	}
	expect(t, d, 0, data)
	broken.Store(false)
	settleTest(t, s)
	expect(t, d, 0, data)
}

// TestSettleGivesUp: without a batch of metadata for a while, and without a fault, a settle says what it waited for.
func TestSettleGivesUp(t *testing.T) {
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	p := &settling{s: s}
	p.report("reclaim", 0, 0)
	now := time.Unix(1_700_000_000, 0)
	if err := p.stalled(now, stallAfter); err != nil {
		t.Fatal(err)
	}
	if err := p.stalled(now.Add(stallAfter-time.Second), stallAfter); err != nil {
		t.Fatal(err)
	}
	if err := p.stalled(now.Add(stallAfter), stallAfter); err == nil || !strings.Contains(err.Error(), "reclaim") {
		t.Fatalf("%v", err)
	}
	s.counted.Store(&counters{}) // a batch
	if err := p.stalled(now.Add(2*stallAfter), stallAfter); err != nil {
		t.Fatal(err)
	}
}

// A settle gives back nearly all that is dead, also where each segment is mostly alive, and does not rewrite the store for the last of it.
func TestSettleLeavesLittleWaste(t *testing.T) {
	const size, hole, every = 160 << 20, 1 << 20, 8 << 20
	ctx := context.Background()
	s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
	d := createTest(t, s, "v", size)
	defer d.Close()
	rng := rand.New(rand.NewPCG(3, 14))
	data := make([]byte, 1<<20)
	for off := uint64(0); off < size; off += 1 << 20 {
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		writeTest(t, d, off, data)
	}
	settle := func() Stats {
		t.Helper()
		if err := s.Settle(ctx, nil); err != nil {
			t.Fatal(err)
		}
		return s.Stats()
	}
	if full := settle(); full.HeldUnusedBytes > full.StoredBytes/100 {
		t.Errorf("%d of %d MiB are dead before anything was trimmed", full.HeldUnusedBytes>>20, full.StoredBytes>>20)
	}
	for off := uint64(0); off < size; off += every {
		if err := d.Trim(ctx, block.Range{Off: off, Len: hole}, false); err != nil {
			t.Fatal(err)
		}
	}
	// An eighth of each segment is dead. In sealed segments a settle leaves 3 %, and the open one is not rewritten.
	before := s.Stats().DiskWrittenBytes
	st := settle()
	if most := st.StoredBytes / 16; st.HeldUnusedBytes > most {
		t.Errorf("%d MiB are held for nothing beside %d MiB, want at most %d", st.HeldUnusedBytes>>20, st.StoredBytes>>20, most>>20)
	}
	if written := st.DiskWrittenBytes - before; written > size*5/4 {
		t.Errorf("to give %d MiB back a settle wrote %d MiB", size*hole/every>>20, written>>20)
	}
	again := s.Stats().DiskWrittenBytes
	if written := settle().DiskWrittenBytes - again; written > size/16 {
		t.Errorf("a settle with nothing to do wrote %d MiB", written>>20)
	}
}
