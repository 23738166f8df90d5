package control

import (
	"errors"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

func TestDiff(t *testing.T) {
	engine := newFakeEngine()
	engine.changes = []blockstore.Change{{Off: 0, Len: 4096, Kind: blockstore.ChangeData}, {Off: 8192, Len: 512, Kind: blockstore.ChangeZero}, {Off: 16384, Len: 1024, Kind: blockstore.ChangeHole}}
	c, _ := start(t, testConfig(t), engine)
	if _, err := c.CreateVolume(t.Context(), VolumeSpec{Name: "v", SizeBytes: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateSnapshot(t.Context(), "v", "s"); err != nil {
		t.Fatal(err)
	}
	var got []blockstore.Change
	sum, err := c.Diff(t.Context(), "v@s", "v", func(c blockstore.Change) error { got = append(got, c); return nil })
	if want := (Differences{Ranges: 3, DataBytes: 4096, ZeroBytes: 512, HoleBytes: 1024}); err != nil || sum != want || sum.TotalBytes() != 5632 || !slices.Equal(got, engine.changes) {
		t.Errorf("%+v, %v, %v", sum, got, err)
	}
	gone := errors.New("gone")
	if sum, err := c.Diff(t.Context(), "v@s", "v", func(blockstore.Change) error { return gone }); !errors.Is(err, gone) || sum.Ranges != 1 {
		t.Errorf("told to who does not listen: %+v, %v", sum, err)
	}
	for _, bad := range [][2]string{{"v", "v"}, {"v@", "v"}, {"v@.export-x", "v"}, {"v@s@s", "v"}, {"", "v"}, {"v@s", ".import-x"}} {
		if _, err := c.Diff(t.Context(), bad[0], bad[1], nil); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := c.Diff(t.Context(), "v@nope", "v", nil); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no such snapshot: %v", err)
	}
}
