package blockstore

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Marks of log fill and of the overlay's budget, as parts of 1000. Between soft and hard, writers are slowed ever more, so that they meet the pace of destage without a
// cliff; at hard they wait for destage.
const (
	fillDestage = 300 // destage works without pause
	fillSoft    = 600
	fillHard    = 930
)

// measureEvery is how many admitted bytes may pass between two looks at the fill.
const measureEvery = 1 << 20

// maxDelay is the longest pause between two batches just below the hard mark.
const maxDelay = 20 * time.Millisecond

// spaceGate admits writes. It is the place where per-volume quality of service will act.
type spaceGate struct {
	s *Store

	since atomic.Int64 // bytes admitted since the fill was measured
	left  atomic.Int64 // bytes that may be admitted before the disk must be looked at again
	fill  atomic.Int64 // of log or overlay, whichever is fuller, in parts of 1000
	state atomic.Int32 // SpaceState
	free  atomic.Int64 // bytes of the file system that writers may use

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when room came back
	debt    time.Duration // pauses that admitted writers still owe
}

func newSpaceGate(s *Store) *spaceGate { return &spaceGate{s: s, changed: make(chan struct{})} }

// tryAdmit admits n bytes at once or says why not: ErrWouldBlock when the writer should wait, ErrNoSpace when waiting would not help.
func (g *spaceGate) tryAdmit(n int64) error {
	if g.left.Add(-n) < 0 {
		if err := g.checkDisk(); err != nil {
			return err
		}
	}
	if SpaceState(g.state.Load()) == SpaceFull || g.free.Load() < n {
		return fmt.Errorf("admit %d B: only the reserve is left on %s; delete or trim something, or make the file system larger: %w", n, g.s.opts.Dir, block.ErrNoSpace)
	}
	if g.since.Add(n) >= measureEvery {
		g.measure()
	}
	if g.fill.Load() >= fillSoft {
		return block.ErrWouldBlock
	}
	return nil
}

// admit waits until n bytes may be logged.
func (g *spaceGate) admit(ctx context.Context, n int64) error {
	for {
		err := g.tryAdmit(n)
		if err != block.ErrWouldBlock {
			return err
		}
		g.s.destager.kick()
		if g.fill.Load() < fillHard {
			return g.pause(ctx, n)
		}
		if err := g.waitForRoom(ctx); err != nil {
			return err
		}
	}
}

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

// pause slows one writer of n bytes down by what the fill asks for: nothing at the soft mark, n bytes at a quarter of the pace of destage just below the hard mark. Short
// pauses are saved up, as no timer is exact below a millisecond.
func (g *spaceGate) pause(ctx context.Context, n int64) error {
	over := float64(g.fill.Load()-fillSoft) / float64(fillHard-fillSoft)
	pace := float64(g.s.destager.pace.Load()) // bytes/s
	wait := time.Duration(float64(n) / pace * over * over * 4 * float64(time.Second))
	g.mu.Lock()
	g.debt += min(wait, maxDelay)
	due := g.debt
	if due < time.Millisecond {
		g.mu.Unlock()
		return nil
	}
	g.debt = 0
	g.mu.Unlock()
	t := time.NewTimer(due)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// measure reads the fill of log and overlay.
func (g *spaceGate) measure() {
	g.since.Store(0)
	u := g.s.log.Usage()
	logFill := u.Live * 1000 / u.Cap
	overlayFill := g.s.budget.Used() * 1000 / g.s.plan.overlay
	g.fill.Store(max(logFill, overlayFill))
}

// released wakes writers that wait for room.
func (g *spaceGate) released() {
	g.measure()
	g.mu.Lock()
	close(g.changed)
	g.changed = make(chan struct{})
	g.mu.Unlock()
}

// checkDisk is called once a second and whenever as much was admitted as might have filled the disk: a client writes more than the reserve in less than a second. It
// reads how full the file system is. The state is full when what is in the log and not yet in segments might no longer fit beside the reserve.
func (g *spaceGate) checkDisk() error {
	usage, err := g.s.fs.GetDiskUsage(g.s.opts.Dir)
	if err != nil {
		return fmt.Errorf("read free space of %s: %w", g.s.opts.Dir, err)
	}
	reserve := g.s.reserve(usage.TotalBytes)
	free := int64(usage.AvailBytes) - reserve - g.s.undestaged()
	g.free.Store(max(0, free))
	g.left.Store(free / 2) // a byte in the log takes room there, and will take room in a segment
	state := SpaceOK
	switch {
	case free <= 0:
		state = SpaceFull
	case usage.TotalBytes > 0 && usage.UsedBytes*100 >= usage.TotalBytes*85:
		state = SpaceNearFull
	}
	if old := SpaceState(g.state.Swap(int32(state))); old != state {
		if f := g.s.opts.Events.SpaceState; f != nil {
			f(state, g.free.Load())
		}
		if old == SpaceFull {
			g.released()
		}
	}
	return nil
}

// reserve is how much of the file system only destage, delete and reclaim may use.
func (s *Store) reserve(total uint64) int64 {
	if s.opts.ReserveBytes != 0 {
		return s.opts.ReserveBytes
	}
	return min(max(1<<30, int64(total)*3/100), int64(total)/10)
}
