package vfs

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// View is a file mapped for reading: a copy out of it costs no system call, which makes many small reads of what the kernel has in memory several times cheaper. It shows
// what is written to the file by any means. Its methods may be called concurrently, but for Close.
type View struct{ mem []byte }

// Map maps the first size bytes of a file. A file without a descriptor, as those in memory are, gives an error that matches errors.ErrUnsupported.
func Map(f File, size int64) (*View, error) {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return nil, fmt.Errorf("map a file without descriptor: %w", errors.ErrUnsupported)
	}
	mem, err := unix.Mmap(int(fd), 0, int(size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map file: %w", err)
	}
	// Where memory is short the pages may be gone. The kernel would read 128 KiB for each of them that is missed, and drop others for it.
	if err := unix.Madvise(mem, unix.MADV_RANDOM); err != nil {
		return nil, errors.Join(fmt.Errorf("advise on mapped file: %w", err), unix.Munmap(mem))
	}
	return &View{mem}, nil
}

// ReadFull fills p with the bytes at off. Bytes beyond the view give io.ErrUnexpectedEOF; a device that fails, or a file that became shorter, an error instead of a signal.
func (v *View) ReadFull(p []byte, off int64) error {
	src, err := v.Slice(off, len(p))
	if err != nil {
		return err
	}
	return Guard(func() { copy(p, src) })
}

// Slice returns n bytes at off, to be read inside a Guard and before Close. Bytes beyond the view give io.ErrUnexpectedEOF.
func (v *View) Slice(off int64, n int) ([]byte, error) {
	if off < 0 || off > int64(len(v.mem)) || n > len(v.mem)-int(off) {
		return nil, io.ErrUnexpectedEOF
	}
	return v.mem[off:][:n:n], nil
}

// Guard runs read, which reads slices of views. A device that fails, or a file that became shorter, is an error instead of a signal: read ends where it met that.
func Guard(read func()) (err error) {
	defer func(before bool) {
		debug.SetPanicOnFault(before)
		if r := recover(); r != nil {
			fault, ok := r.(interface{ Addr() uintptr })
			if !ok {
				panic(r)
			}
			err = fmt.Errorf("read mapped file: fault at %#x: %w", fault.Addr(), unix.EIO)
		}
	}(debug.SetPanicOnFault(true))
	read()
	return nil
}

// Close ends the view. No read may be under way.
func (v *View) Close() error { return unix.Munmap(v.mem) }
