package blockstore

import (
	"context"
	"sync/atomic"
	"time"
)

// worker does what is due in the background beside destage: the subtrees that were cut off, the nodes that were deleted, the segments that are mostly dead, and the rows
// of what changed.
type worker struct {
	s    *Store
	wake chan struct{}
	jobs atomic.Bool // there may be job rows
	idle atomic.Bool // nothing was left to do at the end of the last round
}

const workerTick = time.Second

func newWorker(s *Store) *worker {
	w := &worker{s: s, wake: make(chan struct{}, 1)}
	w.jobs.Store(true) // an earlier run may have left some
	return w
}

func (w *worker) kick() {
	w.idle.Store(false)
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// noteJob says that a batch holds a job row. Store.meta is held.
func (w *worker) noteJob() { w.jobs.Store(true) }

// run works until ctx ends.
func (w *worker) run(ctx context.Context) {
	tick := time.NewTicker(workerTick)
	defer tick.Stop()
	for {
		w.s.report("read free space", w.s.space.checkDisk())
		for ctx.Err() == nil {
			more, err := w.round(ctx)
			w.s.report("background work", err)
			if err != nil || !more {
				w.idle.Store(err == nil)
				break
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-tick.C:
		}
	}
}

// round does a bounded piece of everything that is due and reports whether more is.
func (w *worker) round(ctx context.Context) (more bool, err error) {
	if err := w.s.flushTree(); err != nil {
		return false, err
	}
	for _, step := range []func(context.Context) (bool, error){w.s.stepJobs, w.s.stepPurge, w.s.stepReclaim} {
		did, err := step(ctx)
		if err != nil {
			return false, err
		}
		more = more || did
	}
	return more, nil
}
