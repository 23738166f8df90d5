package blockstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// What is said to go is what goes then, of moments and of bytes, and until then nothing does.
func TestHistoryLoss(t *testing.T) {
	var ahead atomic.Int64
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.Now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	s := openTest(t, opts)
	ctx := context.Background()
	d := createTest(t, s, "a", 1<<20)
	if _, err := s.HistoryLoss(ctx, "a", HistoryPolicy{}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("of a volume without history: %v", err)
	}
	wide := HistoryPolicy{Window: 24 * time.Hour}
	if err := s.SetHistory(ctx, "a", wide); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(9, 9))
	for i := range 12 { // every 16 minutes for three hours
		writeTest(t, d, 0, guestData(rng, 64<<10))
		if err := d.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if i%4 == 0 {
			if _, err := s.MarkHistory(ctx, "a", fmt.Sprint("mark ", i)); err != nil {
				t.Fatal(err)
			}
		}
		seq, _ := s.log.Last()
		ahead.Add(int64(16 * time.Minute))
		waitFor(t, fmt.Sprintf("the root after write %d", i), func() bool {
			s.historian.kick()
			roots := s.historian.rootsOf(d.v)
			return roots[len(roots)-1].closed > seq
		})
	}
	count := func() (points, labelled uint64) {
		t.Helper()
		for _, only := range []bool{false, true} {
			all, err := s.HistoryPoints(ctx, "a", PointQuery{Limit: MaxPoints, Labelled: only})
			if err != nil {
				t.Fatal(err)
			}
			points, labelled = labelled, uint64(len(all))
		}
		return points, labelled
	}
	loss := func(p HistoryPolicy) HistoryLoss {
		t.Helper()
		l, err := s.HistoryLoss(ctx, "a", p)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	points, labelled := count()
	before, err := s.History("a")
	if err != nil {
		t.Fatal(err)
	}
	if l := loss(wide); l.Until != before.First || l.Points != 0 || l.Bytes != 0 || !l.Whole.IsZero() {
		t.Errorf("nothing is to change, and %+v goes", l)
	}
	all := loss(HistoryPolicy{})
	if all.FirstSeq != before.FirstSeq || all.First != before.First || !all.Until.After(opts.Now().Add(-time.Minute)) || all.Points != points || all.Labelled != labelled || labelled != 3 || all.Bytes < before.Bytes {
		t.Errorf("all of %d points and %d B is %+v", points, before.Bytes, all)
	}
	if l := loss(HistoryPolicy{Window: 24 * time.Hour, Every: time.Hour}); l.Whole.Sub(opts.Now().Add(-time.Hour)).Abs() > time.Minute || l.Points != 0 {
		t.Errorf("to be thinned is %+v", l)
	}
	narrow := HistoryPolicy{Window: time.Hour}
	want := loss(narrow)
	if want.Points == 0 || want.Points >= points || want.Labelled == 0 || !want.Until.After(before.First) || want.OverBudget {
		t.Errorf("of %d points %+v goes", points, want)
	}
	if now, err := s.History("a"); err != nil || now.FirstSeq != before.FirstSeq || now.Policy != before.Policy {
		t.Errorf("after it was asked for: %+v, %v", now, err)
	}
	at := s.historian.of(d.v.id).stream.Bytes()
	if err := s.SetHistory(ctx, "a", narrow); err != nil {
		t.Fatal(err)
	}
	left, leftLabelled := count()
	got, err := s.History("a")
	if err != nil || got.FirstSeq != want.UntilSeq || got.First != want.Until || points-left != want.Points || labelled-leftLabelled != want.Labelled {
		t.Errorf("%d points of %d are left, from %d on, %v; want %+v", left, points, got.FirstSeq, err, want)
	}
	if freed := at - got.Bytes; freed != want.Bytes {
		t.Errorf("%d B went, want %d", freed, want.Bytes)
	}
	p, err := s.OpenPoint(ctx, "a", Moment{At: opts.Now().Add(-20 * time.Minute)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.HistoryLoss(ctx, "a", HistoryPolicy{}); !errors.Is(err, block.ErrInUse) {
		t.Errorf("while a moment is open: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.HistoryLoss(ctx, "a", HistoryPolicy{Window: 1}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a policy that is none: %v", err)
	}
}

// Of flushes that would be thinned the last of each minute, or hour, stays; a write that was left counts where its stretch has no flush.
func TestHistoryLossThins(t *testing.T) {
	now := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	p := HistoryPolicy{Window: 24 * time.Hour, Every: time.Minute, Flushes: time.Hour, Minutes: 2 * time.Hour}
	const flush, kept, mark = history.Barrier, history.Kept, history.Mark
	for _, c := range []struct {
		name  string
		kinds []history.Kind
		ages  []time.Duration // from now
		want  uint64
	}{
		{"young flushes", []history.Kind{flush, flush, flush}, []time.Duration{50 * time.Minute, 50 * time.Minute, 50 * time.Minute}, 0},
		{"a minute", []history.Kind{flush, flush, flush}, []time.Duration{90*time.Minute + 3, 90*time.Minute + 2, 90*time.Minute + 1}, 2},
		{"two minutes", []history.Kind{flush, flush, flush}, []time.Duration{91*time.Minute + 3, 90*time.Minute + 2, 90*time.Minute + 1}, 1},
		{"an hour", []history.Kind{flush, flush, flush}, []time.Duration{5*time.Hour - 5*time.Minute, 5*time.Hour - 10*time.Minute, 5*time.Hour - 15*time.Minute}, 2},
		{"marks stay", []history.Kind{flush, mark, flush}, []time.Duration{90*time.Minute + 3, 90*time.Minute + 2, 90*time.Minute + 1}, 1},
		{"a flush for a write", []history.Kind{kept, kept, flush, kept}, []time.Duration{90*time.Minute + 4, 90*time.Minute + 3, 90*time.Minute + 2, 90*time.Minute + 1}, 3},
		{"writes", []history.Kind{kept, kept}, []time.Duration{90*time.Minute + 4, 90*time.Minute + 3}, 1},
	} {
		w := &lossWalk{HistoryLoss: new(HistoryLoss), policy: p, now: now}
		for i, kind := range c.kinds {
			w.record(&history.Record{Kind: kind, Seq: uint64(i + 1), Time: now.Add(-c.ages[i]).UnixNano()})
		}
		if w.Thinned != c.want || w.Points != 0 {
			t.Errorf("%s: %d go, want %d", c.name, w.Thinned, c.want)
		}
	}
}
