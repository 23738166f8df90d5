package journal

import (
	"errors"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// FlagStream marks a Write that is part of a stream: a long run of large writes (docs/rfc/0028). Such records have room of their own beside Options.CapBytes, Options.StreamBytes, and go around the page
// cache where that can be, since what is in them is seldom read before it goes down; payload that lies in aligned memory is not copied for that, as it begins at the border of a page (alignedWrite). It is the
// one bit of Record.Flags that is the log's own.
const FlagStream uint16 = 1 << 15

// streamBytes is how much a record takes as part of a stream, up to a page.
func (r *Record) streamBytes() int64 {
	if isStream(r.Kind, r.Flags) {
		return roundUp(recordSize+int64(len(r.Sums))*descSize) + int64(r.payloadLen)
	}
	return 0
}

// closedStream is how much of a file that ends at end counts as stream once nothing is appended to it any more: what it could not take of a stream is the stream's, too.
func (f *logFile) closedStream() int64 {
	if 2*f.stream < f.end {
		return f.stream
	}
	return f.stream + f.header.Capacity - f.end
}

// StreamRoom is how many bytes records with FlagStream may still take without counting against Options.CapBytes.
func (l *Log) StreamRoom() int64 { return l.opts.StreamBytes - l.streamLive.Load() }

// charged is how much of so many live bytes counts against Options.CapBytes, if so many of them are streams'.
func (l *Log) charged(live, stream int64) int64 {
	return max(0, live-min(stream, l.opts.StreamBytes))
}

// bypass writes long batches around the page cache. It belongs to the appender.
type bypass struct {
	writer *vfs.DirectWriter
	off    atomic.Bool  // the file system cannot
	last   atomic.Int64 // when a stream was written, in ns since 1970

	// The bytes of the page that the last write around the cache has begun: the cache does not have them.
	file *logFile
	end  int64
	tail [pageSize]byte
}

// partial returns the bytes of the file's last page up to its end if the page cache does not have them.
func (b *bypass) partial(f *logFile, end int64) []byte {
	if b.file != f || b.end != end {
		return nil
	}
	return b.tail[:end%pageSize]
}

// writeAround writes a.vec behind the end of the active file, around the page cache if that can be.
func (l *Log) writeAround(f *logFile, off int64) error {
	b := &l.app.bypass
	f.streamed.Store(true)
	direct := l.directOf(f)
	if direct == nil {
		l.app.pad(f)
		return l.writeThrough(f, off)
	}
	b.last.Store(time.Now().UnixNano())
	if b.writer == nil {
		b.writer = vfs.NewDirectWriter()
	}
	if head := off % pageSize; b.file != f || b.end != off {
		if err := vfs.ReadFull(f.f, b.tail[:head], off-head); err != nil {
			return err
		}
	}
	b.file = nil
	err := b.writer.WriteVec(direct, b.tail[:off%pageSize], l.app.vec, off, b.tail[:])
	if errors.Is(err, syscall.EINVAL) {
		b.off.Store(true)
		l.app.pad(f)
		return l.write(f, l.app.vec, off) // all of it, as it was before
	}
	if err == nil {
		b.file, b.end = f, f.end
	}
	return err
}

// Streamed reports whether a position lies in a file that a stream was written to. The page cache may lack what lies there, so that reading many pieces one by one means a wait for the device each: see Prefetch.
func (l *Log) Streamed(pos Pos) bool {
	f := l.lookup(pos.File())
	return f != nil && f.streamed.Load()
}

// directOf returns the handle around the page cache of a file, or nil. A log in several directories has none: what is appended there waits for the slowest of them anyway.
func (l *Log) directOf(f *logFile) *vfs.Direct {
	if l.dirs != nil || l.app.bypass.off.Load() {
		return nil
	}
	return f.around()
}

// writeThrough writes a.vec behind the end of the active file, through the page cache. A page that was begun around the cache is written as a whole, so that the kernel need not read it first.
func (l *Log) writeThrough(f *logFile, off int64) error {
	a := &l.app
	if begun := a.bypass.partial(f, off); len(begun) > 0 {
		off -= int64(len(begun))
		a.vec = append(a.vec, nil)
		copy(a.vec[1:], a.vec)
		a.vec[0] = begun
	}
	err := l.write(f, a.vec, off)
	if err == nil {
		a.bypass.file = nil
	}
	return err
}
