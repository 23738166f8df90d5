package blockstore

import (
	"context"
	"time"
)

// pacer keeps the work of the keeper within its budget: bytes of devices, read or written, a second. While guests are served it takes a part of that, and while the log is
// filling up it waits, as then destage needs the devices.
type pacer struct {
	s    *Store
	due  time.Time
	seen int64 // bytes that guests had moved at the last look
	busy time.Time
	look time.Time
}

const (
	// pacerShare is the part of the budget, as a divisor, that is used while guests are served.
	pacerShare = 4
	// pacerQuiet is how long guests count as served after a request.
	pacerQuiet = time.Second
	// pacerPatience bounds each wait for the log to empty, so that constant writes slow a scrub and never stop it.
	pacerPatience = time.Second
)

// wait books n bytes and returns when they may be moved.
func (p *pacer) wait(ctx context.Context, n int) error {
	now := time.Now()
	rate := float64(p.s.opts.KeepBytesPerSecond)
	if p.served(now) {
		rate /= pacerShare
	}
	if lag := now.Add(-50 * time.Millisecond); p.due.Before(lag) {
		p.due = lag
	}
	if pause := p.due.Sub(now); pause > 0 {
		sleep(ctx, pause)
	}
	p.due = p.due.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	for began := time.Now(); p.s.space.fill.Load() >= fillSoft && ctx.Err() == nil && time.Since(began) < pacerPatience; {
		sleep(ctx, 50*time.Millisecond)
	}
	return ctx.Err()
}

// served reports whether guests have moved bytes lately.
func (p *pacer) served(now time.Time) bool {
	if now.Sub(p.look) >= 100*time.Millisecond {
		p.look = now
		moved := int64(0)
		p.s.tree.RLock()
		for _, v := range p.s.volumes {
			moved += v.counters.readBytes.Load() + v.counters.writeBytes.Load()
		}
		p.s.tree.RUnlock()
		if moved != p.seen {
			p.seen, p.busy = moved, now
		}
	}
	return now.Sub(p.busy) < pacerQuiet
}
