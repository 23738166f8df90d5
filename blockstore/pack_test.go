package blockstore

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A batch that fails leaves its segment with frames that nothing refers to. The segment is sealed before them, so that it can be reclaimed, without a restart.
func TestFailedBatchLeavesNoOpenSegment(t *testing.T) {
	var broken atomic.Bool
	mem := newCrashMem(t)
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if strings.Contains(op.Path, "segments/") && (op.Kind == errorfs.OpFileSync || op.Kind == errorfs.OpFileSyncData || op.Kind == errorfs.OpFileSyncTo) && broken.CompareAndSwap(true, false) {
			return fmt.Errorf("injected: %w", block.ErrNoSpace)
		}
		return nil
	}))
	opts := testOptions(t, fs, "data")
	opts.Events.BackgroundError = nil
	s := openTest(t, opts)
	d := createTest(t, s, "v", 8<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	writeTest(t, d, 0, guestData(rng, 1<<20))
	settleTest(t, s)
	first := s.counted.Load().NextSegment
	data := guestData(rng, 2<<20)
	broken.Store(true)
	writeTest(t, d, 1<<20, data)
	settleTest(t, s)
	if broken.Load() {
		t.Fatal("no sync of a segment failed: the test does not meet what it is for")
	}
	expect(t, d, 1<<20, data)
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		open := 0
		for _, r := range s.segments.all() {
			if r.State == segmentOpen && r.Class == 2 {
				open++
			}
		}
		if open <= 1 && s.counted.Load().NextSegment > first {
			break
		}
		if time.Since(began) > 2*time.Minute {
			t.Fatalf("%d segments are open", open)
		}
	}
}
