package control

import (
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Names of bitmaps are checked before the engine sees them, and volumes show theirs.
func TestBitmaps(t *testing.T) {
	c, _ := start(t, testConfig(t), newFakeEngine())
	ctx := t.Context()
	if _, err := c.CreateVolume(ctx, VolumeSpec{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []struct {
		volume, name string
		want         error
	}{
		{"v", "", block.ErrInvalid}, {"v", ".b", block.ErrInvalid}, {"v", "a@b", block.ErrInvalid}, {"v@s", "b", block.ErrInvalid}, {"none", "b", block.ErrNotFound},
	} {
		if _, err := c.AddBitmap(ctx, bad.volume, bad.name); !errors.Is(err, bad.want) {
			t.Errorf("bitmap %q of %q: %v, want %v", bad.name, bad.volume, err, bad.want)
		}
	}
	added, err := c.AddBitmap(ctx, "v", "b")
	if err != nil || added.Volume != "v" || added.Name != "b" || added.Sequence == 0 || added.GranuleBytes != 64<<10 {
		t.Fatalf("%+v, %v", added, err)
	}
	if cleared, err := c.ClearBitmap(ctx, "v", "b"); err != nil || cleared.Sequence <= added.Sequence {
		t.Errorf("%+v, %v", cleared, err)
	}
	if all, err := c.Bitmaps("v"); err != nil || len(all) != 1 || all[0].Name != "b" {
		t.Errorf("%+v, %v", all, err)
	}
	if v, err := c.Volume("v"); err != nil || len(v.Bitmaps) != 1 || v.Bitmaps[0] != "b" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := c.RemoveBitmap(ctx, "v", "b"); err != nil {
		t.Fatal(err)
	}
	if err := c.RemoveBitmap(ctx, "v", "b"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a second removal: %v", err)
	}
}
