package blockstore

import (
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// regionBuffers lends the buffers of destage. Each has the size of a region, and the least budget is a few regions: so they are there only while destage works, and go back
// to the collector when it has been idle for a while. It is used by the destager alone, but for held.
type regionBuffers struct {
	held     atomic.Int64 // bytes
	lastLent time.Time
}

// buffersKept is how long buffers stay for the next batch: guests that write all the time have one every second or so.
const buffersKept = 3 * time.Second

// lend sees to it that w has a buffer. Its bytes are those of its last use.
func (b *regionBuffers) lend(w *regionWork) {
	b.lastLent = time.Now()
	if w.buf == nil {
		w.buf = make([]byte, block.RegionSize)
		b.held.Add(block.RegionSize)
	}
}

// idle takes the buffers back if they were not lent for a while. No batch is under way.
func (b *regionBuffers) idle(works []*regionWork, now time.Time) {
	if b.held.Load() == 0 || now.Sub(b.lastLent) < buffersKept {
		return
	}
	for _, w := range works {
		w.buf = nil
		clear(w.chunks[:cap(w.chunks)]) // which point into it
	}
	b.held.Store(0)
}
