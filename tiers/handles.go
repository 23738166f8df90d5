package tiers

import (
	"container/list"
	"context"
	"errors"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
)

type handleKey struct{ tier, key string }

// handle is one open segment. The mutex of its cache guards all fields but key, and r and err once ready is closed.
type handle struct {
	key   handleKey
	ready chan struct{} // closed when r or err is set
	r     Reader
	err   error
	refs  int           // reads in progress or waiting; the last one of a forgotten handle closes it
	known bool          // in the cache's map
	idle  *list.Element // place among the idle handles while refs is 0
}

// handleCache keeps handles open between reads: at most max when idle. Those in use come on top; their number is bounded by the reads in progress. A handle that is
// forgotten while it is read closes with its last read.
type handleCache struct {
	max int
	mu  struct {
		sync.Mutex
		byKey  map[handleKey]*handle
		idle   list.List // of *handle, least recently used first
		opened int
		closed bool
	}
}

func (c *handleCache) init(limit int) {
	c.max = limit
	c.mu.byKey = make(map[handleKey]*handle)
}

// acquire returns the handle of key with a reference, opening it if needed. Callers that come while it is opened wait for that, or for ctx.
func (c *handleCache) acquire(ctx context.Context, key handleKey, open func() (Reader, error)) (*handle, error) {
	c.mu.Lock()
	if c.mu.closed {
		c.mu.Unlock()
		return nil, block.ErrClosed
	}
	h := c.mu.byKey[key]
	if h == nil {
		h = &handle{key: key, ready: make(chan struct{}), refs: 1, known: true}
		c.mu.byKey[key] = h
		c.mu.Unlock()
		return c.openHandle(h, open)
	}
	c.ref(h)
	c.mu.Unlock()
	select {
	case <-h.ready:
	case <-ctx.Done():
		c.release(h)
		return nil, ctx.Err()
	}
	if h.err != nil {
		c.release(h)
		return nil, h.err
	}
	return h, nil
}

// openHandle opens the handle that this goroutine has put into the map, and lets the waiters go on. A failure is not remembered.
func (c *handleCache) openHandle(h *handle, open func() (Reader, error)) (*handle, error) {
	r, err := open()
	c.mu.Lock()
	h.r, h.err = r, err
	if err == nil {
		c.mu.opened++
	} else {
		c.drop(h)
	}
	close(h.ready)
	c.mu.Unlock()
	if err != nil {
		c.release(h)
		return nil, err
	}
	return h, nil
}

// tryAcquire returns the handle of key with a reference if it is open, else nil.
func (c *handleCache) tryAcquire(key handleKey) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.mu.byKey[key]
	if h == nil || h.r == nil || c.mu.closed {
		return nil
	}
	c.ref(h)
	return h
}

// ref adds a reference. c.mu is held.
func (c *handleCache) ref(h *handle) {
	if h.idle != nil {
		c.mu.idle.Remove(h.idle)
		h.idle = nil
	}
	h.refs++
}

// release gives a reference back.
func (c *handleCache) release(h *handle) {
	c.mu.Lock()
	h.refs--
	var victim *handle
	switch {
	case h.refs > 0:
	case !h.known:
		victim = h
	default:
		h.idle = c.mu.idle.PushBack(h)
		if c.mu.idle.Len() > c.max {
			victim = c.mu.idle.Front().Value.(*handle)
			c.drop(victim)
		}
	}
	c.mu.Unlock()
	c.closeHandle(victim)
}

// drop takes h out of map and idle list. c.mu is held.
func (c *handleCache) drop(h *handle) {
	if h.known {
		delete(c.mu.byKey, h.key)
		h.known = false
	}
	if h.idle != nil {
		c.mu.idle.Remove(h.idle)
		h.idle = nil
	}
}

// forget takes key out of the cache; its handle is closed now or with its last read.
func (c *handleCache) forget(key handleKey) {
	c.mu.Lock()
	h := c.mu.byKey[key]
	if h != nil {
		c.drop(h)
		if h.refs > 0 {
			h = nil
		}
	}
	c.mu.Unlock()
	c.closeHandle(h)
}

// closeHandle closes h, which nobody can find or use any more. The result of closing a file that was only read tells nothing of use, so it is dropped.
func (c *handleCache) closeHandle(h *handle) error {
	if h == nil || h.r == nil {
		return nil
	}
	err := h.r.Close()
	c.mu.Lock()
	c.mu.opened--
	c.mu.Unlock()
	return err
}

func (c *handleCache) open() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.opened
}

func (c *handleCache) close() error {
	c.mu.Lock()
	c.mu.closed = true
	var unused []*handle
	for _, h := range c.mu.byKey {
		c.drop(h)
		if h.refs == 0 {
			unused = append(unused, h)
		}
	}
	c.mu.Unlock()
	var errs []error
	for _, h := range unused {
		errs = append(errs, c.closeHandle(h))
	}
	return errors.Join(errs...)
}
