package blockstore

import (
	"fmt"
	"math/bits"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kinds of features, by what a program may do that does not know one.
const (
	featureCompat   = "compat"    // go on
	featureROCompat = "ro-compat" // read, but not write
	featureIncompat = "incompat"  // nothing
)

// Feature is a property of a store's format that a program must know, or may go on without, as its kind says. The bits are part of the disk format (docs/format/super.md).
type Feature struct {
	Kind string
	Bit  int
	Name string
	What string
}

// knownFeatures are the features that this program knows. A new one is added here and in docs/format/super.md, and is set in a superblock before the first byte that needs it is written.
var knownFeatures = []Feature{
	{featureIncompat, 0, "parity", "rows of segments may name parity sidecars"},
	{featureIncompat, 1, "disks", "log and segments may lie on several disks"},
	{featureIncompat, 2, "encrypted", "log and segments are encrypted"},
	{featureIncompat, 3, "snapshots", "snapshots may be renamed, protected, taken of several volumes at once, and marked as taken by a schedule"},
	{featureIncompat, 4, "streams", "the log may have writes of streams, whose payload begins at the border of a page"},
	{featureIncompat, 5, "parts", "maps may have pages that are kept in parts"},
	{featureROCompat, 0, "history", "volumes may have history, which the log is copied to before it is released"},
	{featureROCompat, 1, "bitmaps", "volumes may have bitmaps, which whoever changes their maps must keep up"},
	{featureROCompat, 2, "history-parity", "files of history may have parity sidecars, which whoever replaces or drops the files must remove"},
}

// addROCompat makes programs that do not know a feature leave the store as it is; see addFeature.
func (s *Store) addROCompat(bit uint64) error {
	return s.addFeature(bit, func(super *superblock) *uint64 { return &super.ROCompat })
}

// needFeature makes older programs refuse the store before it holds what they cannot read; see addFeature.
func (s *Store) needFeature(bit uint64) error {
	return s.addFeature(bit, func(super *superblock) *uint64 { return &super.Incompat })
}

// addFeature sets a feature in a mask of the superblock, durably, in both copies, before the first byte that needs it.
func (s *Store) addFeature(bit uint64, mask func(*superblock) *uint64) error {
	s.superMu.Lock()
	known := *mask(s.super)&bit != 0
	s.superMu.Unlock()
	if known {
		return nil
	}
	for range 2 {
		if err := s.updateSuper(func(super *superblock) { *mask(super) |= bit }); err != nil {
			return err
		}
	}
	return nil
}

// features lists what a superblock says of its store. What this program does not know has no name.
func (s *superblock) features() (all []Feature) {
	for _, m := range []struct {
		kind string
		mask uint64
	}{{featureCompat, s.Compat}, {featureROCompat, s.ROCompat}, {featureIncompat, s.Incompat}} {
		for mask := m.mask; mask != 0; mask &= mask - 1 {
			all = append(all, nameFeature(m.kind, bits.TrailingZeros64(mask)))
		}
	}
	return all
}

func nameFeature(kind string, bit int) Feature {
	for _, f := range knownFeatures {
		if f.Kind == kind && f.Bit == bit {
			return f
		}
	}
	return Feature{Kind: kind, Bit: bit}
}

// checkFeatures returns why this program must leave the store alone, if it must. Opening a store always writes, so an unknown ro-compat feature is a reason as well.
func (s *superblock) checkFeatures(source string) error {
	var unknown []string
	readable := true
	for _, f := range s.features() {
		if f.Name != "" || f.Kind == featureCompat {
			continue
		}
		unknown = append(unknown, fmt.Sprintf("%s bit %d", f.Kind, f.Bit))
		readable = readable && f.Kind == featureROCompat
	}
	if len(unknown) == 0 {
		return nil
	}
	why := "without knowing them nothing of the store can be read right"
	if readable {
		why = "without knowing them the store may be read but not written, and hvd writes to what it opens"
	}
	return fmt.Errorf("%s: the store uses features of a newer version that this program does not know (%s): %s: %w", source, strings.Join(unknown, ", "), why, block.ErrVersion)
}
