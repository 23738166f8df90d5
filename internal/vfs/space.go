package vfs

import (
	"errors"
	"fmt"
	"syscall"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Preallocate gives f the length size, reading as zeroes where nothing was written, and allocates its blocks, so that later writes inside
// it neither fail for lack of space nor change its length. Existing bytes stay. A file system that cannot allocate ahead (copy-on-write,
// network) only gets the length. A file in memory is left as it is. The length is durable after DataSync. A full disk gives
// block.ErrNoSpace.
func Preallocate(f File, size int64) error {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return f.Preallocate(0, size)
	}
	err := retry(func() error { return unix.Fallocate(int(fd), 0, 0, size) })
	if isAny(err, syscall.EOPNOTSUPP, syscall.ENOSYS) {
		if st, serr := f.Stat(); serr != nil || st.Size() >= size {
			return serr
		}
		err = retry(func() error { return unix.Ftruncate(int(fd), size) })
	}
	if err != nil {
		return fmt.Errorf("allocate %d bytes: %w", size, asNoSpace(err))
	}
	return nil
}

// PunchHole gives the blocks of [off, off+n) back to the file system; the range reads as zeroes and the length of f stays. A file system
// without holes gives an error that matches errors.ErrUnsupported. In a file in memory the range is overwritten with zeroes.
func PunchHole(f File, off, n int64) error {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return zeroRange(f, off, n)
	}
	err := retry(func() error {
		return unix.Fallocate(int(fd), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
	if err != nil {
		return fmt.Errorf("punch hole of %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// zeroRange writes zeroes over the part of [off, off+n) that lies inside the file.
func zeroRange(f File, off, n int64) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	zeroes := make([]byte, 64<<10)
	for end := min(off+n, st.Size()); off < end; {
		k := min(end-off, int64(len(zeroes)))
		if _, err := f.WriteAt(zeroes[:k], off); err != nil {
			return err
		}
		off += k
	}
	return nil
}

// retry repeats a system call that a signal interrupted.
func retry(call func() error) error {
	for {
		if err := call(); err != syscall.EINTR {
			return err
		}
	}
}

// isAny reports whether err matches one of the given errno values.
func isAny(err error, errnos ...syscall.Errno) bool {
	for _, e := range errnos {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
