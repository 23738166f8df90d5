package control

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// Overcommit, disks and damage are alarms by the marks of the settings, with the next step, and end when what they are about does.
func TestConditionsAreAlarms(t *testing.T) {
	cfg, engine := testConfig(t), newFakeEngine()
	cfg.Alarms.Overcommit, cfg.Alarms.Damage, cfg.Alarms.DegradedAfter = 4, 2, time.Minute
	var later atomic.Int64 // ns
	began := time.Now()
	c, err := Open(t.Context(), Options{
		Config: cfg, OpenEngine: func(context.Context, config.Config, *slog.Logger) (Engine, error) { return engine, nil },
		Now: func() time.Time { return began.Add(time.Duration(later.Load())) },
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	set := func(state func(*blockstore.Stats, *blockstore.Redundancy, *[]blockstore.Damage)) {
		engine.mu.Lock()
		defer engine.mu.Unlock()
		engine.state = state
	}
	expect := func(when string, want ...string) {
		t.Helper()
		got := c.Status().Alarms
		if len(got) != len(want) {
			t.Fatalf("%s: alarms are %q, want %d", when, got, len(want))
		}
		for i, w := range want {
			for part := range strings.SplitSeq(w, "|") {
				if !strings.Contains(got[i], part) {
					t.Errorf("%s: %q has no %q", when, got[i], part)
				}
			}
		}
	}
	expect("at first")
	set(func(s *blockstore.Stats, _ *blockstore.Redundancy, d *[]blockstore.Damage) {
		s.StoredBytes, s.FreeBytes, s.LogicalBytes = 1<<30, 3<<30, 16<<30-1
		*d = []blockstore.Damage{{Segment: 1}, {Segment: 2, Mended: true}}
	})
	expect("below the marks")
	set(func(s *blockstore.Stats, r *blockstore.Redundancy, d *[]blockstore.Damage) {
		s.StoredBytes, s.FreeBytes, s.LogicalBytes = 1<<30, 3<<30, 16<<30
		*d = []blockstore.Damage{{Segment: 1}, {Segment: 2, Mended: true}, {Segment: 3}}
		r.Disks = []blockstore.DiskInfo{{Path: "/a", Log: "in sync", Segments: "in sync"}, {Path: "/b", Log: "failed", Segments: "stale"}}
	})
	damage := "2 segments|next: |store scrub status|store repair"
	overcommit := "promise 16.0 GiB, at least 4 times|next: add room"
	expect("at the marks, a disk just fell out", damage, overcommit)
	at := c.Alarms().Now()[0].At
	later.Store(int64(time.Minute))
	expect("a minute later", damage, "log of disk /b: failed|segments of disk /b: stale|next: |disk list", overcommit)
	if got := c.Alarms().Now()[0].At; got != at {
		t.Errorf("what is as it was is told again: %v, %v before", got, at)
	}
	set(nil)
	expect("when all is well")
	cfg.Alarms.Overcommit, cfg.Alarms.Damage = 0, 0
	set(func(s *blockstore.Stats, _ *blockstore.Redundancy, d *[]blockstore.Damage) {
		s.StoredBytes, s.LogicalBytes, s.Corruptions = 1, 1<<40, 9
		*d = []blockstore.Damage{{Segment: 1}}
	})
	expect("switched off")
}

// Every kind that can be raised has a text, a next step and a severity, and none of them when it is over.
func TestAlarmsSayWhatToDo(t *testing.T) {
	for _, kind := range AlarmKinds() {
		state := stateRaised
		if kind == AlarmSpace || kind == AlarmQuota || kind == AlarmUniqueQuota {
			state = blockstore.FillFull.String()
		}
		a := Alarm{Kind: kind, Volume: "v", State: state, UsedBytes: 5, LimitBytes: 6, Detail: "it is so"}
		if a.Next() == "" || a.String() == "" || a.Severity() == 0 || !strings.Contains(a.Line(), "; next: ") {
			t.Errorf("%s: %q", kind, a.Line())
		}
		a.State = blockstore.FillOK.String()
		if a.Next() != "" || a.Severity() != 0 {
			t.Errorf("%s, over: %q", kind, a.Line())
		}
	}
	if got := fmt.Sprint(Alarm{Kind: AlarmUniqueQuota, Volume: "v", State: "ok"}); got != "the quota on unique data of volume v was taken away" {
		t.Errorf("got %q", got)
	}
}
