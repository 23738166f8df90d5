package vfs

import (
	"fmt"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"
)

// Uncache asks the kernel to forget the clean pages that it holds of f, so that reads come from the device. A file in memory is left as it is.
func Uncache(f File) error {
	fd := f.Fd()
	if fd == pebblevfs.InvalidFd {
		return nil
	}
	if err := retry(func() error { return unix.Fadvise(int(fd), 0, 0, unix.FADV_DONTNEED) }); err != nil {
		return fmt.Errorf("drop cached pages: %w", err)
	}
	return nil
}
