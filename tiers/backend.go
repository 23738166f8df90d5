package tiers

import (
	"fmt"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Backend is one place where segments live, each under a key. Keys are made by SegmentKey; one that a backend cannot hold is block.ErrInvalid.
// All methods may be called at once from any number of goroutines.
//
// A segment is created, appended to, and from then on only read until it is deleted; its key is never used again for other bytes. After a power loss a backend
// holds every byte that was synced and may hold any part of what was not, deleted segments and files cut short included: it
// is the caller who knows which segments count.
type Backend interface {
	// Create starts a new empty segment. An existing key is block.ErrExists. The segment is visible to Open and List at once, but exists for good only after Writer.Sync:
	// there is no temporary name, since nothing refers to a segment before its first sync.
	Create(key string) (Writer, error)
	// Update opens an existing segment to be sealed in place after a crash. A missing one is block.ErrNotFound; a backend that
	// cannot overwrite returns an error that matches errors.ErrUnsupported.
	Update(key string) (Updater, error)
	// Open opens a segment for reading; it may still be growing. A missing one is block.ErrNotFound.
	Open(key string) (Reader, error)
	// Delete removes a segment. Readers that are open keep reading it. A missing segment is not an error. A power loss may
	// bring a deleted segment back until the next sync of the folder.
	Delete(key string) error
	// List calls visit for each segment, in no order, until visit returns an error, which it returns. Segments created or deleted
	// meanwhile may be missed. It does not name files that are not segments.
	List(visit func(key string, sizeBytes int64) error) error
	// Capacity reports the room for segments, or an error that matches errors.ErrUnsupported.
	Capacity() (Capacity, error)
	// Sync makes earlier creations and deletions durable.
	Sync() error
}

// Capacity is the room of a backend, in bytes. Several backends may share one file system and then each report all of it.
type Capacity struct {
	TotalBytes int64
	FreeBytes  int64 // that this process may still use
}

// Writer appends to one new segment. It belongs to one goroutine.
type Writer interface {
	// Write appends. Readers of the segment see the bytes after the next Sync; until then they may see a part of them, and up to a block of zeroes behind. A full
	// backend is block.ErrNoSpace, of this call or of the next one.
	io.Writer
	// Sync makes all written bytes and the segment's name durable. The segment then has exactly those bytes.
	Sync() error
	// Close releases the handle. It neither syncs nor deletes.
	io.Closer
}

// Updater overwrites parts of one segment. It belongs to one goroutine.
type Updater interface {
	io.ReaderAt
	io.WriterAt
	Size() (int64, error) // bytes
	Sync() error
	io.Closer
}

// Reader reads one segment. All methods but Close may be called at once.
type Reader interface {
	// ReadAt follows io.ReaderAt.
	io.ReaderAt
	// TryReadAt fills p with the bytes at off if that needs no wait for a device; otherwise it returns block.ErrWouldBlock, with p undefined.
	// An end before p is full is io.ErrUnexpectedEOF.
	TryReadAt(p []byte, off int64) error
	// Size returns the present size in bytes.
	Size() (int64, error)
	io.Closer
}

// Prefetcher is a Reader that can begin to bring bytes into memory without waiting for them.
type Prefetcher interface {
	// Prefetch is a hint: what cannot be had is no error.
	Prefetch(off, n int64)
}

// SegmentKey returns the key of a segment: 16 hexadecimal digits of its id, 8 of its generation.
func SegmentKey(id block.SegmentID, generation uint32) string {
	return fmt.Sprintf("%016x.%08x.seg", uint64(id), generation)
}

// ParseSegmentKey is the inverse of SegmentKey; ok is false for any other string.
func ParseSegmentKey(key string) (id block.SegmentID, generation uint32, ok bool) {
	var n uint64
	if len(key) != 29 {
		return 0, 0, false
	}
	if _, err := fmt.Sscanf(key, "%016x.%08x.seg", &n, &generation); err != nil || SegmentKey(block.SegmentID(n), generation) != key {
		return 0, 0, false
	}
	return block.SegmentID(n), generation, true
}
