package blockstore

import (
	"context"
	"fmt"
	"time"
)

// Settle brings everything down that is in the log and gives back everything that is dead, and returns when both is done: sizes can be compared then. Writes that go on
// meanwhile are destaged too, so it may wait for a pause in them. progress may be nil.
func (s *Store) Settle(ctx context.Context, progress func(SettleProgress)) error {
	s.destager.all.Add(1)
	defer s.destager.all.Add(-1)
	s.thorough.Add(1)
	defer s.thorough.Add(-1)
	report := func(phase string, first, left int64) {
		if progress != nil {
			progress(SettleProgress{Phase: phase, DoneBytes: uint64(max(0, first-left)), LeftBytes: uint64(left)})
		}
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	wait := func() error {
		select {
		case <-ctx.Done():
			return fmt.Errorf("settle: %w", ctx.Err())
		case <-s.ctx.Done():
			return fmt.Errorf("settle: the store is closing: %w", s.ctx.Err())
		case <-tick.C:
			return nil
		}
	}
	first := s.undestaged()
	for {
		left := s.undestaged()
		report("destage", first, left)
		if left == 0 && s.allDown() {
			break
		}
		s.destager.kick()
		if err := wait(); err != nil {
			return err
		}
	}
	first = int64(s.heldUnused())
	s.worker.kick()
	for !s.worker.idle.Load() {
		report("reclaim", first, int64(s.heldUnused()))
		if err := wait(); err != nil {
			return err
		}
	}
	return s.log.Sync(ctx)
}

// allDown reports whether no layer holds anything, tombstones included.
func (s *Store) allDown() bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, n := range s.nodes {
		if n.abandonedLocked() {
			continue
		}
		if !n.layer.Empty() || n.flags&(nodeClosed|nodeResolved) == nodeClosed {
			return false
		}
	}
	return true
}
