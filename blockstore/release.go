package blockstore

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/block"

	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// releaseLog gives log files back that hold nothing the maps do not have. The order matters twice: positions are taken after all writes under way are published, and the
// log is synced up to that moment before anything is released, since a slot that was replaced by a record that is not yet durable is not counted any more.
func (s *Store) releaseLog(ctx context.Context) error {
	next := s.log.NextPos()
	s.drainOps()
	s.drainWriters()
	low := s.oldestLayerPos(next)
	if low.File() == s.watermark().File() {
		return nil
	}
	if err := s.log.Sync(ctx); err != nil {
		return err
	}
	m := s.beginMeta()
	// A slot may lie in the middle of a record, which replay knows by its beginning: replay starts where the file does.
	low = journal.Pos(low.File()) << 32
	m.c.Watermark = max(m.c.Watermark, low)
	low = m.c.Watermark
	if err := m.commit(); err != nil {
		return err
	}
	s.at(beforeRelease)
	if s.checkpoints.deltaDue() {
		s.checkpoints.kick()
	}
	if err := s.letLogGo(low); err != nil {
		return err
	}
	s.space.released()
	return nil
}

// letLogGo releases what of the log lies before low, as far as neither checkpoints nor history wait for it. It is the one place that does.
func (s *Store) letLogGo(low journal.Pos) error {
	return s.log.ReleaseBefore(s.historian.releasable(s.checkpoints.releasable(low)))
}

// drainOps returns when every control operation that was between append and apply when it was called has been applied: no row and no layer shows one before.
func (s *Store) drainOps() {
	s.ops.Lock()
	//lint:ignore SA2001 the lock is only waited for
	s.ops.Unlock()
}

func (s *Store) watermark() journal.Pos { return s.counted.Load().Watermark }

// oldestLayerPos returns the lowest position below next that a layer needs.
func (s *Store) oldestLayerPos(next journal.Pos) journal.Pos {
	s.tree.RLock()
	layers := make([]*node, 0, len(s.nodes))
	for _, n := range s.nodes {
		if n.flags&nodeResolved == 0 && !n.abandonedLocked() {
			layers = append(layers, n)
		}
	}
	s.tree.RUnlock()
	low := next
	for _, n := range layers {
		low = min(low, journal.Pos(n.layer.OldestPos()))
	}
	return low
}

// undestaged is how many bytes of data are in the log alone.
func (s *Store) undestaged() int64 {
	s.tree.RLock()
	defer s.tree.RUnlock()
	blocks := int64(0)
	for _, n := range s.nodes {
		blocks += n.layer.Blocks()
	}
	return blocks * block.Size
}
