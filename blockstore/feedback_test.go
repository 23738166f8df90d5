package blockstore

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// feltStore is as much of a store as feedback looks at.
func feltStore(fill int64) *Store {
	s := &Store{}
	s.space = newSpaceGate(s)
	s.space.fill.Store(fill)
	s.destager = &destager{s: s}
	s.destager.feedback = feedback{s: s}
	return s
}

// feel lets so many requests of a length be felt in a group.
func (f *feedback) feel(group, n int, took time.Duration) {
	for range n {
		f.times[group].add(took)
	}
}

// TestDestageYieldsToGuestsThatFeelIt follows the share of destage's time: down while requests take long beside it, up again when they do not, up with the fill of the log whatever they take, and all of it
// for a settle.
func TestDestageYieldsToGuestsThatFeelIt(t *testing.T) {
	s := feltStore(0)
	f, now := &s.destager.feedback, time.Now()
	step := func(calm, beside time.Duration) float64 {
		f.feel(0, 100, calm)
		f.feel(1, 100, beside)
		now = now.Add(feedbackEvery)
		f.judge(now)
		return f.share
	}
	if share := step(100*time.Microsecond, 200*time.Microsecond); share != 1 {
		t.Errorf("requests of 0.2 ms: a share of %v", share)
	}
	for want := 0.5; want >= leastShare; want /= 2 {
		if share := step(100*time.Microsecond, 5*time.Millisecond); share != want {
			t.Fatalf("requests of 5 ms beside destage and 0.1 ms without: a share of %v, want %v", share, want)
		}
	}
	if share := step(100*time.Microsecond, 5*time.Millisecond); share != leastShare {
		t.Errorf("a share of %v, below the least", share)
	}
	if share := step(100*time.Microsecond, 300*time.Microsecond); share != leastShare+shareUp {
		t.Errorf("a share of %v when guests feel nothing any more", share)
	}
	for _, test := range []struct {
		fill int64
		want float64
	}{{fillDestage, f.share}, {(fillDestage + fillSoft) / 2, 0.5}, {fillSoft, 1}, {fillHard, 1}} {
		s.space.fill.Store(test.fill)
		if got := f.shareNow(); got < test.want-0.01 || got > test.want+0.01 {
			t.Errorf("fill %d: a share of %v, want %v", test.fill, got, test.want)
		}
	}
	s.space.fill.Store(0)
	s.destager.all.Add(1)
	if got := f.shareNow(); got != 1 {
		t.Errorf("a settle has a share of %v", got)
	}
	s.destager.all.Add(-1)

	// Where everything is slow, destage is not what is felt.
	f.share, f.calm = 1, 0
	if share := step(20*time.Millisecond, 20*time.Millisecond); share != 1 {
		t.Errorf("a slow machine: a share of %v", share)
	}
	// A slow request among a hundred is not yet many.
	f.feel(0, 100, 100*time.Microsecond)
	f.calm = 100 * time.Microsecond
	f.feel(1, 100, 100*time.Microsecond)
	f.feel(1, 1, time.Second)
	now = now.Add(feedbackEvery)
	if f.judge(now); f.share != 1 {
		t.Errorf("one slow request: a share of %v", f.share)
	}
}

// TestDestageRests: the rest before a pass makes the last one take up its share of the time, and ends at once for a settle. Time is the test's, or a busy machine would add to it.
func TestDestageRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := feltStore(0)
		f := &s.destager.feedback
		rest := func() time.Duration {
			f.ended = time.Now()
			f.began = f.ended.Add(-50 * time.Millisecond)
			f.judged = f.ended
			began := time.Now()
			f.start(context.Background())
			f.stop()
			return time.Since(began)
		}
		f.share = 1
		if took := rest(); took != 0 {
			t.Errorf("a rest of %v though nobody feels anything", took)
		}
		f.share = 0.25
		if took := rest(); took != 150*time.Millisecond {
			t.Errorf("a rest of %v after a pass of 50 ms, want 150 ms for a quarter of the time", took)
		}
		f.share = leastShare
		go func() {
			time.Sleep(30 * time.Millisecond)
			s.destager.all.Add(1)
		}()
		if took := rest(); took < 30*time.Millisecond || took > 50*time.Millisecond {
			t.Errorf("a rest of %v though somebody settles after 30 ms", took)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.destager.all.Add(-1)
		f.share, f.ended, f.began = leastShare, time.Now(), time.Now().Add(-time.Second)
		began := time.Now()
		if f.start(ctx); time.Since(began) > 0 {
			t.Error("a rest outlives its context")
		}
	})
}
