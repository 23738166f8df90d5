package blockstore

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	// queuePoll is how often a queue that may not serve looks again, since not everything that makes room says so.
	queuePoll = 50 * time.Millisecond
	// queueSlack is how much early a write may be served: no timer is exact below it. What it gains is paid by the next one.
	queueSlack = time.Millisecond
	// queueBurst is how much of an idle time counts for the writes that follow it.
	queueBurst = 2 * time.Millisecond
	// queueMemory is how long a volume counts as one that wants room, and how long at most it is reminded that it had more than its share.
	queueMemory = 100 * time.Millisecond
	// contendedFor is how long after a write had to wait the log counts as short, whatever its fill. Room comes back in steps, a checkpoint's worth at a time: left to a
	// race, each step would go to the volume with the most requests.
	contendedFor = 2 * time.Second
)

// fairQueue shares the room in the log between volumes while there is less of it than writers want. The pace at which the log may fill is divided evenly between the
// volumes that write, whatever the number of requests that each has in flight:
//
//   - A volume that is within its even part of the pace goes on at once. So one with a single request in flight gets its part, although it never has a request waiting
//     when another one is answered.
//   - What the others leave is for whoever wants more, in the order of self-clocked fair queueing (Golestani, INFOCOM 1994): each write gets a tag, the volume's last tag
//     or that of the write served last, whichever is later, plus its length; the lowest is served first. So none of those gets more than another of them either.
//
// Syncs need no such queue: one fdatasync serves all who wait for one, so a volume that flushes all the time makes others wait for one sync at most that they did not
// ask for, the one that runs when theirs is asked for; and appends do not wait for syncs at all.
type fairQueue struct {
	g *spaceGate

	mu      sync.Mutex
	waiting waitHeap
	virtual int64     // tag of the write served last, bytes
	count   uint64    // writes that ever waited; orders equal tags
	next    time.Time // when the pace allows the next write
	timer   *time.Timer
	active  []*share // volumes that wanted room not long ago
	pruned  time.Time

	contended atomic.Bool // writes go through the queue at any fill
	until     time.Time   // when that ends
}

// share is a volume's place in the queue, guarded by fairQueue.mu, and what is kept for it.
type share struct {
	tag     int64     // of its last write, bytes
	waiting int       // writes in the queue
	next    time.Time // when the volume's own part of the pace allows its next write
	seen    time.Time // when it wanted room last
	active  bool

	reserved atomic.Int64 // bytes of the file system that are kept for this volume
}

// waiter is a write that waits.
type waiter struct {
	s      *share
	n      int64 // bytes
	tag    int64
	count  uint64
	index  int // in the heap; -1 when it was served
	served chan struct{}
	err    error // set before served is closed
}

// tryTake serves a write at once, or reports that it has to wait.
func (q *fairQueue) tryTake(s *share, n int64) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.takeLocked(s, n, time.Now())
}

func (q *fairQueue) takeLocked(s *share, n int64, now time.Time) bool {
	q.seeLocked(s, now)
	within := s.waiting == 0 && s.next.Sub(now) <= queueSlack
	if !within && (len(q.waiting) > 0 || q.next.Sub(now) > queueSlack) {
		return false
	}
	q.g.measure()
	spacing, room := q.spacingLocked(n)
	if !room {
		return false
	}
	q.passLocked(s, q.tagLocked(s, n), spacing, now)
	return true
}

// tagLocked gives a write of the volume its place in the order.
func (q *fairQueue) tagLocked(s *share, n int64) int64 {
	s.tag = max(s.tag, q.virtual) + max(n, block.Size)
	return s.tag
}

// spacingLocked is how long n bytes must last. Between several volumes there is a pace below the soft mark, too, for a while after one had to wait.
func (q *fairQueue) spacingLocked(n int64) (time.Duration, bool) {
	least := 0.0
	if len(q.active) > 1 && q.contended.Load() {
		least = leastSpacing
	}
	return q.g.spacing(n, least)
}

