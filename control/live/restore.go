package live

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// Step is what is asked of a puller at once, in bytes, aligned: far more than a guest reads at random, and no more than the frames that repositories are read in.
const Step = 256 << 10

// Device is an open volume.
type Device interface {
	nbd.Device
	nbd.AheadFlusher
	nbd.Paced
	Depths(ctx context.Context, r block.Range, emit func(n uint64, depth uint32) bool) error
	ChangeBases() []string
	Changes(ctx context.Context, snapshot string, r block.Range, emit func(n uint64, changed bool) bool) error
	Close() error
}

// Options describe a volume whose content is still coming.
type Options struct {
	ContentBytes uint64     // of the backup
	ReachedBytes uint64     // what a restart of the daemon remembers
	Marks        nbd.Device // of MarksSize bytes; the caller closes it after Close
	// Waits is told that a read waits although nobody pulls. It may be nil.
	Waits func()
}

// Restore is a volume whose content is still coming. All methods may be called at once.
type Restore struct {
	content uint64
	waits   func()
	marks   *marks
	claims  claims

	reached  atomic.Uint64 // bytes of the content: what is before has come
	durable  atomic.Uint64 // the same, of which a restart knows
	complete atomic.Bool   // everything has come, and marks count no more

	mu struct {
		sync.Mutex
		wants   map[uint64]*want // by number of step
		queue   []uint64         // steps that the puller has to be told of
		puller  *puller          // nil: none
		waiting int              // reads
		ended   error            // why nothing comes any more
	}
	over chan struct{} // closed when ended is there
}

// want is a step that reads wait for.
type want struct {
	done    chan struct{} // closed when it was answered
	err     error         // of the answer
	waiting int
}

// puller is whoever brings the content.
type puller struct {
	asked chan struct{} // has a token when the queue is not empty
}

// Open reads what has come of a volume.
func Open(ctx context.Context, opts Options) (*Restore, error) {
	r := &Restore{content: opts.ContentBytes, waits: opts.Waits, over: make(chan struct{})}
	r.mu.wants = map[uint64]*want{}
	if opts.ReachedBytes > opts.ContentBytes || opts.ReachedBytes < opts.ContentBytes && opts.ReachedBytes%block.Size != 0 {
		return nil, fmt.Errorf("%d of %d bytes are said to have come: %w", opts.ReachedBytes, opts.ContentBytes, block.ErrInvalid)
	}
	r.reached.Store(opts.ReachedBytes)
	r.durable.Store(opts.ReachedBytes)
	var err error
	r.marks, err = openMarks(ctx, opts.Marks)
	return r, err
}

// State says how far a restore is.
type State struct {
	ContentBytes uint64
	ReachedBytes uint64 // what is before has come; more has, that was asked for
	Pulling      bool
	Waiting      int // reads that wait for what has not come
}

// State says how far it is.
func (r *Restore) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return State{ContentBytes: r.content, ReachedBytes: min(r.reached.Load(), r.content), Pulling: r.mu.puller != nil, Waiting: r.mu.waiting}
}

// ErrEnded means that a restore was given up, and its volume with it.
var ErrEnded = errors.New("the restore was given up")

// End fails everything that waits, now and later.
func (r *Restore) End() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.ended == nil {
		r.mu.ended = ErrEnded
		close(r.over)
	}
}

// Complete ends the use of marks once all has come and that is durable: the devices serve what the engine has, and the device of the marks may be closed.
func (r *Restore) Complete(ctx context.Context) error {
	if r.reached.Load() < r.content {
		return fmt.Errorf("only %d of %d bytes have come: %w", r.reached.Load(), r.content, block.ErrInvalid)
	}
	r.complete.Store(true)
	return r.marks.close(ctx)
}

// look returns what has come of a range. It must be called before the engine is asked about the range.
func (r *Restore) look(c *come, off, length uint64) {
	c.reached = r.reached.Load()
	if c.reached >= r.content {
		c.reached = ^uint64(0) // what is behind the content is zeroes
	}
	if c.reached < off+length {
		r.marks.look(block.Range{Off: off, Len: length}, c)
	}
}

// mark notes that whole blocks have come, whatever the engine says of them. What a restart finds to have come needs no mark.
func (r *Restore) mark(ctx context.Context, ranges []block.Range) error {
	durable := r.durable.Load()
	some := ranges[:0:0]
	for _, x := range ranges {
		if end := x.End(); end > durable && x.Len > 0 {
			off := max(x.Off, durable/block.Size*block.Size)
			some = append(some, block.Range{Off: off, Len: end - off})
		}
	}
	if len(some) == 0 || r.complete.Load() {
		return nil
	}
	return r.marks.set(ctx, some)
}

