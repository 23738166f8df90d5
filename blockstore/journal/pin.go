package journal

import (
	"math/rand/v2"
	"sync/atomic"
)

// pinShards spreads the counters of pins so that readers on different cores seldom share a cache line.
const pinShards = 16

// pinSet tells when all readers of a moment have gone: epoch-based reclamation (Fraser, "Practical lock-freedom", 2004) with explicit
// counts.
//
// A pin counts in the current epoch. The epoch advances only when nobody is counted in the one before it. So a pin taken in epoch e keeps
// the epoch at e+1 or lower, and a file retired in epoch r has no reader left from epoch r+2 on.
type pinSet struct {
	epoch  atomic.Uint64
	counts [2][pinShards]struct {
		n atomic.Int64
		_ [56]byte // one cache line each
	}
}

// Pin keeps every file that can be read now from being recycled. It is a value; Release it exactly once, soon.
type Pin struct{ count *atomic.Int64 }

// Release ends the pin.
func (p Pin) Release() { p.count.Add(-1) }

// Pin begins a read. It never blocks and does not allocate.
func (l *Log) Pin() Pin { return l.pins.pin() }

func (s *pinSet) pin() Pin {
	shard := rand.Uint32() % pinShards
	for {
		e := s.epoch.Load()
		c := &s.counts[e&1][shard].n
		c.Add(1)
		// If the epoch moved on in between, the count may have come too late to be seen: take it back and count in the new one.
		if s.epoch.Load() == e {
			return Pin{c}
		}
		c.Add(-1)
	}
}

// tryAdvance moves to the next epoch if no pin of the previous one is left. Only one goroutine may call it.
func (s *pinSet) tryAdvance() bool {
	e := s.epoch.Load()
	// The previous epoch's counters only fall now (a late pin counts and takes itself back), so a sum over them that is not atomic is safe.
	for i := range s.counts[(e+1)&1] {
		if s.counts[(e+1)&1][i].n.Load() != 0 {
			return false
		}
	}
	s.epoch.Store(e + 1)
	return true
}