// seeLocked notes that a volume wants room, and forgets those that do not any more.
func (q *fairQueue) seeLocked(s *share, now time.Time) {
	s.seen = now
	if q.contended.Load() && now.After(q.until) {
		q.contended.Store(false)
	}
	if !s.active {
		s.active = true
		q.active = append(q.active, s)
	}
	if now.Sub(q.pruned) < queueMemory/10 {
		return
	}
	q.pruned = now
	q.active = slices.DeleteFunc(q.active, func(o *share) bool {
		o.active = o.waiting > 0 || now.Sub(o.seen) < queueMemory
		return !o.active
	})
}

// passLocked books that a write of that tag goes on, which must last for spacing.
func (q *fairQueue) passLocked(s *share, tag int64, spacing time.Duration, now time.Time) {
	q.virtual = max(q.virtual, tag)
	q.next = later(q.next, now.Add(-queueBurst)).Add(spacing)
	s.next = later(s.next, now.Add(-queueBurst)).Add(spacing * time.Duration(len(q.active)))
	if most := now.Add(queueMemory); s.next.After(most) {
		s.next = most
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// wait returns when the write may go on, or with the error of ctx, or ErrClosed.
func (q *fairQueue) wait(ctx context.Context, s *share, n int64) error {
	q.mu.Lock()
	if q.takeLocked(s, n, time.Now()) {
		q.mu.Unlock()
		return nil
	}
	q.contended.Store(true)
	q.until = time.Now().Add(contendedFor)
	q.count++
	s.waiting++
	w := &waiter{s: s, n: n, tag: q.tagLocked(s, n), count: q.count, served: make(chan struct{})}
	heap.Push(&q.waiting, w)
	q.serveLocked()
	q.mu.Unlock()
	select {
	case <-w.served:
		return w.err
	case <-ctx.Done():
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if w.index >= 0 {
		heap.Remove(&q.waiting, w.index)
		s.waiting--
	}
	return ctx.Err()
}

// serve lets go on whoever may.
func (q *fairQueue) serve() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.serveLocked()
}

func (q *fairQueue) serveLocked() {
	for len(q.waiting) > 0 {
		if q.g.s.closed.Load() {
			q.popLocked(block.ErrClosed)
			continue
		}
		now := time.Now()
		if due := q.next.Sub(now); due > queueSlack {
			q.againIn(due)
			return
		}
		q.g.measure()
		first := q.waiting[0]
		spacing, room := q.spacingLocked(first.n)
		if !room {
			q.g.s.destager.kick()
			q.againIn(queuePoll)
			return
		}
		q.passLocked(first.s, first.tag, spacing, now)
		q.popLocked(nil)
	}
}

// popLocked lets the first write go on, or fail.
func (q *fairQueue) popLocked(err error) {
	w := heap.Pop(&q.waiting).(*waiter)
	w.s.waiting--
	w.err = err
	close(w.served)
}

// againIn has serve called after d. Nothing has to stop the timer: it runs out when nobody waits.
func (q *fairQueue) againIn(d time.Duration) {
	d = min(d, queuePoll)
	if q.timer == nil {
		q.timer = time.AfterFunc(d, q.serve)
		return
	}
	q.timer.Reset(d)
}

// waitHeap implements heap.Interface: lowest tag first, of equal ones the oldest.
type waitHeap []*waiter

func (h waitHeap) Len() int { return len(h) }
func (h waitHeap) Less(i, j int) bool {
	return h[i].tag < h[j].tag || h[i].tag == h[j].tag && h[i].count < h[j].count
}
func (h waitHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

// Push implements heap.Interface.
func (h *waitHeap) Push(x any) {
	w := x.(*waiter)
	w.index = len(*h)
	*h = append(*h, w)
}

// Pop implements heap.Interface.
func (h *waitHeap) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	w.index = -1
	(*h)[last] = nil
	*h = (*h)[:last]
	return w
}
