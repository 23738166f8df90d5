package blockstore

import (
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// metaFormat is the format of Pebble in which this program makes metadata. It is named, and not "the newest", so that another version of the library changes no store by itself. An open never changes the format of what
// is there: a store that an older program made stays readable by that, until Upgrade is asked for.
const metaFormat = pebble.FormatValueSeparation

// UpgradeStep is one step of an upgrade. Each step is durable by itself, so an upgrade that was cut short goes on where it was.
type UpgradeStep struct {
	What     string
	From, To uint64 // versions
	Done     bool   // by this call
}

// UpgradeReport says what a store's format is, and what an upgrade does about it.
type UpgradeReport struct {
	Dir        string
	Version    uint64 // of the superblock
	Features   []Feature
	MetaFormat uint64 // of Pebble, as it was found
	MetaNewest uint64 // that this program makes
	Steps      []UpgradeStep
}

// Upgrade brings a store that no daemon has open to the newest format that this program makes, step by step; afterwards an older program may refuse it. With dryRun nothing is changed and the steps are only named. It
// returns ErrLocked when a daemon has the store, ErrNotFound when there is none, and ErrVersion with the reason when the store is of a newer format than this program knows. progress, if not nil, is told each step.
func Upgrade(ctx context.Context, fs vfs.FS, dir string, dryRun bool, progress func(UpgradeStep)) (*UpgradeReport, error) {
	r, err := upgrade(ctx, fs, dir, dryRun, progress)
	if err != nil {
		return r, fmt.Errorf("upgrade store %s: %w", dir, err)
	}
	return r, nil
}

func upgrade(ctx context.Context, fs vfs.FS, dir string, dryRun bool, progress func(UpgradeStep)) (*UpgradeReport, error) {
	if _, err := readSuper(fs, dir); err != nil {
		return nil, err // before there is a lock where no store is
	}
	s := newStore(Options{Dir: dir, FS: fs, MemoryBytes: 64 << 20}.withDefaults())
	defer s.abandon()
	var err error
	if s.lock, err = fs.Lock(s.path("lock")); err != nil {
		return nil, fmt.Errorf("%w (%v); stop hvd first", block.ErrLocked, err)
	}
	super, err := readSuper(fs, dir) // nobody changes it any more
	if err != nil {
		return nil, err
	}
	s.super = super
	r := &UpgradeReport{Dir: dir, Version: superVersion, Features: super.features(), MetaNewest: uint64(metaFormat)}
	now, err := s.metaFormatNow()
	if err != nil {
		return nil, err
	}
	r.MetaFormat = uint64(now)
	for v := now; v != 0 && v < metaFormat; v++ {
		r.Steps = append(r.Steps, UpgradeStep{What: "format of the metadata", From: uint64(v), To: uint64(v) + 1})
	}
	if dryRun || len(r.Steps) == 0 {
		return r, nil
	}
	if err := s.tryRows(); err != nil {
		return r, fmt.Errorf("the metadata is not whole; start hvd once, which makes it anew: %w", err)
	}
	for i := range r.Steps {
		if err := ctx.Err(); err != nil {
			return r, fmt.Errorf("%d of %d steps are done, the next call goes on: %w", i, len(r.Steps), err)
		}
		step := &r.Steps[i]
		if err := s.db.RatchetFormatMajorVersion(pebble.FormatMajorVersion(step.To)); err != nil {
			return r, fmt.Errorf("bring the metadata to format %d: %w", step.To, err)
		}
		step.Done = true
		if progress != nil {
			progress(*step)
		}
	}
	return r, nil
}

// metaFormatNow reads in which format the metadata is; 0 if there is none.
func (s *Store) metaFormatNow() (pebble.FormatMajorVersion, error) {
	path := s.path(metaDir)
	if _, err := s.fs.Stat(path); err != nil {
		return 0, nil // whoever opens it says what is wrong
	}
	desc, err := pebble.Peek(path, s.fs)
	if err != nil {
		return 0, metaError(path, err)
	}
	if !desc.Exists {
		return 0, nil
	}
	return desc.FormatMajorVersion, nil
}
