package blockstore

import (
	"context"
	"math/bits"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// feedback holds destage back by what guests feel of it. Requests are timed, in two groups: those while a pass is under way and those while none is. As long as the first take much longer than the second,
// passes get shorter and destage rests between them; as soon as they do not, less. So what has time goes down in the pauses of guests, and what has none goes down as ever: the fuller the log, the
// less destage may rest, and not at all while somebody waits for a settle.
//
// The share of the time is changed as congestion control does it, up by a step and down by a factor (Chiu, Jain 1989), so it swings around what guests bear.
type feedback struct {
	s       *Store
	working atomic.Bool // a pass is under way
	times   [2]latencies

	// Of the destager's goroutine.
	share  float64   // of the time, 0 to 1
	judged time.Time // when the share was changed last
	began  time.Time // the last pass, and
	ended  time.Time
	calm   time.Duration // what requests took of late while destage rested; 0: not known
}

const (
	// feedbackEvery is how often the share is judged, from at least feedbackLeast requests in each group.
	feedbackEvery = 200 * time.Millisecond
	feedbackLeast = 16
	// feedbackSample is one in how many requests is timed, a power of two; by chance, since counters move on by whole batches.
	feedbackSample = 4
	// feelsFrom is what a slow request may take in any case, and feelsTimes how many times what it takes without destage: beyond both it is felt.
	feelsFrom  = 500 * time.Microsecond
	feelsTimes = 2
	// leastShare, shareUp and shareDown are the least share, the step up and the factor down.
	leastShare = 1.0 / 16
	shareUp    = 1.0 / 8
	shareDown  = 0.5
	// longestRest bounds each rest.
	longestRest = time.Second
)

// latencies counts requests by the time that they took: bucket 0 those under 1 µs, bucket i those of 2^(i-1) to 2^i µs.
type latencies [24]atomic.Uint32

func (l *latencies) add(d time.Duration) {
	l[min(bits.Len64(uint64(d/time.Microsecond)), len(l)-1)].Add(1)
}

// take returns how many requests there were since the last call, and what the slowest twentieth of them took at least, to a factor of two.
func (l *latencies) take() (n uint32, slow time.Duration) {
	var counts [len(l)]uint32
	for i := range l {
		counts[i] = l[i].Swap(0)
		n += counts[i]
	}
	above := uint32(0)
	for i := len(counts) - 1; i >= 0; i-- {
		if above += counts[i]; above > 0 && above*20 >= n {
			return n, time.Duration(1) << i / 2 * time.Microsecond
		}
	}
	return 0, 0
}

// begin starts the clock of a request, for one of several.
func (f *feedback) begin() (at time.Time) {
	if rand.Uint32()&(feedbackSample-1) == 0 {
		at = time.Now()
	}
	return at
}

// end stops it.
func (f *feedback) end(began time.Time) {
	if began.IsZero() {
		return
	}
	group := 0
	if f.working.Load() {
		group = 1
	}
	f.times[group].add(time.Since(began))
}

// judge changes the share if it is time.
func (f *feedback) judge(now time.Time) {
	if f.share == 0 {
		f.share = 1
	}
	if now.Sub(f.judged) < feedbackEvery {
		return
	}
	f.judged = now
	if n, slow := f.times[0].take(); n >= feedbackLeast {
		if f.calm == 0 {
			f.calm = slow
		}
		f.calm += (slow - f.calm) / 4
	}
	n, slow := f.times[1].take()
	if n >= feedbackLeast && slow > max(feelsFrom, feelsTimes*f.calm) {
		f.share = max(leastShare, f.share*shareDown)
		return
	}
	f.share = min(1, f.share+shareUp)
}

// shareNow is the share of the time that destage may use: what guests bear, or more if the log fills up, or all of it.
func (f *feedback) shareNow() float64 {
	if f.s.destager.all.Load() > 0 {
		return 1
	}
	urgent := float64(f.s.space.fill.Load()-fillDestage) / (fillSoft - fillDestage)
	return min(1, max(f.share, urgent))
}

// start begins a pass, after a rest that makes the last one take up no more than its share of the time. It returns the share. No lock is held.
func (f *feedback) start(ctx context.Context) (share float64) {
	f.judge(time.Now())
	took := f.ended.Sub(f.began)
	for share = f.shareNow(); share < 1 && ctx.Err() == nil; share = f.shareNow() {
		left := min(longestRest, time.Duration(float64(took)*(1/share-1))) - time.Since(f.ended)
		if left <= 0 {
			break
		}
		sleep(ctx, min(left, 20*time.Millisecond))
	}
	f.began = time.Now()
	f.working.Store(true)
	return share
}

// stop ends it.
func (f *feedback) stop() {
	f.ended = time.Now()
	f.working.Store(false)
}
