package history

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const (
	// batchBytes are written at once, and batchRoom is that and the longest frame.
	batchBytes = 1 << 20
	batchRoom  = batchBytes + 512<<10
	// batchAfter is how many frames a file must get between two syncs until the next ones are gathered.
	batchAfter = 8
	// batchesMost bounds how many files have a batch at a time: 1.5 MiB each.
	batchesMost = 4
)

// batch has the last frames of a file that grows fast, until there are so many that it pays to write them around the page cache: history is seldom read soon, and fresh pages for it cost more CPU than to compress it. Only what is written can be
// seen by readers. It ends with the next sync, and belongs to the appender.
type batch struct {
	to   *vfs.Direct // nil: it goes through the page cache after all
	buf  []byte      // aligned; buf[:n] lies at off
	n    int
	off  int64      // a multiple of a page; what lies before it in a page that it shares with an earlier frame is written as it comes
	ends []progress // of the file after each frame that is not written as a whole
}

// progress is how far a file has come.
type progress struct {
	end      int64
	raw      uint32
	chain    uint32
	count    uint32
	lastSeq  uint64
	lastTime int64
	metas    int
}

// batches are the buffers of those that there are.
type batches struct {
	mu       sync.Mutex
	free     [][]byte
	out      int
	buffered atomic.Bool // the file system cannot be written around the page cache
}

func (b *batches) take() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out == batchesMost {
		return nil
	}
	b.out++
	if n := len(b.free); n > 0 {
		buf := b.free[n-1]
		b.free = b.free[:n-1]
		return buf
	}
	return vfs.AlignedBuffer(batchRoom)
}

// put takes a buffer back. One is kept for the next.
func (b *batches) put(buf []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out--; len(b.free) == 0 {
		b.free = append(b.free, buf)
	}
}

func (f *file) progress() progress {
	return progress{f.end, f.raw, f.chain, f.count, f.lastSeq, f.lastTime, len(f.metas)}
}

// gather begins a batch if the file grows fast enough. It is called before each frame.
func (f *file) gather() {
	if f.burst++; f.batch != nil || f.burst <= batchAfter {
		return
	}
	pool := &f.handles.batches
	buf := pool.take()
	if buf == nil {
		return
	}
	b := &batch{buf: buf, off: (f.end + sectorSize - 1) &^ (sectorSize - 1)}
	if !pool.buffered.Load() {
		to, err := vfs.OpenDirect(f.f)
		if err != nil { // also where there are no descriptors left
			to = nil
		}
		b.to = to
	}
	f.batch = b
	f.show(f.progress())
}

// write puts bytes behind the end of the file, or into its batch.
func (f *file) write(bufs [][]byte) error {
	b := f.batch
	if b == nil {
		return vfs.WriteVec(f.f, bufs, f.end)
	}
	at := f.end
	for _, p := range bufs {
		if n := min(int64(len(p)), b.off-at); n > 0 { // the rest of the page that was begun before the batch
			if err := vfs.WriteVec(f.f, [][]byte{p[:n]}, at); err != nil {
				return err
			}
			p, at = p[n:], at+n
		}
		b.n += copy(b.buf[b.n:], p)
		at += int64(len(p))
	}
	return nil
}

// gathered is called after a frame was put. It writes the batch if it is full.
func (f *file) gathered() error {
	b := f.batch
	if b == nil {
		return nil
	}
	b.ends = append(b.ends, f.progress())
	if b.n < batchBytes {
		return nil
	}
	if err := f.writePages(); err != nil {
		return f.fail("append", err)
	}
	return nil
}

// writePages writes the pages of the batch that are full.
func (f *file) writePages() error {
	b := f.batch
	whole := b.n &^ (sectorSize - 1)
	err := error(nil)
	if b.to != nil {
		if err = b.to.WriteFull(b.buf[:whole], b.off); errors.Is(err, syscall.EINVAL) {
			f.handles.batches.buffered.Store(true)
			_ = b.to.Close()
			b.to = nil
		}
	}
	if b.to == nil {
		err = vfs.WriteVec(f.f, [][]byte{b.buf[:whole]}, b.off)
	}
	if err != nil {
		return err
	}
	b.off += int64(whole)
	b.n = copy(b.buf, b.buf[whole:b.n])
	n := len(b.ends)
	for n > 0 && b.ends[n-1].end > b.off {
		n--
	}
	if n > 0 {
		f.show(b.ends[n-1])
		b.ends = slices.Delete(b.ends, 0, n)
	}
	return nil
}

// flush writes all of the batch, and ends it.
func (f *file) flush() error {
	b := f.batch
	if b == nil {
		return nil
	}
	err := f.writePages()
	if err == nil && b.n > 0 {
		err = vfs.WriteVec(f.f, [][]byte{b.buf[:b.n]}, b.off)
	}
	if err != nil {
		return f.fail("append", err)
	}
	f.show(f.progress())
	f.discard()
	return nil
}

// show lets readers see what the file has up to there.
func (f *file) show(to progress) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.hides, f.mu.shown = true, to
}

// shownLocked is what readers of a file that is being filled see. f.mu is held.
func (f *file) shownLocked() (frames []frameRef, metas []byte) {
	if f.mu.hides {
		return f.mu.frames[:f.mu.shown.count], f.metas[:f.mu.shown.metas]
	}
	return f.mu.frames, f.metas
}

// discard ends a batch. What readers do not see by then is none of the file's.
func (f *file) discard() {
	b := f.batch
	if b == nil {
		return
	}
	f.mu.Lock()
	p := f.mu.shown
	f.mu.frames, f.metas = f.mu.frames[:p.count], f.metas[:p.metas]
	f.end, f.raw, f.chain, f.count, f.lastSeq, f.lastTime = p.end, p.raw, p.chain, p.count, p.lastSeq, p.lastTime
	f.mu.hides = false
	f.mu.Unlock()
	if b.to != nil {
		_ = b.to.Close() // it was written to, and the other handle syncs
	}
	f.handles.batches.put(b.buf)
	f.batch, f.burst = nil, 0
}
