package vfs

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// ReadFull fills p with the bytes at off. A file that ends before p is full gives io.ErrUnexpectedEOF, with p filled up to there.
func ReadFull(f File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// nowaitMissing remembers that this kernel knows no preadv2, so that it is not asked again. It caches a fact about the machine; a file
// system that lacks RWF_NOWAIT is asked each time, since another one may have it.
var nowaitMissing atomic.Bool

// vecs lends the one-element vector of a TryRead, which would otherwise be allocated on each call.
var vecs = sync.Pool{New: func() any { return new([1]unix.Iovec) }}

// TryRead is ReadFull for a caller that must not wait for a device: it returns block.ErrWouldBlock, with p undefined, unless all bytes are
// in the page cache. Where the kernel or the file system cannot tell, the answer is always block.ErrWouldBlock. A file in memory is simply
// read.
func TryRead(f File, p []byte, off int64) error {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return ReadFull(f, p, off)
	}
	if nowaitMissing.Load() {
		return block.ErrWouldBlock
	}
	iov := vecs.Get().(*[1]unix.Iovec)
	defer func() {
		iov[0].Base = nil
		vecs.Put(iov)
	}()
	for len(p) > 0 {
		iov[0].Base = &p[0]
		iov[0].SetLen(len(p))
		n, err := rawVec(unix.SYS_PREADV2, fd, iov[:], off, unix.RWF_NOWAIT)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.ENOSYS:
			nowaitMissing.Store(true)
			return block.ErrWouldBlock
		case err == syscall.EAGAIN || err == syscall.EOPNOTSUPP:
			return block.ErrWouldBlock
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Cached reports whether the page cache has the byte at off. Where that cannot be told it says no; of a file in memory it says yes.
func Cached(f File, off int64) bool {
	b := bytesOfOne.Get().(*[1]byte)
	defer bytesOfOne.Put(b)
	return TryRead(f, b[:], off) == nil
}

// bytesOfOne lends what Cached reads into, which would otherwise be allocated on each call.
var bytesOfOne = sync.Pool{New: func() any { return new([1]byte) }}

// Prefetch begins to read n bytes at off into the page cache and does not wait for them. It is a hint: nothing comes of it where the kernel, the file system or a file in memory cannot.
func Prefetch(f File, off, n int64) {
	if fd := f.Fd(); fd != pebblevfs.InvalidFd {
		_ = unix.Fadvise(int(fd), off, n, unix.FADV_WILLNEED)
	}
}
