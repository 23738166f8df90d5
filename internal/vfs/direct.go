package vfs

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"syscall"
	"unsafe"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

const (
	directStage = 1 << 20   // bytes that are laid out in aligned memory before they are written
	directHalf  = 512 << 10 // a write of twice as much is made by two system calls at once: a device works at both
)

// ErrNotDirect says that a file cannot be written around the page cache; nothing was written.
var ErrNotDirect = errors.New("file system without O_DIRECT")

// Direct is a second handle of a file that reads and writes around the page cache. Both handles see what the other has written.
type Direct struct{ fd int }

// OpenDirect opens a file again, whatever its name is by now. It returns an error that matches ErrNotDirect where that cannot be.
func OpenDirect(f File) (*Direct, error) {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return nil, ErrNotDirect
	}
	own, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(fd)), unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotDirect, err)
	}
	return &Direct{own}, nil
}

// Close releases the handle.
func (d *Direct) Close() error { return unix.Close(d.fd) }

// Aligned reports whether so many bytes at off can be read into p.
func Aligned(p []byte, off int64) bool {
	return (uint64(len(p))|uint64(off)|uint64(uintptr(unsafe.Pointer(unsafe.SliceData(p)))))%directBlock == 0
}

// ReadFull fills p, which is aligned, with the bytes at off. A file that ends before p is full gives io.ErrUnexpectedEOF.
func (d *Direct) ReadFull(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pread(d.fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n <= 0 || n%directBlock != 0:
			return io.ErrUnexpectedEOF
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// WriteFull writes p, which is aligned, at off. An error that matches syscall.EINVAL says that the file system opened the file and cannot write it like this.
func (d *Direct) WriteFull(p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	v := unix.Iovec{Base: unsafe.SliceData(p)}
	v.SetLen(len(p))
	return d.writev([]unix.Iovec{v}, off)
}

// writev writes whole blocks out of aligned memory.
func (d *Direct) writev(iov []unix.Iovec, off int64) error {
	for len(iov) > 0 {
		n, err := rawVec(unix.SYS_PWRITEV, uintptr(d.fd), iov[:min(len(iov), maxVec)], off, 0)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return asNoSpace(err)
		case n <= 0 || n%directBlock != 0:
			return io.ErrShortWrite
		default:
			off += int64(n)
			iov = skip(iov, n)
		}
	}
	return nil
}

// DirectWriter writes scattered bytes through Directs. What lies in aligned memory and goes to an aligned place is not copied; the rest is laid out in 1 MiB of aligned memory first. A long write costs a fifth of
// the CPU that it costs through the page cache into new pages, and leaves there what is read again. It belongs to one goroutine at a time.
type DirectWriter struct {
	stage []byte
	iov   []unix.Iovec
	other chan directHand
	done  chan error
}

// directHand is what the writer's goroutine writes.
type directHand struct {
	to  *Direct
	iov []unix.Iovec
	off int64
}

// NewDirectWriter starts the writer's goroutine, which ends with Close.
func NewDirectWriter() *DirectWriter {
	w := &DirectWriter{stage: AlignedBuffer(directStage), other: make(chan directHand), done: make(chan error)}
	go func() {
		for k := range w.other {
			w.done <- k.to.writev(k.iov, k.off)
		}
	}()
	return w
}

// Close ends the goroutine. No write may be under way.
func (w *DirectWriter) Close() { close(w.other) }

// directRun is one WriteVec under way.
type directRun struct {
	w     *DirectWriter
	to    *Direct
	at    int64 // where the first of the gathered bytes goes
	bytes int   // gathered
	stage int   // of them, laid out
}

// WriteVec writes the buffers one after the other at off, and zeroes up to the end of the last block of 4096 bytes. head holds the bytes of the file between the beginning of off's block and off, which are
// written once more. It copies the bytes of the last block, if they do not fill it, to tail, which has 4096 bytes, and keeps no buffer. On an error an unknown part has been written. An error that matches
// syscall.EINVAL says that the file system opened the file and cannot write it like this.
func (w *DirectWriter) WriteVec(to *Direct, head []byte, bufs [][]byte, off int64, tail []byte) error {
	r := directRun{w: w, to: to, at: off - int64(len(head))}
	if r.at%directBlock != 0 || len(head) >= directBlock {
		return fmt.Errorf("write around the page cache at %d after %d bytes: %w", off, len(head), syscall.EINVAL)
	}
	w.iov = w.iov[:0]
	defer func() { clear(w.iov[:cap(w.iov)]) }() // the caller's memory is his again
	if err := r.copied(head); err != nil {
		return err
	}
	for _, b := range bufs {
		if err := r.add(b); err != nil {
			return err
		}
	}
	if part := r.bytes % directBlock; part > 0 {
		copy(tail, w.stage[r.stage-part:r.stage])
		if err := r.copied(zeroBlock[part:]); err != nil {
			return err
		}
	}
	return r.flush()
}

var zeroBlock [directBlock]byte

// add gathers a buffer: as it is, as far as it is aligned, or copied.
func (r *directRun) add(b []byte) error {
	if len(b) >= directBlock && r.bytes%directBlock == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(b)))%directBlock == 0 {
		whole := b[:len(b)&^(directBlock-1)]
		r.append(whole)
		b = b[len(whole):]
	}
	return r.copied(b)
}

