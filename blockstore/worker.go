package blockstore

import (
	"context"
	"errors"
	"sync/atomic"
	"time"
)

// worker does what is due in the background beside destage: the subtrees that were cut off, the nodes that were deleted, the segments that are mostly dead, and the rows
// of what changed.
type worker struct {
	s    *Store
	wake chan struct{}
	jobs atomic.Bool // there may be job rows

	asked  atomic.Uint64 // how often somebody said that there may be something to do
	idleAt atomic.Uint64 // what asked was before the last round that found nothing left
	fault  fault

	reclaiming time.Duration // that the last round spent on a segment; of the goroutine
}

const workerTick = time.Second

func newWorker(s *Store) *worker {
	w := &worker{s: s, wake: make(chan struct{}, 1)}
	w.jobs.Store(true) // an earlier run may have left some
	w.asked.Store(1)   // the first round has to look
	return w
}

// kick says that there may be something to do. The number it returns is for idleSince.
func (w *worker) kick() uint64 {
	asked := w.asked.Add(1)
	select {
	case w.wake <- struct{}{}:
	default:
	}
	return asked
}

// idleSince reports whether a round that began after that kick found nothing left to do.
func (w *worker) idleSince(kick uint64) bool { return w.idleAt.Load() >= kick }

// quiet reports whether nothing is known to be left to do.
func (w *worker) quiet() bool { return w.idleSince(w.asked.Load()) }

// noteJob says that a batch holds a job row. Store.meta is held.
func (w *worker) noteJob() { w.jobs.Store(true) }

// run works until ctx ends.
func (w *worker) run(ctx context.Context) {
	tick := time.NewTicker(workerTick)
	defer tick.Stop()
	for {
		w.s.report("read free space", w.s.space.checkDisk())
		for ctx.Err() == nil {
			asked := w.asked.Load()
			more, err := w.round(ctx)
			w.s.report("background work", err)
			w.fault.note(err)
			if err == nil && !more {
				w.idleAt.Store(asked)
			}
			if err != nil || !more {
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

// round does a bounded piece of everything that is due and reports whether more is. A step that fails keeps none of the others waiting.
func (w *worker) round(ctx context.Context) (more bool, err error) {
	if err := w.s.flushTree(); err != nil {
		return false, err
	}
	for _, step := range []func(context.Context) (bool, error){w.s.sealGivenUp, w.often(w.s.stepJobs), w.often(w.s.stepPurge), w.often(w.s.stepTouched), w.reclaim, w.s.stepDamaged} {
		did, stepErr := step(ctx)
		more, err = more || did, errors.Join(err, stepErr)
	}
	return more, err
}

// reclaim is a step that may move a whole segment.
func (w *worker) reclaim(ctx context.Context) (bool, error) {
	began := time.Now()
	did, err := w.s.stepReclaim(ctx)
	w.reclaiming = time.Since(began)
	return did, err
}

// often repeats a small step as long as a round may spend on a segment. Otherwise each node that was deleted would wait for one, and those who delete could be faster than
// the worker for ever.
func (w *worker) often(step func(context.Context) (bool, error)) func(context.Context) (bool, error) {
	return func(ctx context.Context) (did bool, err error) {
		for end := time.Now().Add(w.reclaiming); ; did = true {
			more, err := step(ctx)
			if err != nil || !more {
				return did || more, err
			}
			if ctx.Err() != nil || time.Now().After(end) {
				return true, nil
			}
		}
	}
}
