package crew

import (
	"sync"
	"sync/atomic"
)

// Crew does jobs, each in a goroutine that does nothing else meanwhile. It is made by New; all methods may be called concurrently.
type Crew[T any] struct {
	do    func(T)
	most  int32
	idle  atomic.Int32
	jobs  chan T
	done  chan struct{}
	close sync.Once
}

// New returns a crew that does jobs with do, and keeps up to most goroutines that have nothing to do.
func New[T any](most int, do func(T)) *Crew[T] {
	return &Crew[T]{do: do, most: int32(most), jobs: make(chan T), done: make(chan struct{})}
}

// Go has a job done, and does not wait: if nobody is idle, it starts a goroutine. How many jobs are under way is the caller's to bound.
func (c *Crew[T]) Go(job T) {
	select {
	case c.jobs <- job:
	default:
		go c.work(job)
	}
}

// Close lets those go who are idle, and others when their job is done. It does not wait for them. Jobs may still be given, and are done.
func (c *Crew[T]) Close() { c.close.Do(func() { close(c.done) }) }

func (c *Crew[T]) work(job T) {
	for {
		c.do(job)
		var none T
		job = none // nothing is kept alive by who is idle
		if c.idle.Add(1) > c.most {
			c.idle.Add(-1)
			return
		}
		select {
		case job = <-c.jobs:
			c.idle.Add(-1)
		case <-c.done:
			c.idle.Add(-1)
			return
		}
	}
}
