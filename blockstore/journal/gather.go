package journal

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// gathering joins what several writers of streams append at the same time into one write: a device is given more at once, and each of them is woken once, when it is there. A goroutine of the log's does it.
type gathering struct {
	sync.Mutex
	waiting []*gathered
	kick    chan struct{} // of capacity 1
	stopped bool          // nobody takes what waits any more

	// The goroutine's, reused.
	batch []*gathered
	recs  []Record
}

// gathered is what one writer appends.
type gathered struct {
	recs  []Record
	limit int64
	err   error
	done  chan struct{} // of capacity 1
}

var gatheredPool = sync.Pool{New: func() any { return &gathered{done: make(chan struct{}, 1)} }}

// gatherMost is how many bytes are joined into one write, but for those of one writer: small writers of others wait for no more.
const gatherMost = 1 << 20

// gather appends records of a stream, together with those of others that wait.
func (l *Log) gather(recs []Record, limit int64) error {
	g := gatheredPool.Get().(*gathered)
	defer gatheredPool.Put(g)
	g.recs, g.limit, g.err = recs, limit, nil
	q := &l.gathering
	q.Lock()
	if q.stopped {
		q.Unlock()
		return fmt.Errorf("append to the log: %w", block.ErrClosed)
	}
	q.waiting = append(q.waiting, g)
	q.Unlock()
	l.kick(q.kick)
	<-g.done
	g.recs = nil
	return g.err
}

// gatherLoop appends what waits, until the log closes.
func (l *Log) gatherLoop() {
	defer l.loops.Done()
	q := &l.gathering
	for {
		for l.gatherOnce() {
		}
		select {
		case <-q.kick:
		case <-l.quit:
			q.Lock()
			q.stopped = true
			q.Unlock()
			for l.gatherOnce() {
			}
			return
		}
	}
}

// gatherOnce appends some of what waits. It returns false if there was nothing.
func (l *Log) gatherOnce() bool {
	q := &l.gathering
	q.Lock()
	n, bytes := 0, int64(0)
	for n < len(q.waiting) && (n == 0 || bytes < gatherMost) && q.waiting[n].limit == q.waiting[0].limit {
		for i := range q.waiting[n].recs {
			bytes += q.waiting[n].recs[i].streamBytes()
		}
		n++
	}
	q.batch = append(q.batch[:0], q.waiting[:n]...)
	q.waiting = slices.Delete(q.waiting, 0, n)
	q.Unlock()
	if n > 0 {
		l.letOthersIn()
		l.appendGathered(q.batch)
		clear(q.batch)
	}
	return n > 0
}

// appendGathered appends what several writers have, all of it or, as far as they are told, nothing.
func (l *Log) appendGathered(batch []*gathered) {
	q := &l.gathering
	q.recs = q.recs[:0]
	for _, g := range batch {
		q.recs = append(q.recs, g.recs...)
	}
	err := l.appendPrepared(q.recs, batch[0].limit, true, true)
	if len(batch) > 1 && errors.Is(err, block.ErrNoSpace) {
		clear(q.recs)
		for _, g := range batch { // what is too much together may fit one by one
			g.err = l.appendPrepared(g.recs, g.limit, true, true)
			g.done <- struct{}{}
		}
		return
	}
	at := 0
	for _, g := range batch {
		at += copy(g.recs, q.recs[at:at+len(g.recs)])
		g.err = err
		g.done <- struct{}{}
	}
	clear(q.recs)
}

// othersTurns bounds how often the goroutine gives way before a write.
const othersTurns = 64

// letOthersIn gives way to appends that wait for the lock: whoever has just unlocked it mostly gets it again, and each of his writes takes as long as many of theirs.
func (l *Log) letOthersIn() {
	for n := 0; n < othersTurns && l.app.others.Load() > 0; n++ {
		runtime.Gosched()
	}
}
