package blockstore

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Marks of log fill and of the overlay's budget, as parts of 1000. Between soft and hard, writers are slowed ever more, so that they meet the pace of destage without a
// cliff; at hard they wait for destage.
const (
	fillDestage = 300 // destage works without pause
	fillStreams = 700 // of the overlays' budget: below it, what streams take of it does not count
	fillSoft    = 850
	fillHard    = 965
)

// measureEvery is how many admitted bytes may pass between two looks at the fill.
const measureEvery = 1 << 20

// leastSpacing is the pace below the soft mark while volumes contend for the log, as a part of what the pace of destage asks for.
const leastSpacing = 0.25

// maxSpacing is the longest pause after one write just below the hard mark.
const maxSpacing = 250 * time.Millisecond

// spaceGate admits writes: to the file system, which must be able to take them in segments too, and to the log, which volumes share fairly when it gets short. Below the
// soft mark that costs a few atomic operations and neither lock nor memory.
type spaceGate struct {
	s     *Store
	queue fairQueue

	since  atomic.Int64 // bytes admitted since the fill was measured
	fill   atomic.Int64 // of log or overlay, whichever is fuller, in parts of 1000
	left   atomic.Int64 // bytes that may be admitted before the disk must be looked at again
	flying atomic.Int64 // bytes admitted and not yet landed
	state  atomic.Int32 // SpaceState
	free   atomic.Int64 // bytes of the file system that writers may use

	// exhausted is a position of the log: while nothing has been logged since, all that destage and reclaim can free is freed.
	exhausted atomic.Uint64

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when room came back
}

func newSpaceGate(s *Store) *spaceGate {
	g := &spaceGate{s: s, changed: make(chan struct{})}
	g.queue.g = g
	return g
}

// tryAdmit admits n bytes of a volume at once or says why not: ErrWouldBlock when the writer should wait, ErrNoSpace when waiting would not help. Whoever was admitted
// calls landed when the bytes are in the log, or will not come.
func (g *spaceGate) tryAdmit(sh *share, n int64) error {
	if g.since.Add(n) >= measureEvery {
		g.measure()
	}
	if g.short() && !g.queue.tryTake(sh, n) {
		return block.ErrWouldBlock
	}
	return g.tryDisk(sh, n)
}

// admit waits until n bytes of a volume may be logged, and is otherwise like tryAdmit.
func (g *spaceGate) admit(ctx context.Context, sh *share, n int64) error {
	if g.since.Add(n) >= measureEvery {
		g.measure()
	}
	if g.short() {
		g.s.destager.kick()
		if err := g.queue.wait(ctx, sh, n); err != nil {
			return err
		}
	}
	for {
		if err := g.tryDisk(sh, n); err != block.ErrWouldBlock {
			return err
		}
		if err := g.waitForDisk(ctx, sh, n); err != nil {
			return err
		}
	}
}

// short reports whether room in the log must be shared.
func (g *spaceGate) short() bool { return g.fill.Load() >= fillSoft || g.queue.contended.Load() }

// landed says that n admitted bytes are in log and overlay, or that nothing came of them.
func (g *spaceGate) landed(n int64) { g.flying.Add(-n) }

// waitForRoom returns when log files were released, or after a while, since what else makes room tells nobody.
func (g *spaceGate) waitForRoom(ctx context.Context) error {
	g.mu.Lock()
	changed := g.changed
	g.mu.Unlock()
	g.s.destager.kick()
	select {
	case <-changed:
	case <-time.After(100 * time.Millisecond):
	case <-ctx.Done():
		return ctx.Err()
	}
	if g.s.closed.Load() {
		return block.ErrClosed
	}
	g.measure()
	return nil
}

// spacing is how long the log has to be left alone after n bytes, as its fill asks for: not at all at the soft mark, as at a quarter of the pace of destage just below the
// hard mark, so that writers meet that pace in between, and at any fill least times what the pace of destage would ask for. room is false from the hard mark on.
func (g *spaceGate) spacing(n int64, least float64) (pause time.Duration, room bool) {
	fill := g.fill.Load()
	if fill >= fillHard {
		return 0, false
	}
	over := max(0, float64(fill-fillSoft)/float64(fillHard-fillSoft))
	pace := float64(g.s.destager.pace.Load()) // bytes/s
	return min(maxSpacing, time.Duration(float64(n)/pace*max(least, over*over*4)*float64(time.Second))), true
}

// measure reads the fill of log and overlay.
func (g *spaceGate) measure() {
	g.since.Store(0)
	u := g.s.log.Usage()
	logFill := u.Charged * 1000 / u.Cap
	used := g.s.budget.Used()
	overlayFill := used * 1000 / g.s.plan.overlay
	if overlayFill < fillStreams {
		overlayFill = max(0, used-streamSlots(u)) * 1000 / g.s.plan.overlay
	}
	g.fill.Store(max(logFill, overlayFill))
}

// released wakes writers that wait for room.
func (g *spaceGate) released() {
	g.exhausted.Store(0)
	g.measure()
	g.mu.Lock()
	close(g.changed)
	g.changed = make(chan struct{})
	g.mu.Unlock()
	g.queue.serve()
}
