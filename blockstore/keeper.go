package blockstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// keeper looks after sealed segments, one at a time and in this order: it mends what a reader or a scrub found damaged (repair.go), makes the parity sidecars that are
// missing (parity.go), scrubs (scrub.go), and copies what much depends on a second time (second.go). Sealed files of history are kept the same way (historyparity.go). One goroutine does all of it, so that a segment and its sidecar never change under each other's feet.
//
// A segment may be dropped meanwhile. Files are made whole before they get their names, and who has named one looks again whether its segment still has a row: if not, the
// file goes the way of the segment. Reads go on all the while; they open the new file when the old one was replaced (tiers.Set).
type keeper struct {
	s        *Store
	wake     chan struct{}
	pace     pacer
	coder    *erasure.Coder                // of the goroutine; nil while it has nothing to do
	todo     []block.SegmentID             // of the goroutine: sealed segments whose sidecars were not as they shall be at the last look, the oldest last
	swept    bool                          // what an earlier run left of sidecars is removed
	roomy    time.Time                     // when there may be room for a sidecar again
	deferred map[block.SegmentID]time.Time // segments whose shards could not be made, until when

	scrubbing sync.Mutex // orders changes of mu.scrub, which are written first; comes before mu

	seconds   seconds
	returning returning // of the goroutine

	rescues chan struct{} // tokens of reads that reconstruct
	counts  keptCounts

	historyStep func(history.ParityStep) // tests stop there

	mu struct {
		sync.Mutex
		damaged map[block.SegmentID]*Damage // found since the start, mended or not
		queue   []block.SegmentID           // to be mended
		unsound map[block.SegmentID]bool    // get no sidecar: what is damaged must not be taken for good
		busy    block.SegmentID             // being mended; 0 none
		emptied map[block.SegmentID]bool    // of which lost chunks were healed
		scrub   scrubRun

		// The same of sealed files of history.
		histories map[history.FileKey]*Damage
		files     []history.FileKey // to be mended
		mending   bool              // one of them is
	}
}

// keptCounts are figures since the open.
type keptCounts struct {
	found, mended, lost atomic.Uint64 // columns of 4 KiB, or frames where there are no columns
	inline              atomic.Uint64 // reads that were answered by parity
	healed              atomic.Uint64 // lost chunks whose bytes came from elsewhere
	written             atomic.Int64  // bytes of sidecars and repaired segments
}

const (
	keeperTick = time.Second
	// rescuers bounds the reads that reconstruct at once, and with them their memory.
	rescuers = 2
	// keeperRetry is how long the keeper leaves alone what failed, or what there was no room for.
	keeperRetry = 10 * time.Second
)

func newKeeper(s *Store) *keeper {
	k := &keeper{s: s, wake: make(chan struct{}, 1), rescues: make(chan struct{}, rescuers)}
	k.pace.s = s
	k.mu.damaged, k.mu.unsound, k.mu.emptied = map[block.SegmentID]*Damage{}, map[block.SegmentID]bool{}, map[block.SegmentID]bool{}
	k.mu.histories = map[history.FileKey]*Damage{}
	return k
}

func (k *keeper) kick() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (k *keeper) run(ctx context.Context) {
	tick := time.NewTicker(keeperTick)
	defer tick.Stop()
	defer k.seconds.set(nil)
	k.s.report("resume the scrub", k.resumeScrub())
	for {
		k.s.ProbeDisks()
		k.takeBack()
		k.pruneHistory()
		for ctx.Err() == nil {
			more, err := k.round(ctx)
			k.s.report("care for segments", err)
			if err != nil {
				sleep(ctx, keeperRetry)
			}
			if !more {
				break
			}
		}
		k.coder = nil
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		case <-tick.C:
		}
	}
}

// round does the most urgent piece of work and reports whether there was one.
func (k *keeper) round(ctx context.Context) (did bool, err error) {
	if !k.swept {
		if err := k.sweep(); err != nil {
			return false, err
		}
		k.swept = true
	}
	for _, step := range []func(context.Context) (bool, error){k.stepRepair, k.stepHistoryRepair, k.stepStripe, k.stepParity, k.stepHistoryParity, k.stepScrub, k.stepSecond} {
		if did, err = step(ctx); did || err != nil {
			return did, err
		}
	}
	return false, nil
}

// sweep removes the sidecars of segments that are gone, and what a crash left of files that were never named.
func (k *keeper) sweep() error {
	var gone []tiers.Placement
	err := k.s.tiers.ListParity(defaultTier, func(p tiers.Placement) error {
		if !k.wants(&p) {
			gone = append(gone, p)
		}
		return nil
	})
	for _, p := range gone {
		err = errors.Join(err, k.s.tiers.DeleteParity(p))
	}
	return err
}

// wants reports whether the sidecar of a copy is one that a segment has, or may have.
func (k *keeper) wants(p *tiers.Placement) bool {
	id, _, ok := tiers.ParseSegmentKey(p.Key)
	r, known := k.s.segments.get(id)
	return ok && known && r.State == segmentSealed && (!k.s.wantParity().None() || !r.Parity.None()) &&
		slices.ContainsFunc(r.Placement, func(of tiers.Placement) bool { return of.Key == p.Key })
}

// coderFor returns the coder of a shape. Only the goroutine calls it.
func (k *keeper) coderFor(s erasure.Shape) (_ *erasure.Coder, err error) {
	if k.coder == nil || k.coder.Shape() != s {
		k.coder, err = erasure.NewCoder(s)
	}
	return k.coder, err
}

// room reports whether n bytes more may be taken from the file system for the sake of safety: never what guests' writes may need.
func (k *keeper) room(n int64) bool {
	if k.s.space.checkDisk() != nil {
		return false
	}
	return SpaceState(k.s.space.state.Load()) != SpaceFull && k.s.space.free.Load() > 2*n+k.s.opts.ReserveBytes/4
}

// later puts off what there is no room for.
func (k *keeper) later() { k.roomy = time.Now().Add(keeperRetry) }

// enqueue asks for the repair of a segment.
func (k *keeper) enqueue(id block.SegmentID) {
	k.mu.Lock()
	if !slices.Contains(k.mu.queue, id) {
		k.mu.queue = append(k.mu.queue, id)
	}
	k.mu.Unlock()
	k.kick()
}
