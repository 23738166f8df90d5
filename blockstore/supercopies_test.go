package blockstore

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// A feature is known still when the newest copy of the superblock is damaged: the other one must not let programs in that cannot read the store.
func TestFeatureIsInBothCopies(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	if err := s.needFeature(incompatParts); err != nil {
		t.Fatal(err)
	}
	newest := superPath(s.fs, opts.Dir, s.super.Generation)
	if err := writeFileAtomic(s.fs, opts.Dir, newest, make([]byte, superSize)); err != nil {
		t.Fatal(err)
	}
	left, err := readSuper(s.fs, opts.Dir)
	if err != nil || left.Generation != s.super.Generation-1 || left.Incompat&incompatParts == 0 {
		t.Errorf("the copy that is left: %+v, %v", left, err)
	}
}
