package blockstore

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// VolumeLimits bound what the users of a volume may do in a second; 0 is no limit. They hold for the volume itself, not for its snapshots: to read these is the business of
// backups, which must neither take from the guest's part nor wait for it. Trims and zeroes count as one write each, of no bytes; flushes do not count.
type VolumeLimits struct {
	ReadIOPS, WriteIOPS   uint64 // requests a second
	ReadBytes, WriteBytes uint64 // bytes a second
	// Burst is how much of an idle time counts: after it, what the limits allow in so long may be done at once. 0: 100 ms; at most MaxBurst.
	Burst time.Duration
}

const (
	defaultBurst = 100 * time.Millisecond
	// MaxBurst is the longest VolumeLimits.Burst.
	MaxBurst = time.Minute
	// maxLimit bounds each limit: no machine does more.
	maxLimit = 1 << 50
	// minBytes bounds limits of bytes from below: with less, one request could take hours.
	minBytes = 4 << 10
	// farOff bounds debts, in ns.
	farOff = 1 << 62
)

// Unlimited reports whether nothing is limited.
func (l VolumeLimits) Unlimited() bool {
	return l.ReadIOPS|l.WriteIOPS|l.ReadBytes|l.WriteBytes == 0
}

// Validate reports the first value that is out of bounds.
func (l VolumeLimits) Validate() error {
	if l.Burst < 0 || l.Burst > MaxBurst {
		return fmt.Errorf("burst of %v: want at most %v: %w", l.Burst, MaxBurst, block.ErrInvalid)
	}
	if most := max(l.ReadIOPS, l.WriteIOPS, l.ReadBytes, l.WriteBytes); most > maxLimit {
		return fmt.Errorf("limit of %d a second: want at most %d, or 0 for none: %w", most, uint64(maxLimit), block.ErrInvalid)
	}
	for _, n := range []uint64{l.ReadBytes, l.WriteBytes} {
		if n > 0 && n < minBytes {
			return fmt.Errorf("limit of %d bytes a second: want at least %d, or 0 for none: %w", n, minBytes, block.ErrInvalid)
		}
	}
	return nil
}

// SetVolumeLimits puts limits in force at once, for requests that wait already too. They end with the process: whoever sets them keeps them.
func (s *Store) SetVolumeLimits(name string, l VolumeLimits) error {
	err := l.Validate()
	var v *Volume
	if err == nil {
		v, err = s.lookupVolume(name)
	}
	if err != nil {
		return fmt.Errorf("limit volume %q: %w", name, err)
	}
	var next *limiter
	if !l.Unlimited() {
		next = newLimiter(l)
	}
	if old := v.limits.Swap(next); old != nil {
		close(old.replaced)
	}
	return nil
}

// limiter holds a volume to its limits. Nobody waits under a lock, and a volume without limits pays one atomic load.
type limiter struct {
	limits      VolumeLimits
	began       time.Time
	read, write flow
	replaced    chan struct{} // closed when other limits, or none, have taken its place
}

func newLimiter(l VolumeLimits) *limiter {
	burst := l.Burst
	if burst == 0 {
		burst = defaultBurst
	}
	return &limiter{
		limits: l, began: time.Now(), replaced: make(chan struct{}),
		read:  flow{ops: newBucket(l.ReadIOPS, burst), bytes: newBucket(l.ReadBytes, burst)},
		write: flow{ops: newBucket(l.WriteIOPS, burst), bytes: newBucket(l.WriteBytes, burst)},
	}
}

// now is the limiter's clock, in ns.
func (l *limiter) now() int64 { return int64(time.Since(l.began)) }

// flow is one direction.
type flow struct{ ops, bytes bucket }

// ready reports whether what was taken so far is paid, and what is above the burst of a request of so many bytes.
func (f *flow) ready(now, bytes int64) bool { return f.wait(now, bytes) <= 0 }

