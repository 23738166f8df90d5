package blockstore

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// diskPatience is how long a write waits at most for destage and reclaim to make room on the file system. Guests give a disk 30 s before they call it dead.
const diskPatience = 20 * time.Second

// tryDisk takes n bytes of the file system, or says why not: ErrWouldBlock when destage or reclaim may still make room, else ErrNoSpace.
func (g *spaceGate) tryDisk(sh *share, n int64) error {
	if sh.takeReserved(n) {
		g.flying.Add(n)
		return nil
	}
	if g.take(n) {
		return nil
	}
	if err := g.checkDisk(); err != nil {
		return err
	}
	switch {
	case sh.takeReserved(n):
		g.flying.Add(n)
		return nil
	case g.take(n):
		return nil
	case g.mayGain():
		return block.ErrWouldBlock
	}
	return g.noSpace(n, nil)
}

// take books n bytes if as many are known to be left.
func (g *spaceGate) take(n int64) bool {
	if g.left.Add(-n) < 0 {
		g.left.Add(n)
		return false
	}
	g.flying.Add(n)
	return true
}

// takeReserved takes n bytes of what is kept for the volume, if as many are.
func (sh *share) takeReserved(n int64) bool {
	if sh.reserved.Load() < n {
		return false
	}
	if sh.reserved.Add(-n) >= 0 {
		return true
	}
	sh.reserved.Add(n)
	return false
}

func (g *spaceGate) noSpace(n int64, cause error) error {
	err := fmt.Errorf("admit %d B: only the reserve, and what is kept for other volumes, is left on %s; delete or trim something, or make the file system larger: %w", n, g.s.opts.Dir, block.ErrNoSpace)
	if cause != nil {
		err = fmt.Errorf("%w (background work fails: %v)", err, cause)
	}
	return err
}

// mayGain reports whether destage or reclaim may still free something: what is in the log takes room there, in the worst case as much in segments, and often less.
func (g *spaceGate) mayGain() bool {
	return uint64(g.s.log.NextPos()) != g.exhausted.Load() || !g.s.worker.quiet() || g.s.checkpoints.files.any() || g.s.collector.mayFree()
}

// waitForDisk hurries destage and reclaim on and returns when there may be room for n bytes, or with ErrNoSpace when all is destaged and reclaimed, when that fails, or
// when it takes too long.
func (g *spaceGate) waitForDisk(ctx context.Context, sh *share, n int64) error {
	s := g.s
	defer s.hurry()()
	mark, kick, down := s.logMark(), uint64(0), false
	last := false // the worker was woken when no file was left to go
	late := time.NewTimer(diskPatience)
	defer late.Stop()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	for {
		if !down && s.downTo(mark) {
			down, kick = true, s.worker.kick()
		}
		done := down && s.worker.idleSince(kick)
		if err := g.checkDisk(); err != nil {
			return err
		}
		if g.left.Load() >= n || sh.reserved.Load() >= n {
			return nil
		}
		switch waits := s.checkpoints.files.any() || s.collector.mayFree(); {
		case !done:
		case waits:
			last = false
		case last:
			g.exhausted.Store(uint64(mark.next))
			return g.noSpace(n, nil)
		default: // files that others let go meanwhile may have left the room that the worker lacked
			last, kick, done = true, s.worker.kick(), false
		}
		// Files of dead segments wait for an audit and a checkpoint; with them gone, there may be room to reclaim more. An audit of a large store may take longer than a guest waits.
		if done && s.collector.mayFree() {
			s.collector.hasten()
		}
		if done && s.checkpoints.files.any() {
			if err := s.checkpoints.delta(); err != nil {
				return g.noSpace(n, err)
			}
			kick = s.worker.kick()
		}
		if err := s.lastingFault(); err != nil {
			return g.noSpace(n, err)
		}
		s.destager.kick()
		select {
		case <-tick.C:
		case <-late.C:
			return g.noSpace(n, nil)
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return block.ErrClosed
		}
	}
}

// fitting returns what of a batch can be destaged into what is free: all of it, as writes are admitted only when they fit, unless something else filled the file system.
// Then it returns what needs no room and an error: to find out by failed writes would fail the metadata's, too.
func (g *spaceGate) fitting(batch []candidate) ([]candidate, error) {
	need := int64(0)
	for _, c := range batch {
		need += int64(c.info.Blocks) * block.Size
	}
	usage, err := g.s.diskUsage()
	if need == 0 || err != nil {
		return batch, nil // what cannot be known the writes will tell
	}
	free := int64(usage.AvailBytes) - g.s.reserve(usage.TotalBytes)/4
	if need+need/32 <= free {
		return batch, nil
	}
	batch = slices.DeleteFunc(slices.Clone(batch), func(c candidate) bool { return c.info.Blocks > 0 })
	return batch, fmt.Errorf("destage %d B: %d B are free on %s, of which the metadata needs some: %w", need, usage.AvailBytes, g.s.opts.Dir, block.ErrNoSpace)
}

// lastingFault returns the error of background work that has failed for some while.
func (s *Store) lastingFault() error {
	if err := s.destager.fault.lasting(stuckAfter, time.Time{}); err != nil {
		return err
	}
	return s.worker.fault.lasting(stuckAfter, time.Time{})
}

// checkDisk is called once a second and whenever as much was admitted as might have filled the disk: a client writes more than the reserve in less than a second. It
// reads how full the file system is. What is in the log alone must fit beside the reserve in segments, as if it neither compressed nor was there already; and what is
// admitted takes room in the log as well, unless it fits into files that the log has already.
func (g *spaceGate) checkDisk() error {
	usage, err := g.s.diskUsage()
	if err != nil {
		return fmt.Errorf("read free space of %s: %w", g.s.opts.Dir, err)
	}
	coming := g.s.undestaged() + g.flying.Load()
	free := int64(usage.AvailBytes) - g.s.reserve(usage.TotalBytes) - coming - coming/32 // frames, directories, maps
	free -= g.s.keepReserved()
	g.free.Store(max(0, free))
	inLog := int64(max(0, g.s.log.Usage().Spare-1)) * g.s.opts.LogFileBytes // one is always kept ahead
	left := free
	if free > inLog {
		left = inLog + (free-inLog)/2
	}
	g.left.Store(max(0, left))
	state, marks := SpaceOK, g.s.opts.Marks.space()
	switch {
	case free <= 0 && !g.mayGain():
		state = SpaceFull
	case free <= 0, usage.TotalBytes > 0 && usage.UsedBytes*100 >= usage.TotalBytes*uint64(marks.critical):
		state = SpaceCritical
	case usage.TotalBytes > 0 && usage.UsedBytes*100 >= usage.TotalBytes*uint64(marks.near):
		state = SpaceNearFull
	}
	g.setState(state)
	return nil
}

func (g *spaceGate) setState(state SpaceState) {
	g.s.log.KeepSpares(state == SpaceOK)
	old := SpaceState(g.state.Swap(int32(state)))
	if old == state {
		return
	}
	if f := g.s.opts.Events.SpaceState; f != nil {
		f(state, g.free.Load())
	}
	if old == SpaceFull {
		g.released()
	}
}

// reserve is how much of the file system only destage, delete and reclaim may use.
func (s *Store) reserve(total uint64) int64 {
	if s.opts.ReserveBytes != 0 {
		return s.opts.ReserveBytes
	}
	return min(max(1<<30, int64(total)*3/100), int64(total)/10)
}
