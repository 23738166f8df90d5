package history

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// A read that meets damage of a sealed file goes on through its parity: from then on, until the file is mended (mend.go), each column of it is held against its checksum, and made anew where it does not fit. So what a reader gets is right, or an error.

// guard is what is known of a file's parity.
type guard struct {
	through atomic.Pointer[sidecar] // that reads go through, as damage was met; nil: none
	asked   atomic.Bool             // damage was met since the owner looked
	healed  atomic.Bool             // it was mended since it was thinned last

	mu      sync.Mutex
	shape   erasure.Shape // of the sidecar; none: there is none, or it was not looked at yet
	bytes   int64         // of the sidecar; 0: there is none
	unsound bool          // it is damaged, and gets no sidecar
}

// set takes note of a sidecar, or that there is none.
func (g *guard) set(shape erasure.Shape, bytes int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.shape, g.bytes = shape, bytes
}

func (g *guard) get() (shape erasure.Shape, bytes int64, unsound bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.shape, g.bytes, g.unsound
}

func (g *guard) mark(unsound bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unsound = unsound
}

// mendable reports whether an error of a read may be one of the bytes, or of the device.
func mendable(err error) bool {
	for _, other := range []error{block.ErrClosed, block.ErrVersion, block.ErrNotFound, keyring.ErrNoKey, syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM} {
		if errors.Is(err, other) {
			return false
		}
	}
	return err != nil
}

// mended runs a read of a file, and once more through its parity if what it met is damage.
func (f *file) mended(read func() error) error {
	through := f.guard.through.Load() != nil
	err := read()
	if !mendable(err) || !f.isSealed() {
		return err
	}
	if !through {
		f.goThrough()
		if f.guard.through.Load() != nil {
			err = read()
		}
	}
	if mendable(err) {
		f.ask()
	}
	return err
}

func (f *file) isSealed() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sealed
}

// goThrough lets all reads of a file go through its parity, if it has any.
func (f *file) goThrough() {
	f.ask()
	sc, err := f.sidecar()
	if err != nil {
		return // the owner looks why, and says it
	}
	sc.release()
	f.guard.through.CompareAndSwap(nil, sc)
}

// ask tells the owner that a file is damaged.
func (f *file) ask() {
	if h := f.handles; !f.guard.asked.Swap(true) {
		h.asked.Add(1)
		if h.damaged != nil {
			h.damaged()
		}
	}
}

// readVia fills p from an offset of the file, through its parity where that is needed.
func (f *file) readVia(src vfs.File, p []byte, off int64) error {
	sc := f.guard.through.Load()
	if sc == nil {
		return vfs.ReadFull(src, p, off)
	}
	n, err := sc.readAt(src, p, off)
	if n > 0 && err == nil {
		f.handles.inline.Add(1)
	}
	if err != nil && vfs.ReadFull(src, p, off) == nil {
		return nil // the sidecar does not help, and the bytes may be right: the caller looks
	}
	return err
}

// openThrough lets an open read a file whose header or footer cannot be used through its sidecar, and reports whether there is one that belongs to it.
func (f *file) openThrough(store block.UUID, id uint32, size int64, header bool) bool {
	sc, err := openSidecar(f.handles.fs, beside(f.path, sidecarSuffix), store, id, 0)
	if err != nil {
		return false
	}
	defer sc.release()
	if header && sc.of.seed != f.seed || !header && !sc.proved(f.f, size) {
		return false
	}
	f.guard.through.Store(sc)
	f.ask()
	return true
}

// proved reports whether a sidecar belongs to a file whose header cannot be used. Its own removal was durable before the file was replaced (Stream.swap), so none should be there that does not; but one that somebody put there must not turn a newer file into an older one. So the
// end of the footer has to be the one that it names, or else some column has to pass. Of a file that has nothing to show, as the only sector of a small one is lost, the length is all that there is.
func (sc *sidecar) proved(src io.ReaderAt, size int64) bool {
	var seal [4]byte
	if n, _ := src.ReadAt(seal[:], sc.of.size-4); n == 4 && le.Uint32(seal[:]) == sc.of.seal {
		return true
	}
	buf, blank := make([]byte, erasure.ColumnSize), true
	for off := int64(0); off < sc.of.size; off += erasure.ColumnSize {
		b := buf[:min(erasure.ColumnSize, sc.of.size-off)]
		if n, _ := src.ReadAt(b, off); n < len(b) || zeroes(b) {
			continue
		}
		blank = false
		part := sc.parts[off/partSize]
		if part != nil && part.Passes(b, off%partSize) {
			return true
		}
	}
	return blank && size == sc.of.size
}

// index returns what a file says of what is in it.
func (f *file) index() (x index, err error) {
	err = f.mended(func() (err error) {
		x, err = f.readIndex()
		return err
	})
	return x, err
}

// payload returns the payload of a frame.
func (f *file) payload(r *frameRef) (b []byte, err error) {
	err = f.mended(func() (err error) {
		b, err = f.readPayload(r)
		return err
	})
	return b, err
}
