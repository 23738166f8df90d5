package journal

import (
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// ReadAt fills p, a whole number of sectors, with the payload sectors that lie one after the other at pos, and checks them against sums.
// The caller holds a Pin taken before it learned of pos. A mismatch gives a *block.CorruptError; a file that is gone an error that wraps
// block.ErrNotFound.
func (l *Log) ReadAt(p []byte, pos Pos, sums []uint32) error {
	return l.read(vfs.ReadFull, p, pos, sums)
}

// TryReadAt is ReadAt for a caller that must not wait for the device: it returns block.ErrWouldBlock unless the kernel has the bytes in
// memory.
func (l *Log) TryReadAt(p []byte, pos Pos, sums []uint32) error {
	return l.read(vfs.TryRead, p, pos, sums)
}

func (l *Log) read(readAt func(vfs.File, []byte, int64) error, p []byte, pos Pos, sums []uint32) error {
	if len(p) != len(sums)*sectorSize {
		return fmt.Errorf("read %d bytes of the log with %d sums: %w", len(p), len(sums), block.ErrInvalid)
	}
	f := l.lookup(pos.File())
	if f == nil {
		return fmt.Errorf("read %s: %w", fileSource(pos.File()), block.ErrNotFound)
	}
	if err := readAt(f.f, p, pos.Offset()); err != nil {
		if err == block.ErrWouldBlock {
			return err
		}
		return fmt.Errorf("read %s at %d+%d: %w", fileSource(pos.File()), pos.Offset(), len(p), err)
	}
	for i, want := range sums {
		sector := p[i*sectorSize : (i+1)*sectorSize]
		if got := crc32.Checksum(sector, castagnoli); got != want {
			return &block.CorruptError{
				Source: fileSource(pos.File()), Offset: pos.Offset() + int64(i)*sectorSize,
				Want: fmt.Sprintf("crc32c %08x", want), Got: fmt.Sprintf("%08x", got),
			}
		}
	}
	return nil
}

// lookup finds a file by its id.
func (l *Log) lookup(id uint32) *logFile {
	files := *l.files.Load()
	i, ok := slices.BinarySearchFunc(files, id, func(f *logFile, id uint32) int { return int(int64(f.header.ID) - int64(id)) })
	if !ok {
		return nil
	}
	return files[i]
}
