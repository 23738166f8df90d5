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