// copied gathers a copy of a buffer.
func (r *directRun) copied(b []byte) error {
	for len(b) > 0 {
		n := copy(r.w.stage[r.stage:], b)
		r.append(r.w.stage[r.stage:][:n])
		r.stage += n
		b = b[n:]
		if r.stage == directStage {
			if err := r.flush(); err != nil {
				return err
			}
		}
	}
	return nil
}

// append gathers bytes that stay where they are. Those that follow the last ones in memory lengthen its vector: each must be whole blocks in the end.
func (r *directRun) append(b []byte) {
	if n := len(r.w.iov); n > 0 {
		last := &r.w.iov[n-1]
		if unsafe.Add(unsafe.Pointer(last.Base), last.Len) == unsafe.Pointer(unsafe.SliceData(b)) && r.bytes%directBlock != 0 {
			last.SetLen(int(last.Len) + len(b))
			r.bytes += len(b)
			return
		}
	}
	v := unix.Iovec{Base: unsafe.SliceData(b)}
	v.SetLen(len(b))
	r.w.iov = append(r.w.iov, v)
	r.bytes += len(b)
}

// flush writes what is gathered, which is whole blocks. A long run is written by two system calls at once.
func (r *directRun) flush() error {
	w := r.w
	if r.bytes == 0 {
		return nil
	}
	var err error
	if r.bytes >= 2*directHalf {
		first, second, n := r.halves()
		w.other <- directHand{r.to, second, r.at + int64(n)}
		err = r.to.writev(first, r.at)
		err = errors.Join(err, <-w.done)
	} else {
		err = r.to.writev(w.iov, r.at)
	}
	r.at += int64(r.bytes)
	r.bytes, r.stage, w.iov = 0, 0, w.iov[:0]
	return err
}

// halves cuts a long run in two, in the middle of a vector if need be, and returns the bytes of the first. Vectors are whole blocks.
func (r *directRun) halves() (first, second []unix.Iovec, n int) {
	w := r.w
	k, want := 0, r.bytes/2&^(directBlock-1)
	for n+int(w.iov[k].Len) <= want {
		n += int(w.iov[k].Len)
		k++
	}
	if rest := want - n; rest > 0 {
		v := w.iov[k]
		w.iov = append(w.iov, unix.Iovec{})
		copy(w.iov[k+1:], w.iov[k:])
		w.iov[k].SetLen(rest)
		w.iov[k+1] = unix.Iovec{Base: (*byte)(unsafe.Add(unsafe.Pointer(v.Base), rest))}
		w.iov[k+1].SetLen(int(v.Len) - rest)
		n += rest
		k++
	}
	return w.iov[:k], w.iov[k:], n
}
