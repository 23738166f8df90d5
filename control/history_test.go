package control

import (
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// While a moment is restored, its volume can be worked with: schedules of all volumes would else wait for the copy. The new name is taken, and what fails leaves nothing.
func TestRestoreMomentHoldsNoVolume(t *testing.T) {
	engine := newFakeEngine()
	c, _ := start(t, testConfig(t), engine)
	newVolume(t, c, "v")
	ctx := t.Context()
	engine.restoring = func(string) error {
		if _, err := c.CreateSnapshot(ctx, "v", "meanwhile"); err != nil {
			t.Errorf("a snapshot of a volume of which a moment is restored: %v", err)
		}
		if _, err := c.CreateVolume(ctx, VolumeSpec{Name: "w", SizeBytes: 1 << 20}); !errors.Is(err, block.ErrInUse) {
			t.Errorf("make a volume under the name of one that is restored: %v", err)
		}
		return nil
	}
	got, err := c.RestoreMoment(ctx, "v", "7", "w", true)
	if err != nil || got.Volume != "w" || got.Seq != 7 || got.Attachment == nil {
		t.Fatalf("%+v, %v", got, err)
	}
	if _, err := c.RestoreMoment(ctx, "v", "7", "w", false); !errors.Is(err, block.ErrExists) {
		t.Errorf("over a volume that is there: %v", err)
	}
	failed := errors.New("fake: the disk is full")
	engine.restoring = func(string) error { return failed }
	if _, err := c.RestoreMoment(ctx, "v", "7", "x", false); !errors.Is(err, failed) {
		t.Errorf("a restore that fails: %v", err)
	}
	if all := engine.Volumes(); len(all) != 2 {
		t.Errorf("%d volumes are there, want v and w", len(all))
	}
}

// A mark is called what a user who looks for it would say, whatever spaces stand around it.
func TestMarkHistoryLabel(t *testing.T) {
	engine := newFakeEngine()
	engine.restoring = func(string) error { return nil }
	c, _ := start(t, testConfig(t), engine)
	newVolume(t, c, "v")
	if p, err := c.MarkHistory(t.Context(), "v", " before the update\n"); err != nil || p.Label != "before the update" {
		t.Errorf("%+v, %v", p, err)
	}
	for _, bad := range []string{"", " ", "now", "17", "5m ago", "2026-11-29T06:00:00Z"} {
		if _, err := c.MarkHistory(t.Context(), "v", bad); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
