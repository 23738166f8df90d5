package vfs

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"syscall"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

const (
	directPiece = 256 << 10 // bytes that go to the device with one system call
	directAhead = 4         // pieces that are filled or under way at once
	directHands = 2         // goroutines that write them
)

// ErrNotDirect says that a file cannot be written around the page cache; nothing was written.
var ErrNotDirect = errors.New("file system without O_DIRECT")

// Direct is a second handle of a file that writes around the page cache. Reads through the other handle see what it has written.
type Direct struct{ fd int }

// OpenDirect opens a file again, whatever its name is by now. It returns an error that matches ErrNotDirect where that cannot be.
func OpenDirect(f File) (*Direct, error) {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return nil, ErrNotDirect
	}
	own, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(fd)), unix.O_WRONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotDirect, err)
	}
	return &Direct{own}, nil
}

// Close releases the handle.
func (d *Direct) Close() error { return unix.Close(d.fd) }

func (d *Direct) writeAt(p []byte, off int64) error {
	for len(p) > 0 {
		n, err := unix.Pwrite(d.fd, p, off)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return asNoSpace(err)
		case n <= 0 || n%directBlock != 0:
			return io.ErrShortWrite
		default:
			p, off = p[n:], off+int64(n)
		}
	}
	return nil
}

// DirectWriter lays scattered bytes out in aligned buffers, 1 MiB together, and writes them through Directs: while some are on their way to the device the next are filled. A long write costs a fifth of the CPU
// that it costs through the page cache into new pages, and leaves there what is read again. It belongs to one goroutine at a time.
type DirectWriter struct {
	free   chan []byte
	work   chan directWork
	failed chan error
}

type directWork struct {
	to  *Direct
	buf []byte
	n   int
	off int64
}

// NewDirectWriter starts the writer's goroutines, which end with Close.
func NewDirectWriter() *DirectWriter {
	w := &DirectWriter{free: make(chan []byte, directAhead), work: make(chan directWork, directAhead), failed: make(chan error, directAhead)}
	for range directAhead {
		w.free <- alignedBuffer(directPiece)
	}
	for range directHands {
		go func() {
			for k := range w.work {
				if err := k.to.writeAt(k.buf[:k.n], k.off); err != nil {
					select {
					case w.failed <- err:
					default: // the first ones tell enough
					}
				}
				w.free <- k.buf
			}
		}()
	}
	return w
}

// Close ends the goroutines. No write may be under way.
func (w *DirectWriter) Close() { close(w.work) }

// WriteVec writes the buffers one after the other at off, and zeroes up to the end of the last page. head holds the bytes of the file between the beginning of off's page and off, which are written once more. It
// copies the bytes of the last page, if they do not fill it, to tail, which has 4096 bytes, and keeps no buffer. On an error an unknown part has been written. An error that matches syscall.EINVAL says that
// the file system opened the file and cannot write it like this.
func (w *DirectWriter) WriteVec(to *Direct, head []byte, bufs [][]byte, off int64, tail []byte) error {
	at := off - int64(len(head))
	if at%directBlock != 0 || len(head) >= directBlock {
		return fmt.Errorf("write around the page cache at %d after %d bytes: %w", off, len(head), syscall.EINVAL)
	}
	buf := <-w.free
	n := copy(buf, head)
	for _, b := range bufs {
		for len(b) > 0 {
			k := copy(buf[n:], b)
			n, b = n+k, b[k:]
			if n == len(buf) {
				w.work <- directWork{to, buf, n, at}
				at += int64(n)
				buf, n = <-w.free, 0
			}
		}
	}
	part := n % directBlock
	copy(tail, buf[n-part:n])
	if end := (n + directBlock - 1) &^ (directBlock - 1); end > 0 {
		clear(buf[n:end])
		w.work <- directWork{to, buf, end, at}
	} else {
		w.free <- buf
	}
	return w.land()
}

// land waits until all pieces are written, and returns the first error.
func (w *DirectWriter) land() error {
	var mine [directAhead][]byte
	for i := range mine {
		mine[i] = <-w.free
	}
	for _, b := range mine {
		w.free <- b
	}
	select {
	case err := <-w.failed:
		for {
			select {
			case <-w.failed:
			default:
				return err
			}
		}
	default:
		return nil
	}
}
