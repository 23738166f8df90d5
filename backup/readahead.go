package backup

import (
	"context"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	readaheadStreams = 8       // that are followed at once
	readaheadSlack   = 4 << 20 // bytes: requests of one stream may come so far out of order, as from several connections
	readaheadLeast   = 1 << 20 // bytes that a stream must have run before anything is read ahead for it, and that are asked for at once
	readaheadQueue   = 16      // ranges
	readaheadWorkers = 2
)

// readahead reads ahead for clients that read on and on. It follows a few streams, and reads as far ahead of each as that has run already, up to a bound.
type readahead struct {
	window uint64 // bytes
	fetch  func(context.Context, block.Range)
	cancel context.CancelFunc
	queue  chan block.Range
	work   sync.WaitGroup

	mu struct {
		sync.Mutex
		streams [readaheadStreams]stream
		clock   uint64
	}
}

// stream is a client's way through the content. Offsets are bytes.
type stream struct {
	next  uint64 // where it is
	run   uint64 // how far it has come
	asked uint64 // what is before this was asked for
	used  uint64 // by the clock of the readahead
}

func newReadahead(window uint64, fetch func(context.Context, block.Range)) *readahead {
	ctx, cancel := context.WithCancel(context.Background())
	a := &readahead{window: window, fetch: fetch, cancel: cancel, queue: make(chan block.Range, readaheadQueue)}
	for range readaheadWorkers {
		a.work.Go(func() {
			for {
				select {
				case r := <-a.queue:
					a.fetch(ctx, r)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	return a
}

func (a *readahead) close() {
	a.cancel()
	a.work.Wait()
}

// want asks for a range, unless too much is asked for already.
func (a *readahead) want(r block.Range) bool {
	select {
	case a.queue <- r:
		return true
	default:
		return false
	}
}

// note takes a read down, and asks for what its stream will need next.
func (a *readahead) note(off, length uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.mu.clock++
	s := a.streamLocked(off)
	s.used = a.mu.clock
	if end := off + length; end > s.next {
		s.run += end - s.next
		s.next = end
	}
	if s.run < readaheadLeast {
		return
	}
	s.asked = max(s.asked, s.next)
	if until := s.next + min(s.run, a.window); until >= s.asked+min(readaheadLeast, a.window) && a.want(block.Range{Off: s.asked, Len: until - s.asked}) {
		s.asked = until
	}
}

// streamLocked returns the stream that a read at off belongs to; a new one takes the place of the one that has stood still for longest.
func (a *readahead) streamLocked(off uint64) *stream {
	oldest := &a.mu.streams[0]
	for i := range a.mu.streams {
		s := &a.mu.streams[i]
		if s.used > 0 && off+readaheadSlack >= s.next && off <= s.next+readaheadSlack {
			return s
		}
		if s.used < oldest.used {
			oldest = s
		}
	}
	*oldest = stream{next: off}
	return oldest
}
