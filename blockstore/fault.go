package blockstore

import (
	"context"
	"errors"
	"sync"
	"time"
)

// fault remembers since when a background task fails without a success in between. It is safe for concurrent use.
type fault struct {
	mu    sync.Mutex
	err   error // of the last attempt; nil when that went well
	since time.Time
}

// note records how an attempt ended.
func (f *fault) note(err error) {
	if errors.Is(err, context.Canceled) {
		return // the store closes; that says nothing about the task
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil && f.err == nil {
		f.since = time.Now()
	}
	f.err = err
}

// lasting returns the error of a task that has failed for at least d, counted from after on; nil while there is hope.
func (f *fault) lasting(d time.Duration, after time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		return nil
	}
	if f.since.After(after) {
		after = f.since
	}
	if time.Since(after) < d {
		return nil
	}
	return f.err
}
