package control

import (
	"errors"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

func TestLimitsSurviveARestartAndARename(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, stop := start(t, cfg, engine)
	newVolume(t, c, "web1")
	newVolume(t, c, "gone")
	iops, rate, burst := uint64(500), uint64(100e6), 2.5
	if _, err := c.SetLimits(t.Context(), "web1", LimitsChange{WriteIOPS: &iops, BurstSeconds: &burst}); err != nil {
		t.Fatal(err)
	}
	v, err := c.SetLimits(t.Context(), "web1", LimitsChange{ReadBytes: &rate}) // the others stay
	want := blockstore.VolumeLimits{WriteIOPS: 500, ReadBytes: 100e6, Burst: 2500 * time.Millisecond}
	if err != nil || v.Limits != want {
		t.Fatalf("limits %+v, %v; want %+v", v.Limits, err, want)
	}
	if _, err := c.SetLimits(t.Context(), "gone", LimitsChange{WriteIOPS: &iops}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RenameVolume(t.Context(), "web1", "web2"); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteVolume(t.Context(), "gone"); err != nil {
		t.Fatal(err)
	}
	stop()
	for _, v := range engine.volumes {
		v.info.Limits = blockstore.VolumeLimits{} // the engine forgets them
	}
	c, stop = start(t, cfg, engine)
	if v, err := c.Volume("web2"); err != nil || v.Limits != want {
		t.Errorf("after a restart: %+v, %v", v.Limits, err)
	}
	if v, err := c.ClearLimits(t.Context(), "web2"); err != nil || !v.Limits.Unlimited() {
		t.Errorf("cleared: %+v, %v", v.Limits, err)
	}
	stop()
	c, _ = start(t, cfg, engine)
	if v, err := c.Volume("web2"); err != nil || !v.Limits.Unlimited() {
		t.Errorf("cleared, after a restart: %+v, %v", v.Limits, err)
	}
}

func TestLimitsThatMakeNoSense(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	c, _ := start(t, cfg, engine)
	newVolume(t, c, "v")
	iops := uint64(500)
	if _, err := c.SetLimits(t.Context(), "v", LimitsChange{WriteIOPS: &iops}); err != nil {
		t.Fatal(err)
	}
	tiny, huge := uint64(100), uint64(math.MaxUint64)
	for _, burst := range []float64{-1, 61, math.NaN(), math.Inf(1)} {
		if _, err := c.SetLimits(t.Context(), "v", LimitsChange{BurstSeconds: &burst}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("burst of %g s: %v", burst, err)
		}
	}
	for _, change := range []LimitsChange{{ReadBytes: &tiny}, {WriteIOPS: &huge}} {
		if _, err := c.SetLimits(t.Context(), "v", change); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", change, err)
		}
	}
	if _, err := c.SetLimits(t.Context(), "nope", LimitsChange{WriteIOPS: &iops}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no volume: %v", err)
	}
	if err := os.Mkdir(c.limitsPath()+".new", 0o700); err != nil { // the file cannot be replaced
		t.Fatal(err)
	}
	if _, err := c.ClearLimits(t.Context(), "v"); err == nil {
		t.Error("limits that cannot be kept are set")
	}
	if v, err := c.Volume("v"); err != nil || v.Limits.WriteIOPS != 500 {
		t.Errorf("what stays in force: %+v, %v", v.Limits, err)
	}
}

func TestGoldenLimits(t *testing.T) {
	file := limitsFile{}
	if err := readState("testdata/limits-1.json", limitsHeader, &file); err != nil {
		t.Fatal(err)
	}
	again := filepath.Join(t.TempDir(), "limits.json")
	if err := writeState(again, file); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(again)
	want, _ := os.ReadFile("testdata/limits-1.json")
	if string(got) != string(want) || len(file.Limits) != 2 {
		t.Errorf("read and written again:\n%s", got)
	}
}
