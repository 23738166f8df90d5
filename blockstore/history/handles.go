package history

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// maxIdle is how many files stay open that nobody uses at the moment.
const maxIdle = 64

// handles opens files for those who read them. A volume has a file for each quarter of an hour of its window, or more: far more than a process can have open.
type handles struct {
	fs   vfs.FS
	pack packing

	damaged func()        // somebody met damage of a file; may be nil, and does not wait
	asked   atomic.Int64  // files with guard.asked
	inline  atomic.Uint64 // reads that parity answered
	batches batches

	mu   sync.Mutex
	idle []*file // open and used by nobody, the one first that was used longest ago
}

// opened is a file's handle.
type opened struct {
	f     vfs.File   // nil: it is not open
	old   []vfs.File // of a file that was mended: the damaged one, until its last user is gone
	users int        // its appender and those who read at the moment
	gone  bool       // it was dropped: nobody opens it again, and the last user closes it
}

// begin gives a file the handle that it was made or opened with, for its appender until end.
func (h *handles) begin(f *file, handle vfs.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.f, f.opened = handle, opened{f: handle, users: 1}
}

// end takes the appender's handle away.
func (h *handles) end(f *file) {
	if f.f != nil {
		f.f = nil
		h.put(f)
	}
}

// take returns a handle to read a file with, until put.
func (h *handles) take(f *file) (vfs.File, error) {
	h.mu.Lock()
	handle, gone := h.useLocked(f), f.opened.gone
	h.mu.Unlock()
	if handle != nil {
		return handle, nil
	}
	if gone {
		return nil, errDropped
	}
	mine, err := h.fs.Open(f.path)
	if err != nil {
		return nil, err
	}
	h.mu.Lock()
	if o := &f.opened; o.f == nil && !o.gone {
		o.f = mine
	}
	handle = h.useLocked(f)
	h.mu.Unlock()
	if handle != mine { // another was quicker, or the file was dropped
		_ = mine.Close()
	}
	if handle == nil {
		return nil, errDropped
	}
	return handle, nil
}

// errDropped says that a file is read that was given up meanwhile.
var errDropped = fmt.Errorf("it was given up: %w", block.ErrClosed)

// useLocked returns the handle of a file that is open, and counts its user; else nil.
func (h *handles) useLocked(f *file) vfs.File {
	o := &f.opened
	if o.f == nil || o.gone {
		return nil
	}
	if o.users++; o.users == 1 {
		if i := slices.Index(h.idle, f); i >= 0 {
			h.idle = slices.Delete(h.idle, i, i+1)
		}
	}
	return o.f
}

// put gives a handle back.
func (h *handles) put(f *file) {
	h.mu.Lock()
	var unused vfs.File
	var old []vfs.File
	o := &f.opened
	if o.users--; o.users == 0 {
		old, o.old = o.old, nil
		if o.gone {
			unused, o.f = o.f, nil
		} else if h.idle = append(h.idle, f); len(h.idle) > maxIdle {
			oldest := &h.idle[0].opened
			unused, oldest.f = oldest.f, nil
			h.idle = slices.Delete(h.idle, 0, 1)
		}
	}
	h.mu.Unlock()
	for _, f := range old {
		_ = f.Close()
	}
	if unused != nil {
		_ = unused.Close() // nothing was written since the last sync
	}
}

// renew gives a file, which the caller has taken, the handle of its mended copy.
func (h *handles) renew(f *file, fresh vfs.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f.opened.old = append(f.opened.old, f.opened.f)
	f.opened.f = fresh
}

// drop closes a file for good, as soon as nobody reads it.
func (h *handles) drop(f *file) error {
	h.mu.Lock()
	o := &f.opened
	o.gone = true
	if f.f != nil {
		f.f = nil
		o.users--
	}
	if i := slices.Index(h.idle, f); i >= 0 {
		h.idle = slices.Delete(h.idle, i, i+1)
	}
	var unused vfs.File
	if o.users == 0 {
		unused, o.f = o.f, nil
	}
	h.mu.Unlock()
	if unused != nil {
		return unused.Close()
	}
	return nil
}

// read fills p from an offset of the file. Where a sealed one cannot be read, it is damaged there: block.ErrCorrupt.
func (f *file) read(p []byte, off int64) error {
	handle, err := f.handles.take(f)
	if err != nil {
		return err
	}
	defer f.handles.put(f)
	err = f.readVia(handle, p, off)
	if mendable(err) && !errors.Is(err, block.ErrCorrupt) && f.isSealed() {
		err = unreadable(off, err)
	}
	return err
}
