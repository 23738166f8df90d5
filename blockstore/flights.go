package blockstore

import (
	"context"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/blockstore/framecache"
)

// flights are the frames that are being read from a device, so that those who come meanwhile wait for them instead of reading them again. Who has claimed a frame
// claims more of them only where that needs no wait, so nobody waits in a circle.
type flights struct {
	mu     sync.Mutex
	frames map[framecache.Key]chan struct{} // made by the first who waits, and closed at the end
	waits  int                              // so far
}

// claim takes on the reading of a frame. If somebody does so already, it returns what is closed at the end of it.
func (f *flights) claim(k framecache.Key) (landed <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	ch, under := f.frames[k]
	if !under {
		if f.frames == nil {
			f.frames = make(map[framecache.Key]chan struct{})
		}
		f.frames[k] = nil
		return nil
	}
	if ch == nil {
		ch = make(chan struct{})
		f.frames[k] = ch
	}
	f.waits++
	return ch
}

// tryClaim is claim for who would not wait.
func (f *flights) tryClaim(k framecache.Key) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, under := f.frames[k]; under {
		return false
	}
	f.frames[k] = nil
	return true
}

// land ends the reading of frames, whether they were read or not.
func (f *flights) land(keys []framecache.Key) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, k := range keys {
		if ch := f.frames[k]; ch != nil {
			close(ch)
		}
		delete(f.frames, k)
	}
}

// claimFirst claims the frame of what is wanted. If somebody else has it, it waits for that, and returns 1 if the frame is in the cache then.
func (c *chunkReader) claimFirst(ctx context.Context, t *frameTools, w *wanted) (int, error) {
	if landed := c.flights.claim(w.frame()); landed != nil {
		select {
		case <-landed:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	} else {
		t.claimed = append(t.claimed, w.frame())
	}
	if ok, err := c.cached(w); ok || err != nil {
		return 1, err
	}
	return 0, nil
}

// claim claims one more frame, unless somebody else reads it.
func (c *chunkReader) claim(t *frameTools, k framecache.Key) bool {
	if !c.flights.tryClaim(k) {
		return false
	}
	t.claimed = append(t.claimed, k)
	return true
}

// land lets go of what was claimed.
func (c *chunkReader) land(t *frameTools) {
	if len(t.claimed) > 0 {
		c.flights.land(t.claimed)
		t.claimed = t.claimed[:0]
	}
}
