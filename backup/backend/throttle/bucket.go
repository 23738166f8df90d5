package throttle

import (
	"context"
	"sync"
	"time"
)

// Bucket is a rate that its users keep within together. A nil Bucket bounds nothing. Its methods may be called at once.
type Bucket struct {
	perSecond float64

	mu struct {
		sync.Mutex
		next time.Time // when what was taken so far is paid for
	}
}

// NewBucket returns a bucket of that many bytes a second, at least 1.
func NewBucket(perSecond uint64) *Bucket { return &Bucket{perSecond: float64(max(1, perSecond))} }

// Piece is how many bytes to take at once, so that what goes over the wire is even and nobody waits for long: about a twentieth of a second's.
func (b *Bucket) Piece() int { return int(min(max(b.perSecond/20, 512), 1<<20)) }

// Take takes n bytes and waits until all that were taken before are paid for. It returns the error of a context that ends while it waits.
func (b *Bucket) Take(ctx context.Context, n int) error {
	if b == nil || n <= 0 {
		return nil
	}
	b.mu.Lock()
	now := time.Now()
	if b.mu.next.Before(now) {
		b.mu.next = now
	}
	wait := b.mu.next.Sub(now)
	b.mu.next = b.mu.next.Add(time.Duration(float64(n) / b.perSecond * float64(time.Second)))
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
