package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Source is content that can be backed up.
type Source interface {
	// Size is how many bytes the content has.
	Size() uint64
	// Region fills p with the region at off, or returns zero if it knows without reading that all of it is zero. Regions are asked for once each, in order, by one goroutine.
	Region(ctx context.Context, p []byte, off uint64) (zero bool, err error)
}

// File is a raw image or a block device as a Source.
type File struct {
	f    *os.File
	size uint64
}

// OpenFile opens a raw image or a block device for reading.
func OpenFile(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() && info.Mode()&os.ModeDevice == 0 {
		err = fmt.Errorf("%s is neither a file nor a block device: %w", path, block.ErrInvalid)
	}
	var end int64
	if err == nil {
		end, err = f.Seek(0, io.SeekEnd) // which knows the size of devices too
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL) // only a hint
	return &File{f: f, size: uint64(end)}, nil
}

// Size implements Source.
func (s *File) Size() uint64 { return s.size }

// Close closes the file.
func (s *File) Close() error { return s.f.Close() }

// Region implements Source. Holes of a sparse file are not read.
func (s *File) Region(_ context.Context, p []byte, off uint64) (zero bool, err error) {
	data, err := s.f.Seek(int64(off), unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO), err == nil && uint64(data) >= off+uint64(len(p)):
		return true, nil
	case err != nil && !errors.Is(err, unix.EINVAL): // a device knows no holes
		return false, err
	}
	if n, err := s.f.ReadAt(p, int64(off)); n < len(p) {
		if errors.Is(err, io.EOF) {
			err = fmt.Errorf("%s became shorter while it was read: %w", s.f.Name(), io.ErrUnexpectedEOF)
		}
		return false, err
	}
	return false, nil
}
