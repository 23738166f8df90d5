package blockstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// olderStore makes a store as a program made it that knew an older format of the metadata, and returns its options and what is in it.
func olderStore(t *testing.T) (Options, []byte) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.metaFormat = pebble.FormatMinSupported
	s := openTest(t, opts)
	d := createTest(t, s, "v", 8<<20)
	data := guestData(rand.New(rand.NewPCG(1, 4)), 8<<20)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	opts.metaFormat = 0
	return opts, data
}

// An open leaves the format of a store alone, a dry run too; an upgrade brings it up step by step, goes on where it was cut short, and is done once. The data is the same all the time.
func TestUpgradeIsExplicitAndResumable(t *testing.T) {
	opts, data := olderStore(t)
	format := func() uint64 {
		t.Helper()
		r, err := Upgrade(context.Background(), opts.FS, opts.Dir, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r.MetaFormat
	}
	read := func() {
		t.Helper()
		s := openTest(t, opts)
		expect(t, deviceTest(t, s, "v", ""), 0, data)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if got := format(); got != uint64(pebble.FormatMinSupported) {
		t.Fatalf("an open and a dry run brought the metadata to format %d", got)
	}
	ctx, cancel := context.WithCancel(context.Background())
	steps := 0
	r, err := Upgrade(ctx, opts.FS, opts.Dir, false, func(UpgradeStep) {
		if steps++; steps == 3 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || r == nil || !r.Steps[2].Done || r.Steps[3].Done {
		t.Fatalf("cut short: %+v, %v", r, err)
	}
	if got := format(); got != uint64(pebble.FormatMinSupported)+3 {
		t.Fatalf("after three steps the format is %d", got)
	}
	read()
	if r, err = Upgrade(context.Background(), opts.FS, opts.Dir, false, nil); err != nil || len(r.Steps) != int(metaFormat-pebble.FormatMinSupported)-3 {
		t.Fatalf("the rest: %+v, %v", r, err)
	}
	if got := format(); got != uint64(metaFormat) {
		t.Errorf("in the end the format is %d", got)
	}
	if r, err = Upgrade(context.Background(), opts.FS, opts.Dir, false, nil); err != nil || len(r.Steps) != 0 {
		t.Errorf("once more: %+v, %v", r, err)
	}
	read()
}

// A store that is open, that is not there, or that is newer than this program is left alone, and the reason is said.
func TestUpgradeRefuses(t *testing.T) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	s := openTest(t, opts)
	if _, err := Upgrade(context.Background(), opts.FS, opts.Dir, true, nil); !errors.Is(err, block.ErrLocked) {
		t.Errorf("an open store: %v", err)
	}
	if err := s.updateSuper(func(super *superblock) { super.Incompat |= 1 << 6; super.ROCompat |= 1 << 9; super.Compat |= 1 << 2 }); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := Upgrade(context.Background(), opts.FS, opts.Dir, false, nil)
	if !errors.Is(err, block.ErrVersion) || !strings.Contains(err.Error(), "ro-compat bit 9, incompat bit 6") {
		t.Errorf("a newer store: %v", err)
	}
	if _, err := Open(context.Background(), opts); !errors.Is(err, block.ErrVersion) || !strings.Contains(err.Error(), "newer") {
		t.Errorf("the open of a newer store: %v", err)
	}
	if _, err := Upgrade(context.Background(), opts.FS, t.TempDir(), true, nil); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no store: %v", err)
	}
}

// What each kind of feature means to a program that does not know it.
func TestFeaturesOfANewerProgram(t *testing.T) {
	for _, c := range []struct {
		super superblock
		says  string
	}{
		{superblock{Incompat: incompatParity}, ""},
		{superblock{Compat: 1 << 63}, ""},
		{superblock{ROCompat: roCompatHistory}, ""},
		{superblock{ROCompat: roCompatBitmaps}, ""},
		{superblock{ROCompat: 1 << 62}, "may be read but not written"},
		{superblock{Incompat: incompatParity | 1<<40}, "nothing of the store can be read right"},
	} {
		err := c.super.checkFeatures("super.0")
		if (err == nil) != (c.says == "") || err != nil && (!strings.Contains(err.Error(), c.says) || !errors.Is(err, block.ErrVersion)) {
			t.Errorf("%+v: %v", c.super.features(), err)
		}
	}
}
