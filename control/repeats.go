package control

import (
	"sync"
	"time"
)

const (
	// repeatEvery is how often at most the same event is told.
	repeatEvery = time.Minute
	// maxRepeats bounds how many different events are remembered.
	maxRepeats = 256
)

// repeats holds back events that say again what was said not long ago: a fault that lasts is met with every attempt, and must not fill the log with itself.
type repeats struct {
	now func() time.Time

	mu    sync.Mutex
	known map[string]*repeated
}

type repeated struct {
	told   time.Time // when it was last told
	silent uint64    // times it was held back since
}

func newRepeats(now func() time.Time) *repeats {
	return &repeats{now: now, known: map[string]*repeated{}}
}

// tell reports whether an event shall be told now, and how often it was held back since it was told last.
func (r *repeats) tell(event string) (now bool, heldBack uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.now()
	e := r.known[event]
	if e != nil && at.Sub(e.told) < repeatEvery {
		e.silent++
		return false, 0
	}
	if e == nil {
		r.makeRoom(at)
		e = &repeated{}
		r.known[event] = e
	}
	heldBack = e.silent
	*e = repeated{told: at}
	return true, heldBack
}

// makeRoom forgets what was told long ago, or else what was told first. It is called with mu held.
func (r *repeats) makeRoom(at time.Time) {
	if len(r.known) < maxRepeats {
		return
	}
	oldest := ""
	for event, e := range r.known {
		if at.Sub(e.told) >= repeatEvery && e.silent == 0 {
			delete(r.known, event)
			continue
		}
		if o := r.known[oldest]; o == nil || e.told.Before(o.told) {
			oldest = event
		}
	}
	if len(r.known) >= maxRepeats {
		delete(r.known, oldest)
	}
}
