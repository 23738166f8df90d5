package secondcopy

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"slices"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// File is an open file of copies. Its methods may be called at the same time; the caller closes it when none runs any more.
type File struct {
	f       vfs.File
	entries []entry
	bytes   uint64
	reading sync.RWMutex // Close waits for reads
	closed  bool
}

// Open opens the file in a directory and reads its table, 32 B a frame, into memory. One that is not there is block.ErrNotFound, one that is damaged or of another store block.ErrCorrupt, a newer one block.ErrVersion.
func Open(fs vfs.FS, dir string, store block.UUID) (*File, error) {
	f, err := fs.Open(fs.PathJoin(dir, FileName))
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", FileName, block.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	entries, bytes, err := readTable(f, store)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{f: f, entries: entries, bytes: bytes}, nil
}

func readTable(f vfs.File, store block.UUID) ([]entry, uint64, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	size := uint64(info.Size())
	if size < trailerSize || size > MaxBytes {
		return nil, 0, &block.CorruptError{Source: FileName, Want: "frames, a table and a trailer", Got: fmt.Sprintf("%d B", size)}
	}
	trailer := make([]byte, trailerSize)
	if err := vfs.ReadFull(f, trailer, int64(size)-trailerSize); err != nil {
		return nil, 0, err
	}
	n, sum, err := parseTrailer(trailer, size, store)
	if err != nil {
		return nil, 0, err
	}
	table := make([]byte, n*entrySize)
	end := size - trailerSize - uint64(len(table))
	if err := vfs.ReadFull(f, table, int64(end)); err != nil {
		return nil, 0, err
	}
	entries, err := parseTable(table, sum, end)
	return entries, size, err
}

// Close closes the file.
func (f *File) Close() error {
	f.reading.Lock()
	defer f.reading.Unlock()
	f.closed = true
	return f.f.Close()
}

// Bytes is the length of the file.
func (f *File) Bytes() uint64 { return f.bytes }

// Places returns where the frames were copied from, in order of segments and offsets.
func (f *File) Places() []Place {
	places := make([]Place, len(f.entries))
	for i := range f.entries {
		places[i] = f.entries[i].Place
	}
	return places
}

// Of returns the frames that were copied from one segment.
func (f *File) Of(id block.SegmentID, generation uint32) (places []Place) {
	i, _ := slices.BinarySearchFunc(f.entries, id, func(e entry, id block.SegmentID) int { return int(min(1, max(-1, int64(e.Segment-id)))) })
	for ; i < len(f.entries) && f.entries[i].Segment == id; i++ {
		if f.entries[i].Generation == generation {
			places = append(places, f.entries[i].Place)
		}
	}
	return places
}

// Has reports whether there is a copy of a frame.
func (f *File) Has(p Place) bool { return f.find(p) != nil }

func (f *File) find(p Place) *entry {
	i, found := slices.BinarySearchFunc(f.entries, p, func(e entry, p Place) int {
		switch {
		case e.before(p):
			return -1
		case p.before(e.Place):
			return 1
		}
		return 0
	})
	if !found || f.entries[i].Place != p {
		return nil
	}
	return &f.entries[i]
}

// Read reads the copy of a frame into dst, which has its length, and reports whether there is one that is whole.
func (f *File) Read(dst []byte, p Place) bool {
	e := f.find(p)
	if e == nil || len(dst) != int(p.Len) {
		return false
	}
	f.reading.RLock()
	defer f.reading.RUnlock()
	if f.closed {
		return false
	}
	_, err := f.f.ReadAt(dst, int64(e.at))
	return err == nil && crc32.Checksum(dst, castagnoli) == e.crc
}

// Source reads a frame whose bytes were checked. Those that cannot be read are left out of the file; an error ends the writing of it.
type Source func(ctx context.Context, p Place) (stored []byte, ok bool, err error)

// Write makes the file anew out of frames in order of segments and offsets, durably: a crash leaves the earlier one. Memory: one frame, and 32 B for each. Readers of the earlier file may go on.
func Write(ctx context.Context, fs vfs.FS, dir string, store block.UUID, places []Place, read Source) (err error) {
	if len(places) > MaxFrames {
		return fmt.Errorf("%d frames, at most %d: %w", len(places), MaxFrames, block.ErrInvalid)
	}
	path := fs.PathJoin(dir, FileName)
	tmp := path + ".tmp"
	f, err := vfs.Create(fs, tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = fs.Remove(tmp)
		}
	}()
	if err := errors.Join(writeFrames(ctx, f, store, places, read), f.Close()); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return vfs.SyncDir(fs, dir)
}

// writeFrames writes the file from front to back.
func writeFrames(ctx context.Context, f vfs.File, store block.UUID, places []Place, read Source) error {
	entries := make([]entry, 0, len(places))
	at := uint64(0)
	for _, p := range places {
		b, ok, err := read(ctx, p)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		if _, err := f.Write(b); err != nil {
			return err
		}
		entries = append(entries, entry{p, crc32.Checksum(b, castagnoli), at})
		at += uint64(len(b))
	}
	if _, err := f.Write(encodeTable(store, entries)); err != nil {
		return err
	}
	return f.Sync()
}
