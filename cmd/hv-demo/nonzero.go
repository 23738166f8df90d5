package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// nonZero counts the bytes of the 4 KiB blocks of an image that hold anything but zeroes. Holes are not read.
func nonZero(ctx context.Context, path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var count uint64
	zero, buffer := make([]byte, block.Size), make([]byte, 1<<20)
	for at := int64(0); ctx.Err() == nil; {
		at, err = nextData(f, at)
		if err != nil {
			return 0, fmt.Errorf("look for data in %s: %w", path, err)
		}
		n, err := f.ReadAt(buffer, at)
		for done := 0; done < n; done += block.Size {
			if one := buffer[done:min(n, done+block.Size)]; !bytes.Equal(one, zero[:len(one)]) {
				count += uint64(len(one))
			}
		}
		if errors.Is(err, io.EOF) {
			return count, nil
		}
		if err != nil {
			return 0, fmt.Errorf("count data of %s: %w", path, err)
		}
		at += int64(n)
	}
	return 0, ctx.Err()
}

// nextData returns the offset of the first block at or behind off that is not in a hole, or the end of the file.
func nextData(f *os.File, off int64) (int64, error) {
	next, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return f.Seek(0, io.SeekEnd)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return off, nil // a file system that does not tell
	}
	return next &^ (block.Size - 1), err
}
