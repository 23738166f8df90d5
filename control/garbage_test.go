package control

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Of garbage collection one job runs at a time; it says how it ended, it can be cancelled, and a pause ends it.
func TestGarbageJobs(t *testing.T) {
	engine := newFakeEngine()
	begun := make(chan struct{})
	engine.collecting = func(ctx context.Context) error { begun <- struct{}{}; <-ctx.Done(); return ctx.Err() }
	c, stop := start(t, testConfig(t), engine)
	ended := func() GarbageJob {
		for c.Garbage().Job.Running {
			runtime.Gosched()
		}
		return c.Garbage().Job
	}
	for run, end := range []func() (Garbage, error){c.CancelGarbage, c.PauseGarbage} {
		if g, err := c.CollectGarbage(); err != nil || !g.Job.Running || g.Job.Kind != "run" || g.Job.Run != uint64(run+1) {
			t.Fatalf("start: %+v, %v", g, err)
		}
		<-begun
		if _, err := c.AuditGarbage(); !errors.Is(err, block.ErrInUse) || !strings.Contains(err.Error(), "run") {
			t.Errorf("a second job: %v", err)
		}
		if j := c.Garbage().Job; j.Phase != "reclaim" || j.DoneBytes != 1 || j.LeftBytes != 3 {
			t.Errorf("on its way: %+v", j)
		}
		if _, err := end(); err != nil {
			t.Fatal(err)
		}
		if j := ended(); !strings.Contains(j.Error, "cancelled") {
			t.Errorf("after: %+v", j)
		}
	}
	if g := c.Garbage(); g.State != "paused" {
		t.Errorf("after a pause: %+v", g)
	}
	if g, err := c.ResumeGarbage(); err != nil || g.State != "idle" || g.Audit == nil || g.Audit.Chunks != 5 {
		t.Errorf("after it was resumed: %+v, %v", g, err)
	}
	if _, err := c.AuditGarbage(); err != nil {
		t.Fatal(err)
	}
	if j := ended(); j.Kind != "audit" || !strings.Contains(j.Error, "missing") {
		t.Errorf("an audit that finds something: %+v", j)
	}
	if _, err := c.CollectGarbage(); err != nil {
		t.Fatal(err)
	}
	<-begun
	stop() // ends it and waits
	if _, err := c.CollectGarbage(); !errors.Is(err, block.ErrClosed) {
		t.Errorf("start after close: %v", err)
	}
}
