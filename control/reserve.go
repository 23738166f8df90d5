package control

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// reservations keep operations on one volume apart: each holds the names it changes. A short operation is waited for; a long one, such
// as an import, makes the others fail at once.
type reservations struct {
	mu struct {
		sync.Mutex
		held map[string]*reservation
	}
}

type reservation struct {
	task string
	long bool
	done chan struct{}
}

// hold reserves names for a short operation and returns the release. The error is ctx's, or wraps block.ErrInUse.
func (r *reservations) hold(ctx context.Context, task string, names ...string) (release func(), err error) {
	return r.acquire(ctx, &reservation{task: task, done: make(chan struct{})}, names)
}

// holdLong reserves names for an operation that may take hours.
func (r *reservations) holdLong(ctx context.Context, task string, names ...string) (release func(), err error) {
	return r.acquire(ctx, &reservation{task: task, long: true, done: make(chan struct{})}, names)
}

// acquire takes all names or none, so two operations never wait for each other.
func (r *reservations) acquire(ctx context.Context, mine *reservation, names []string) (func(), error) {
	for {
		other, name := r.try(mine, names)
		if other == nil {
			return func() { r.release(mine, names) }, nil
		}
		if other.long {
			return nil, fmt.Errorf("%s of volume %q is under way: %w", other.task, name, block.ErrInUse)
		}
		select {
		case <-other.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// try takes the names, or returns who has one of them.
func (r *reservations) try(mine *reservation, names []string) (*reservation, string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range names {
		if other := r.mu.held[name]; other != nil {
			return other, name
		}
	}
	if r.mu.held == nil {
		r.mu.held = map[string]*reservation{}
	}
	for _, name := range names {
		r.mu.held[name] = mine
	}
	return nil, ""
}

func (r *reservations) release(mine *reservation, names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		delete(r.mu.held, name)
	}
	close(mine.done)
}
