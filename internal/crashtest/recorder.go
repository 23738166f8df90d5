package crashtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
)

// Recorder notes what clients ask of a store and when it replies. Its methods may be called from any number of goroutines, but a client has one operation at a time.
type Recorder struct {
	mu      sync.Mutex
	clock   int64 // counts issues and replies
	clients []*client
	flushed int64 // issue of the last operation that made all before it durable, and was replied to
	tell    func(Event)
}

type client struct {
	head    *State // after all operations issued
	ops     []noted
	replied int // the first so many of ops
	durable int // the first so many of ops were, at least, durable by an FUA of their own
	gen     generator
	next    int // number of the next operation
}

type noted struct {
	op           *Op
	issue, reply int64 // 0: no reply
}

// Event is an issue (Op is set) or a reply. Events of a recorder in another process, taken in order, rebuild what it knew.
type Event struct {
	Client int
	Op     *Op
}

// NewRecorder returns a recorder of clients that begin in the given states and number their operations from first on. tell, if it is not nil, is called with every event,
// one at a time: before the operation is issued, and after it was replied to.
func NewRecorder(cfg Config, seed uint64, begin []*State, first int, tell func(Event)) *Recorder {
	r := &Recorder{tell: tell}
	for i, s := range begin {
		r.clients = append(r.clients, &client{
			head: s.clone(), next: first, gen: generator{cfg: cfg, client: i, rng: rand.New(rand.NewPCG(seed, uint64(i)))},
		})
	}
	return r
}

// Step runs one random operation of a client. An error is one of the store.
func (r *Recorder) Step(ctx context.Context, clientIndex int, target Target) error {
	c := r.clients[clientIndex]
	op := c.gen.next(c.next, c.head)
	r.Note(Event{Client: clientIndex, Op: op})
	if err := target.Do(ctx, op); err != nil {
		return fmt.Errorf("client %d, %v: %w", clientIndex, op, err)
	}
	r.Note(Event{Client: clientIndex})
	return nil
}

// Note takes an event.
func (r *Recorder) Note(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clock++
	c := r.clients[e.Client]
	if e.Op != nil {
		for _, f := range e.Op.effects(c.head) {
			f(c.head)
		}
		c.ops = append(c.ops, noted{op: e.Op, issue: r.clock})
		c.next = e.Op.N + 1
	} else {
		last := &c.ops[c.replied]
		last.reply = r.clock
		c.replied++
		if last.op.Kind == Flush || last.op.FUA {
			r.flushed, c.durable = max(r.flushed, last.issue), c.replied
		}
	}
	if r.tell != nil {
		r.tell(e)
	}
}

// Mark is what was known at one moment.
type Mark struct {
	flushed int64
	clients []clientMark
}

type clientMark struct{ issued, replied, durable int }

// Mark returns what is known now.
func (r *Recorder) Mark() Mark {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := Mark{flushed: r.flushed}
	for _, c := range r.clients {
		m.clients = append(m.clients, clientMark{issued: len(c.ops), replied: c.replied, durable: c.durable})
	}
	return m
}

// Next returns a number above that of every operation so far.
func (r *Recorder) Next() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for _, c := range r.clients {
		n = max(n, c.next)
	}
	return n
}

// Ops returns how many operations were replied to.
func (r *Recorder) Ops() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.clients {
		n += c.replied
	}
	return n
}
