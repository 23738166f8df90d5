package blockstore

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// suspicion remembers that a block of the metadata failed its checksum. Pebble opens such a database all the same: only the reads that need the block fail. A file in the
// data directory tells the next start to make the metadata anew.
type suspicion struct{ seen, noted atomic.Bool }

// metaSuspect is that file. It is empty.
const metaSuspect = "meta.suspect"

// noteSuspicion makes a suspicion durable.
func (s *Store) noteSuspicion() error {
	if !s.suspect.seen.Load() || s.suspect.noted.Load() {
		return nil
	}
	if err := writeFileAtomic(s.fs, s.opts.Dir, s.path(metaSuspect), nil); err != nil {
		return err
	}
	s.suspect.noted.Store(true)
	return nil
}

// suspected returns why metadata that was opened shall be made anew, or nil.
func (s *Store) suspected() error {
	_, err := s.fs.Stat(s.path(metaSuspect))
	if errors.Is(err, os.ErrNotExist) && s.logs.missing && s.super.Flags&flagInitialized != 0 {
		return &block.CorruptError{Source: s.logs.path, Want: "the list of the metadata's logs", Got: "no file"}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return &block.CorruptError{Source: s.path(metaDir), Want: "metadata that passes its checksums", Got: "a block that did not, in an earlier run"}
}

// forgetSuspicion is called when new metadata is in its place.
func (s *Store) forgetSuspicion() error {
	err := s.fs.Remove(s.path(metaSuspect))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = syncDir(s.fs, s.opts.Dir)
	}
	return err
}

// onDamage is told by Pebble of a block that failed its checksum.
func (s *Store) onDamage(i pebble.DataCorruptionInfo) {
	s.suspect.seen.Store(true)
	if f := s.opts.Events.Corruption; f != nil {
		f(fmt.Errorf("metadata, which the next start makes anew: %w: %v", block.ErrCorrupt, i))
	}
}
