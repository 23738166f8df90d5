package throttle

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Bucket is a rate that its users keep within together. A nil Bucket bounds nothing. Its methods may be called at once.
type Bucket struct {
	perSecond atomic.Uint64 // 0: any

	mu struct {
		sync.Mutex
		next time.Time // when what was taken so far is paid for
	}
}

// NewBucket returns a bucket of that many bytes a second, at least 1.
func NewBucket(perSecond uint64) *Bucket {
	b := &Bucket{}
	b.SetRate(max(1, perSecond))
	return b
}

// SetRate changes the rate, in bytes a second; 0 is none. Who waits already goes on when the piece before is paid for at the old rate.
func (b *Bucket) SetRate(perSecond uint64) { b.perSecond.Store(perSecond) }

// Piece is how many bytes to take at once, so that what goes over the wire is even and nobody waits for long: about a twentieth of a second's.
func (b *Bucket) Piece() int {
	if rate := b.perSecond.Load(); rate > 0 {
		return int(min(max(rate/20, 512), 1<<20))
	}
	return 1 << 20
}

// Take takes n bytes and waits until all that were taken before are paid for. It returns the error of a context that ends while it waits.
func (b *Bucket) Take(ctx context.Context, n int) error {
	if b == nil || n <= 0 {
		return nil
	}
	rate := b.perSecond.Load()
	if rate == 0 {
		return nil
	}
	b.mu.Lock()
	now := time.Now()
	if b.mu.next.Before(now) {
		b.mu.next = now
	}
	wait := b.mu.next.Sub(now)
	b.mu.next = b.mu.next.Add(time.Duration(float64(n) / float64(rate) * float64(time.Second)))
	b.mu.Unlock()
	if wait <= 0 {
		return nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
