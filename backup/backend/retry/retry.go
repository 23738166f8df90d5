package retry

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
)

// Usual values of a Policy: together they take about half a minute.
const (
	DefaultTries = 8
	DefaultPause = 250 * time.Millisecond
)

// maxPause bounds the pause between two tries.
const maxPause = 20 * time.Second

// Policy says how often to ask, and what for. All fields but Again are needed.
type Policy struct {
	Tries     int               // of each request
	Pause     time.Duration     // before the second try, doubled for each other one, at most 20 s
	Temporary func(error) bool  // whether another try may help
	Known     func(error) error // gives what is final the names that callers test for

	Again func(try int, err error) // is told before the pause after each try that failed, with its number, from 1, out of any goroutine; nil: nobody is
}

// Do calls do until it succeeds, fails for good, or has failed too often, which is backend.ErrUnreachable beside the last reason. what is for the error's text. When ctx has ended its error is returned alone.
func (p Policy) Do(ctx context.Context, what string, do func() error) error {
	for n := 1; ; n++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := do()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if !p.Temporary(err) {
			return fmt.Errorf("%s: %w", what, p.Known(err))
		}
		if n >= p.Tries {
			return fmt.Errorf("%s: %w: given up after %d tries: %w", what, backend.ErrUnreachable, n, err)
		}
		if p.Again != nil {
			p.Again(n, fmt.Errorf("%s: %w", what, err))
		}
		if err := p.Wait(ctx, n); err != nil {
			return err
		}
	}
}

// Wait is the pause after the try of that number, from 1: twice as long each time, and a random half of that, so that many who were refused together do not come back together.
func (p Policy) Wait(ctx context.Context, n int) error {
	d := min(p.Pause<<min(n-1, 16), maxPause)
	timer := time.NewTimer(d/2 + rand.N(d/2+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
