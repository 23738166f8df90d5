package blockstore

import (
	"context"
	"time"
)

// gcBudget keeps garbage collection within its budget of bytes and requests of devices, read or written, a second. While guests are served it takes a part of that, also
// when somebody settles or collects: at the whole of it their slowest requests took twice as long (docs/benchmarks.md). When nobody is served then, it takes what it can get, and when space is short it waits for nothing: then a guest waits for it.
type gcBudget struct {
	pacer
	due time.Time
}

// gcSlack is how much of the budget may be unused and be used later.
const gcSlack = 50 * time.Millisecond

// requestBytes is what a device is taken to move with one request at most.
const requestBytes = 256 << 10

// book takes n bytes, moved with so many requests, from the budget.
func (b *gcBudget) book(n, requests int) {
	now := time.Now()
	if lag := now.Add(-gcSlack); b.due.Before(lag) {
		b.due = lag
	}
	s, share := b.s, 1.0
	served := b.served(now)
	switch {
	case SpaceState(s.space.state.Load()) == SpaceFull, s.thorough.Load() > 0 && !served:
		return
	case served:
		share = pacerShare
	}
	seconds := max(float64(n)/float64(s.opts.GCBytesPerSecond), float64(requests)/float64(s.opts.GCRequestsPerSecond)) * share
	b.due = b.due.Add(time.Duration(seconds * float64(time.Second)))
}

// pause is how long the budget asks to do nothing.
func (b *gcBudget) pause() time.Duration {
	if SpaceState(b.s.space.state.Load()) == SpaceFull {
		return 0
	}
	return max(0, time.Until(b.due))
}

// wait books n bytes and returns when they may be moved.
func (b *gcBudget) wait(ctx context.Context, n int) error {
	b.book(n, (n+requestBytes-1)/requestBytes)
	if pause := b.pause(); pause > 0 {
		sleep(ctx, pause)
	}
	return ctx.Err()
}
