package blockstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// cooler moves what has cooled long enough into cold segments, in the background. A warm segment has cooled when it has been sealed for Options.ColdAfter and, all that time, guests
// read less than an eighth of its bytes from its device: what caches answer is cheap to read from anywhere. It keeps within a budget, like the keeper, and gives way to a settle.
type cooler struct {
	s    *Store
	pace pacer

	settles atomic.Int32 // cold settles that wait for the pass
	reads   readCounts
	fault   fault

	mu     sync.Mutex
	status CoolStatus
}

// CoolStatus is what the store knows of its cold class, since it was opened.
type CoolStatus struct {
	Running      bool
	LeftBytes    uint64        // raw bytes that the pass in the background still has to move
	MovedBytes   uint64        // raw bytes that went cold
	SimilarBytes uint64        // raw bytes of those that were packed behind a chunk that they are like
	SavedBytes   uint64        // what that saved, by an estimate from one frame in coolSample
	Spent        time.Duration // by all workers together: hashes, sketches and compression
	Sketching    time.Duration // of that, what it took to find out which chunks are alike
}

const (
	coolerTick = 10 * time.Second
	// coolReads is the part of a segment, as a divisor, that may be read from its device for it still to be taken for cold.
	coolReads = 8
	// coolLeast is how many live bytes must have cooled for a pass to begin: it reads the maps of all volumes.
	coolLeast = 256 << 20
)

// errCoolLater ends a pass in the background when a settle wants to make one.
var errCoolLater = errors.New("a settle goes first")

// readCounts counts bytes that were read of each segment for guests.
type readCounts struct{ m sync.Map } // block.SegmentID → *atomic.Int64

func (r *readCounts) add(id block.SegmentID, n int) {
	v, ok := r.m.Load(id)
	if !ok {
		v, _ = r.m.LoadOrStore(id, new(atomic.Int64))
	}
	v.(*atomic.Int64).Add(int64(n))
}

// take returns the count of a segment and begins it anew.
func (r *readCounts) take(id block.SegmentID) int64 {
	if v, ok := r.m.Load(id); ok {
		return v.(*atomic.Int64).Swap(0)
	}
	return 0
}

// cooled is what a cooler knows of a warm segment.
type cooled struct {
	since time.Time // it has been cool since, as far as this process knows
	read  int64     // bytes since then
}

// run works until ctx ends.
func (k *cooler) run(ctx context.Context) {
	if k.s.opts.ColdAfter < 0 {
		return
	}
	known := map[block.SegmentID]*cooled{}
	tick := time.NewTicker(min(coolerTick, max(k.s.opts.ColdAfter/4, 10*time.Millisecond)))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		from, live := k.due(known, k.s.opts.Now())
		if live < k.s.opts.coolLeast || k.settles.Load() > 0 || SpaceState(k.s.space.state.Load()) == SpaceFull {
			continue
		}
		err := k.pass(ctx, from, live)
		if errors.Is(err, errCoolLater) {
			continue
		}
		k.s.report("move cold data into cold segments", err)
		k.fault.note(err)
		if err != nil {
			sleep(ctx, keeperRetry)
		}
	}
}

// due returns the segments that have cooled long enough, and what lives in them.
func (k *cooler) due(known map[block.SegmentID]*cooled, now time.Time) (map[block.SegmentID]bool, int64) {
	from, live, there := map[block.SegmentID]bool{}, int64(0), map[block.SegmentID]bool{}
	for _, r := range k.s.segments.all() {
		if r.Class != segment.Warm || r.State != segmentSealed {
			continue
		}
		there[r.ID] = true
		c := known[r.ID]
		if c == nil {
			c = &cooled{since: now}
			known[r.ID] = c
		}
		if c.read += k.reads.take(r.ID); c.read > int64(r.Size)/coolReads {
			*c = cooled{since: now}
		}
		if now.Sub(c.since) >= k.s.opts.ColdAfter && r.LiveChunks > 0 {
			from[r.ID] = true
			live += int64(r.LiveRaw)
		}
	}
	for id := range known {
		if !there[id] {
			delete(known, id)
			k.reads.m.Delete(id)
		}
	}
	return from, live
}

// pass moves what lives in some segments.
func (k *cooler) pass(ctx context.Context, from map[block.SegmentID]bool, live int64) error {
	k.change(func(st *CoolStatus) { st.Running, st.LeftBytes = true, uint64(live) })
	defer k.change(func(st *CoolStatus) { st.Running, st.LeftBytes = false, 0 })
	c := cooling{s: k.s, ctx: ctx, from: from,
		pace: func(ctx context.Context, n int) error {
			if k.settles.Load() > 0 {
				return errCoolLater
			}
			return k.pace.wait(ctx, n)
		},
		moved: func(raw int64) {
			k.change(func(st *CoolStatus) { st.LeftBytes -= min(st.LeftBytes, uint64(raw)) })
		},
	}
	err := c.run()
	k.s.worker.kick() // what is empty now can be given back
	return err
}

func (k *cooler) change(f func(st *CoolStatus)) {
	k.mu.Lock()
	defer k.mu.Unlock()
	f(&k.status)
}

// Cooling returns what went cold, and what is on its way.
func (s *Store) Cooling() CoolStatus {
	s.cooler.mu.Lock()
	defer s.cooler.mu.Unlock()
	return s.cooler.status
}
