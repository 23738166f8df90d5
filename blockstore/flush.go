package blockstore

import "context"

// noteAsked notes, before its caller is told that it is done, a record that a flush has to make durable.
func (s *Store) noteAsked(seq uint64) {
	for {
		old := s.asked.Load()
		if seq <= old || s.asked.CompareAndSwap(old, seq) {
			return
		}
	}
}

// flush makes every write, trim, zeroing and operation durable that had returned, of all volumes. It does not wait for what the store itself has moved to the log's new end, whose older
// copy is durable: moves between a write and its flush would cost another sync.
func (s *Store) flush(ctx context.Context) error { return s.log.SyncThrough(ctx, s.asked.Load()) }

// flush is Store.flush for somebody who asked for it on a volume: where that has history, it is a point in it.
func (v *Volume) flush(ctx context.Context) error {
	last := v.lastWritten()
	err := v.s.flush(ctx)
	if err == nil {
		v.noteFlush(last)
	}
	return err
}
