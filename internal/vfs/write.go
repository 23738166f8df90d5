package vfs

import (
	"fmt"
	"io"
	"sync"
	"syscall"
	"unsafe"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxVec is the most buffers that one pwritev accepts (IOV_MAX of Linux).
const maxVec = 1024

// gather is the scratch of one WriteVec, pooled so that the write path does not allocate.
type gather struct {
	iov []unix.Iovec
	buf []byte // concatenation, for files without a descriptor
}

var gathers = sync.Pool{New: func() any { return new(gather) }}

// WriteVec writes the buffers one after the other at off, as far as the file system allows with one system call: a reader may see a part of
// a write that spans more than 1,024 buffers. On an error an unknown part has been written. It keeps no buffer.
func WriteVec(f File, bufs [][]byte, off int64) error {
	g := gathers.Get().(*gather)
	defer gathers.Put(g)
	if fd := f.Fd(); fd != pebblevfs.InvalidFd {
		return g.pwritev(fd, bufs, off)
	}
	g.buf = g.buf[:0]
	for _, b := range bufs {
		g.buf = append(g.buf, b...)
	}
	n, err := f.WriteAt(g.buf, off)
	if err == nil && n < len(g.buf) {
		err = io.ErrShortWrite
	}
	if cap(g.buf) > 1<<20 {
		g.buf = nil // one large write must not pin its size in the pool
	}
	return asNoSpace(err)
}

// pwritev writes bufs to a descriptor, in pieces of at most maxVec buffers, and goes on after short writes.
func (g *gather) pwritev(fd uintptr, bufs [][]byte, off int64) error {
	g.iov = g.iov[:0]
	for _, b := range bufs {
		if len(b) > 0 {
			v := unix.Iovec{Base: &b[0]}
			v.SetLen(len(b))
			g.iov = append(g.iov, v)
		}
	}
	defer clear(g.iov) // do not keep the caller's memory alive from the pool
	iov := g.iov
	for len(iov) > 0 {
		n, err := rawVec(unix.SYS_PWRITEV, fd, iov[:min(len(iov), maxVec)], off, 0)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return asNoSpace(err)
		}
		if n == 0 {
			return io.ErrShortWrite
		}
		off += int64(n)
		iov = skip(iov, n)
	}
	return nil
}

// skip drops the first n bytes of iov.
func skip(iov []unix.Iovec, n int) []unix.Iovec {
	for len(iov) > 0 && uint64(n) >= uint64(iov[0].Len) {
		n -= int(iov[0].Len)
		iov = iov[1:]
	}
	if n > 0 {
		iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
		iov[0].SetLen(int(iov[0].Len) - n)
	}
	return iov
}

// rawVec makes a p{read,write}v[2] call. The wrappers of x/sys allocate when given more than eight buffers.
func rawVec(trap, fd uintptr, iov []unix.Iovec, off int64, flags uintptr) (int, error) {
	n, _, errno := syscall.Syscall6(trap, fd, uintptr(unsafe.Pointer(&iov[0])), uintptr(len(iov)), uintptr(off), uintptr(uint64(off)>>32), flags)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// DataSync makes the bytes of f, and what is needed to read them back, durable.
func DataSync(f File) error { return f.SyncData() }

// asNoSpace adds block.ErrNoSpace to the errors that mean a full disk or an exhausted quota.
func asNoSpace(err error) error {
	if err == nil {
		return nil
	}
	if isAny(err, syscall.ENOSPC, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return err
}
