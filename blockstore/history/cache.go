package history

import "sync"

// cachedFrames is how many decoded frames are kept: 4 MiB.
const cachedFrames = 32

// frameCache keeps the payload of frames that were read lately.
type frameCache struct {
	mu      sync.Mutex
	entries [cachedFrames]cached
	clock   int
}

type cached struct {
	file *file
	off  int64
	b    []byte
	used bool
}

// get returns the payload of a frame, which the caller does not change.
func (c *frameCache) get(f *file, r *frameRef) ([]byte, error) {
	c.mu.Lock()
	for i := range c.entries {
		if e := &c.entries[i]; e.file == f && e.off == r.off {
			e.used = true
			b := e.b
			c.mu.Unlock()
			return b, nil
		}
	}
	c.mu.Unlock()
	b, err := f.payload(r)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.entries[c.clock].used { // second chance, as CLOCK does it
		c.entries[c.clock].used = false
		c.clock = (c.clock + 1) % cachedFrames
	}
	c.entries[c.clock] = cached{file: f, off: r.off, b: b}
	c.clock = (c.clock + 1) % cachedFrames
	return b, nil
}

func (c *frameCache) forget(f *file) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.entries {
		if c.entries[i].file == f {
			c.entries[i] = cached{}
		}
	}
}