// fetch waits until ranges were asked of the puller and answered. Whether they have come then, the caller has to look again.
func (r *Restore) fetch(ctx context.Context, ranges []block.Range) error {
	var mine []*want
	var steps []uint64
	r.mu.Lock()
	for _, x := range ranges {
		for step := x.Off / Step; step*Step < x.End(); step++ {
			if len(steps) > 0 && steps[len(steps)-1] == step || r.hasReached(step) { // whoever reached it since the caller looked wakes nobody who comes after
				continue
			}
			w := r.mu.wants[step]
			if w == nil {
				w = &want{done: make(chan struct{})}
				r.mu.wants[step] = w
				if r.mu.puller != nil { // one that comes later is told of all wants
					r.mu.queue = append(r.mu.queue, step)
				}
			}
			w.waiting++
			mine, steps = append(mine, w), append(steps, step)
		}
	}
	if len(mine) == 0 {
		r.mu.Unlock()
		return nil
	}
	r.mu.waiting++
	alone := r.mu.puller == nil
	if !alone {
		r.mu.puller.wake()
	}
	r.mu.Unlock()
	defer r.leave(mine, steps)
	if alone && r.waits != nil {
		r.waits()
	}
	for _, w := range mine {
		select {
		case <-w.done:
			if w.err != nil {
				return w.err
			}
		case <-r.over:
			return ErrEnded
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// leave takes back what fetch waited for; what nobody waits for any more need not be asked for.
func (r *Restore) leave(wants []*want, steps []uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.waiting--
	for i, w := range wants {
		if w.waiting--; w.waiting == 0 && r.mu.wants[steps[i]] == w {
			delete(r.mu.wants, steps[i])
		}
	}
}

func (p *puller) wake() {
	select {
	case p.asked <- struct{}{}:
	default:
	}
}

// next returns a step that the puller was not told of, if there is one.
func (r *Restore) next() (block.Range, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.mu.queue) > 0 {
		step := r.mu.queue[0]
		r.mu.queue = r.mu.queue[1:]
		if r.mu.wants[step] != nil && step*Step < r.content {
			return block.Range{Off: step * Step, Len: min(Step, r.content-step*Step)}, true
		}
	}
	return block.Range{}, false
}

// answered wakes those who wait for steps that a range covers; with an error, for all that it touches.
func (r *Restore) answered(x block.Range, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for step := x.Off / Step; step*Step < x.End(); step++ {
		begin, end := step*Step, min((step+1)*Step, r.content)
		if err == nil && (begin < x.Off || end > x.End()) {
			continue
		}
		if w := r.mu.wants[step]; w != nil {
			w.err = err
			close(w.done)
			delete(r.mu.wants, step)
		}
	}
}

// wanted reports whether somebody waits for a part of a range.
func (r *Restore) wanted(x block.Range) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for step := x.Off / Step; step*Step < x.End(); step++ {
		if r.mu.wants[step] != nil {
			return true
		}
	}
	return false
}

// hasReached reports whether a step has come as a whole.
func (r *Restore) hasReached(step uint64) bool {
	reached := r.reached.Load()
	return reached >= min((step+1)*Step, r.content)
}

// advance notes that everything before an offset has come, and wakes those who wait for a part of it.
func (r *Restore) advance(reached uint64) {
	r.reached.Store(reached)
	r.mu.Lock()
	defer r.mu.Unlock()
	for step, w := range r.mu.wants {
		if r.hasReached(step) {
			close(w.done)
			delete(r.mu.wants, step)
		}
	}
}

// enter makes the caller the puller.
func (r *Restore) enter() (*puller, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.mu.ended != nil:
		return nil, r.mu.ended
	case r.mu.puller != nil:
		return nil, fmt.Errorf("it is being pulled already: %w", block.ErrInUse)
	}
	p := &puller{asked: make(chan struct{}, 1)}
	r.mu.puller = p
	r.mu.queue = r.mu.queue[:0]
	for step := range r.mu.wants {
		r.mu.queue = append(r.mu.queue, step)
	}
	p.wake()
	return p, nil
}

// exit lets another puller in. What waits goes on waiting.
func (r *Restore) exit() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.mu.puller = nil
}
