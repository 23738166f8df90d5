package control

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

func TestGroups(t *testing.T) {
	engine, cfg := newFakeEngine(), testConfig(t)
	c, stop := start(t, cfg, engine)
	ctx := t.Context()
	for _, name := range []string{"a", "b", "d"} {
		if _, err := c.CreateVolume(ctx, VolumeSpec{Name: name, SizeBytes: 1 << 20}); err != nil {
			t.Fatal(err)
		}
	}
	for _, bad := range []struct {
		name    string
		volumes []string
		want    error
	}{
		{"g", nil, block.ErrInvalid}, {"g", []string{"a", "a"}, block.ErrInvalid}, {"g", []string{"x"}, block.ErrNotFound}, {"g@", []string{"a"}, block.ErrInvalid},
		{strings.Repeat("g", 65), []string{"a"}, block.ErrInvalid}, {"g", make([]string, blockstore.MaxSnapshotSet+1), block.ErrInvalid},
	} {
		if _, err := c.SetGroup(bad.name, bad.volumes); !errors.Is(err, bad.want) {
			t.Errorf("%q of %v: %v", bad.name, bad.volumes, err)
		}
	}
	if g, err := c.SetGroup("g", []string{"d", "a"}); err != nil || fmt.Sprint(g) != "{g [a d]}" {
		t.Fatalf("%v, %v", g, err)
	}
	if _, err := c.SetGroup("f", []string{"b"}); err != nil {
		t.Fatal(err)
	}
	if g, err := c.SetGroup("g", []string{"b", "a"}); err != nil || fmt.Sprint(g) != "{g [a b]}" {
		t.Fatalf("%v, %v", g, err)
	}
	if _, err := c.RenameVolume(ctx, "a", "z"); err != nil {
		t.Fatal(err)
	}
	stop()
	c, _ = start(t, cfg, engine)
	if got := fmt.Sprint(c.Groups()); got != "[{f [b]} {g [b z]}]" {
		t.Errorf("after a restart: %s", got)
	}
	taken, err := c.CreateGroupSnapshot(ctx, "g", "s")
	if err != nil || len(taken) != 2 || taken[0].Volume != "b" || taken[1].Volume != "z" || taken[1].Name != "s" || taken[0].Sequence != taken[1].Sequence {
		t.Errorf("%+v, %v", taken, err)
	}
	if _, err := c.CreateGroupSnapshot(ctx, "none", "s"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a group that is not there: %v", err)
	}
	if taken, err := c.CreateSnapshots(ctx, []blockstore.StateName{{Volume: "z", Snapshot: "x"}, {Volume: "d", Snapshot: "y"}}); err != nil || len(taken) != 2 || taken[1].Name != "y" {
		t.Errorf("%+v, %v", taken, err)
	}
	if _, err := c.CreateSnapshots(ctx, []blockstore.StateName{{Volume: "z", Snapshot: ".x"}}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a hidden name: %v", err)
	}
	if err := c.DeleteVolume(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateGroupSnapshot(ctx, "f", "s"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a group without volumes: %v", err)
	}
	if taken, err := c.CreateGroupSnapshot(ctx, "g", "s2"); err != nil || len(taken) != 1 {
		t.Errorf("a group whose volume is gone: %+v, %v", taken, err)
	}
	if err := errors.Join(c.DeleteGroup("g"), c.DeleteGroup("f")); err != nil || len(c.Groups()) != 0 {
		t.Errorf("%v, %v", c.Groups(), err)
	}
	if err := c.DeleteGroup("g"); !errors.Is(err, block.ErrNotFound) {
		t.Error(err)
	}
}

// What an older program wrote stays readable, and is written the same.
func TestGoldenGroups(t *testing.T) {
	file := groupsFile{}
	if err := readState("testdata/groups-1.json", groupsHeader, &file); err != nil || len(file.Groups) != 1 || file.Groups[0].Volumes[1].Volume != "log1" {
		t.Fatalf("%+v, %v", file, err)
	}
	path := filepath.Join(t.TempDir(), "groups.json")
	if err := writeState(path, file); err != nil {
		t.Fatal(err)
	}
	want, _ := os.ReadFile("testdata/groups-1.json")
	if got, err := os.ReadFile(path); err != nil || string(got) != string(want) {
		t.Errorf("%v: %s", err, got)
	}
}
