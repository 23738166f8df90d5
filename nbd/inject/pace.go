package inject

import (
	"context"
	"sync"
	"time"
)

// pace lets bytes through at a rate: each request waits until those before it are paid for. Up to paceBurst of a rate that was not used is saved.
type pace struct {
	perSecond uint64 // bytes

	mu   sync.Mutex
	paid time.Time // when all that was let through is paid for
}

const (
	paceBurst = 100 * time.Millisecond
	maxDebt   = 24 * time.Hour // bounds what one absurd rate can make others wait for
)

// admit waits until n bytes may pass. The error is that of ctx.
func (p *pace) admit(ctx context.Context, n uint64) error {
	now := time.Now()
	p.mu.Lock()
	if least := now.Add(-paceBurst); p.paid.Before(least) {
		p.paid = least
	}
	wait := p.paid.Sub(now)
	p.paid = p.paid.Add(time.Duration(float64(n) / float64(p.perSecond) * float64(time.Second)))
	if most := now.Add(maxDebt); p.paid.After(most) {
		p.paid = most
	}
	p.mu.Unlock()
	if wait <= 0 {
		return ctx.Err()
	}
	return sleep(ctx, wait)
}
