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
	return l.read(vfs.ReadFull, p, pos, sums, true)
}

// TryReadAt is ReadAt for a caller that must not wait for the device: it returns block.ErrWouldBlock unless the kernel has the bytes in
// memory.
func (l *Log) TryReadAt(p []byte, pos Pos, sums []uint32) error {
	return l.read(vfs.TryRead, p, pos, sums, false)
}

// Prefetch begins to bring n bytes at pos into the kernel's memory. It is a hint. The caller holds a Pin taken before it learned of pos.
func (l *Log) Prefetch(pos Pos, n int64) {
	if f := l.lookup(pos.File()); f != nil {
		vfs.Prefetch(f.source(), pos.Offset(), n)
	}
}

// Cached reports whether the kernel has the first and the last byte of n bytes at pos in memory, which is a hint for all of them. The caller holds a Pin taken before it learned of pos.
func (l *Log) Cached(pos Pos, n int64) bool {
	f := l.lookup(pos.File())
	return f != nil && vfs.Cached(f.source(), pos.Offset()) && (n <= sectorSize || vfs.Cached(f.source(), pos.Offset()+n-1))
}

// AroundLeast is the shortest read that is worth to go around the page cache, in bytes.
const AroundLeast = 128 << 10

// mappedMost is the longest read that is worth a copy out of a mapped file: longer ones gain from the kernel's read-ahead when they go to the device, in bytes.
const mappedMost = 64 << 10

// ReadMapped is ReadAt for whoever reads much in small pieces: it copies out of the mapped file.
func (l *Log) ReadMapped(p []byte, pos Pos, sums []uint32) error {
	if len(p) > mappedMost {
		return l.ReadAt(p, pos, sums)
	}
	f := l.lookup(pos.File())
	if f == nil {
		return l.noFile(pos)
	}
	view := f.view()
	if view == nil {
		return l.ReadAt(p, pos, sums)
	}
	return l.read(func(_ vfs.File, p []byte, off int64) error { return view.ReadFull(p, off) }, p, pos, sums, true)
}

// ReadAround is ReadAt for whoever reads once what streams have left: it goes around the page cache where that is how the bytes came, and p is aligned.
func (l *Log) ReadAround(p []byte, pos Pos, sums []uint32) error {
	f := l.lookup(pos.File())
	if f == nil {
		return l.noFile(pos)
	}
	if len(p) < AroundLeast || !vfs.Aligned(p, pos.Offset()) || f.vault != nil || l.dirs != nil {
		return l.ReadMapped(p, pos, sums)
	}
	direct := f.around()
	if direct == nil {
		return l.ReadMapped(p, pos, sums)
	}
	err := l.read(func(_ vfs.File, p []byte, off int64) error { return direct.ReadFull(p, off) }, p, pos, sums, true)
	if err != nil {
		return l.ReadAt(p, pos, sums) // whatever it was, it is looked at once more
	}
	return nil
}

func (l *Log) read(readAt func(vfs.File, []byte, int64) error, p []byte, pos Pos, sums []uint32, wait bool) error {
	if len(p) != len(sums)*sectorSize {
		return fmt.Errorf("read %d bytes of the log with %d sums: %w", len(p), len(sums), block.ErrInvalid)
	}
	f := l.lookup(pos.File())
	if f == nil {
		return l.noFile(pos)
	}
	err := readAt(f.source(), p, pos.Offset())
	if err == block.ErrWouldBlock {
		return err
	}
	if err != nil {
		err = fmt.Errorf("read %s at %d+%d: %w", fileSource(pos.File()), pos.Offset(), len(p), err)
	} else {
		err = verify(p, pos, sums)
	}
	if err != nil && f.home != nil {
		if !wait {
			return block.ErrWouldBlock
		}
		err = l.readCopies(f, p, pos, sums, err)
	}
	if f.vault == nil || err != nil {
		return err
	}
	if err = f.vault.open(p, pos.File(), pos.Offset()); err == nil || f.home == nil {
		return err
	}
	// A checksum that fits proves nothing against who has the disk: another directory may have what was written.
	if !wait {
		return block.ErrWouldBlock
	}
	if err = l.readCopies(f, p, pos, sums, err); err == nil {
		err = f.vault.open(p, pos.File(), pos.Offset())
	}
	return err
}

// verify checks sectors that were read from pos on.
func verify(p []byte, pos Pos, sums []uint32) error {
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

// noFile is the error of a position whose file is not there.
func (l *Log) noFile(pos Pos) error {
	if l.closed.Load() {
		return fmt.Errorf("read %s: %w", fileSource(pos.File()), block.ErrClosed)
	}
	return fmt.Errorf("read %s: %w", fileSource(pos.File()), block.ErrNotFound)
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
