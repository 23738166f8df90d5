package control

import (
	"context"
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// One survey runs at a time; it can be ended, by its caller and by a shutdown, and its result stays until the next one.
func TestSurveysRunOneAtATime(t *testing.T) {
	engine := newFakeEngine()
	begun := make(chan struct{})
	engine.explaining = func(ctx context.Context) error {
		begun <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	}
	c, stop := start(t, testConfig(t), engine)
	newVolume(t, c, "v")
	if _, err := c.StartExplain("w"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a volume that is not there: %v", err)
	}
	x, err := c.StartExplain("v")
	if err != nil || !x.Running || x.Run != 1 {
		t.Fatalf("%+v, %v", x, err)
	}
	<-begun
	if _, err := c.StartExplain(""); !errors.Is(err, block.ErrInUse) {
		t.Errorf("a second survey: %v", err)
	}
	if x := c.Explaining(); x.DoneBytes != 1 || x.TotalBytes != 2 || x.Volume != "v" {
		t.Errorf("progress %+v", x)
	}
	c.CancelExplain()
	c.waitExplained(t)
	if x := c.Explaining(); !x.Cancelled || x.Explanation != nil || x.Error != "" {
		t.Errorf("after the cancel: %+v", x)
	}
	engine.explaining = nil
	if x, err = c.StartExplain(""); err != nil || x.Run != 2 {
		t.Fatalf("%+v, %v", x, err)
	}
	c.waitExplained(t)
	if x := c.Explaining(); x.Explanation == nil || x.Cancelled {
		t.Errorf("the second one: %+v", x)
	}
	engine.explaining = func(ctx context.Context) error { begun <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	if _, err := c.StartExplain(""); err != nil {
		t.Fatal(err)
	}
	<-begun
	stop() // a shutdown does not wait for a survey's end
}

// waitExplained returns when no survey runs.
func (c *Control) waitExplained(t *testing.T) {
	t.Helper()
	for c.Explaining().Running {
		if t.Context().Err() != nil {
			t.Fatal("the survey does not end")
		}
	}
}