// wait returns how long, in ns, a request of so many bytes would have to wait that took its turn now. It books nothing.
func (f *flow) wait(now, bytes int64) int64 {
	return max(f.ops.due.Load(), max(f.bytes.due.Load(), now-f.bytes.burst)+f.bytes.excess(bytes)) - now
}

// take books a number of requests and their bytes, and returns how long, in ns, what was taken before is still to be paid: the request may go on then.
func (f *flow) take(now int64, ops int, bytes int64) (wait int64) {
	return max(f.ops.take(now, int64(ops)), f.bytes.take(now, bytes)+f.bytes.excess(bytes))
}

// bucket is a token bucket that can go into debt, kept as the moment at which the debt will be paid (the virtual scheduling algorithm of ITU-T I.371). So a request of any
// size passes once what was before it is paid, and requests that wait go on in the order in which they came.
type bucket struct {
	unit  float64 // ns that one request or byte is worth; 0: no limit
	burst int64   // ns
	due   atomic.Int64
}

func newBucket(perSecond uint64, burst time.Duration) bucket {
	if perSecond == 0 {
		return bucket{}
	}
	return bucket{unit: float64(time.Second) / float64(perSecond), burst: int64(burst)}
}

// take books n, negative to give back, and returns the ns until it may go on.
func (b *bucket) take(now, n int64) (wait int64) {
	if b.unit == 0 {
		return 0
	}
	for {
		due := b.due.Load()
		start := max(due, now-b.burst)
		if b.due.CompareAndSwap(due, int64(min(float64(start)+float64(n)*b.unit, farOff))) {
			return start - now
		}
	}
}

// excess is how long, in ns, a request of n bytes has to earn before it goes on: what of it no burst allows. The rest is a debt that the next one pays.
func (b *bucket) excess(n int64) int64 {
	return int64(max(0, min(float64(n)*b.unit, farOff)-float64(b.burst)))
}

// flowOf returns the flow of one direction.
func (l *limiter) flowOf(write bool) *flow {
	if write {
		return &l.write
	}
	return &l.read
}

// mayPass reports whether a request of so many bytes may go on at once. Whoever goes on calls passed.
func (v *Volume) mayPass(write bool, bytes int64) bool {
	l := v.limits.Load()
	return l == nil || l.flowOf(write).ready(l.now(), bytes)
}

// passed books requests that went on at once.
func (v *Volume) passed(write bool, ops int, bytes int64) {
	if l := v.limits.Load(); l != nil {
		l.flowOf(write).take(l.now(), ops, bytes)
	}
}

// pass waits until requests may go on, and books them. The caller holds no lock.
func (v *Volume) pass(ctx context.Context, write bool, ops int, bytes int64) error {
	for {
		l := v.limits.Load()
		if l == nil {
			return nil
		}
		f := l.flowOf(write)
		wait := f.take(l.now(), ops, bytes)
		if wait <= 0 {
			return nil
		}
		again, err := l.sleep(ctx, v.s.ctx, time.Duration(wait))
		if err != nil {
			f.take(l.now(), -ops, -bytes)
			return err
		}
		if !again {
			return nil
		}
	}
}

// awaitRate waits until a request of so many bytes may go on, and books nothing: others may be faster.
func (v *Volume) awaitRate(ctx context.Context, write bool, bytes int64) error {
	for {
		l := v.limits.Load()
		if l == nil {
			return nil
		}
		wait := l.flowOf(write).wait(l.now(), bytes)
		if wait <= 0 {
			return nil
		}
		if _, err := l.sleep(ctx, v.s.ctx, time.Duration(wait)); err != nil {
			return err
		}
	}
}

// sleep waits for d, or reports that other limits are in force by now.
func (l *limiter) sleep(ctx, store context.Context, d time.Duration) (replaced bool, err error) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, nil
	case <-l.replaced:
		return true, nil
	case <-store.Done():
		return false, block.ErrClosed
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// limitsNow returns the limits in force.
func (v *Volume) limitsNow() VolumeLimits {
	if l := v.limits.Load(); l != nil {
		return l.limits
	}
	return VolumeLimits{}
}
