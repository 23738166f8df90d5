package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// compactMeta packs the metadata as tightly as they can be, at the end of a cold settle: all rows into tables of the last level, compressed with zstd, nothing that is out of date, and no log that is kept for reuse.
// What is written later goes into tables of the usual kind, which are cheaper to make and to read.
func (s *Store) compactMeta(ctx context.Context) error {
	s.dense.Store(true)
	defer s.dense.Store(false)
	err := s.touchTables()
	if err == nil {
		err = s.db.Compact(ctx, []byte{0}, []byte{0xff}, true)
	}
	for range 2 { // the first takes a log that was kept, as long as it was, for the next one
		if err == nil {
			err = s.trimLogs()
		}
	}
	if err != nil {
		return fmt.Errorf("compact the metadata: %w", err)
	}
	return nil
}

// trimLogs has the logs so far become tables, and cuts them.
func (s *Store) trimLogs() error {
	newest := s.logs.newestName()
	if err := s.db.Flush(); err != nil {
		return err
	}
	return s.logs.trim(newest)
}

// touchTables writes one row of each table of the last level again, as it is: a compaction leaves alone what nothing lies above.
func (s *Store) touchTables() error {
	levels, err := s.db.SSTables()
	if err != nil {
		return err
	}
	s.meta.Lock()
	defer s.meta.Unlock()
	b := s.db.NewBatch()
	defer b.Close()
	for _, table := range levels[len(levels)-1] {
		key := table.Smallest.UserKey
		value, done, err := s.db.Get(key)
		if errors.Is(err, pebble.ErrNotFound) {
			continue // deleted, by something that lies above
		}
		if err != nil {
			return err
		}
		err = b.Set(key, value, nil)
		if err := errors.Join(err, done.Close()); err != nil {
			return err
		}
	}
	return b.Commit(pebble.NoSync) // it says nothing new
}
