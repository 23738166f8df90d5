package dir

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// writer appends to a new segment.
type writer struct {
	b      *Backend
	f      *vfs.Appender
	folder uint8
	named  bool // the name is durable
}

// Write implements tiers.Writer.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		err = fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	}
	return n, err
}

// Sync implements tiers.Writer. The folder is synced by the first call only, and not by way of the backend's dirty marks: another Sync that has cleared a mark may still be on
// its way to the disk.
func (w *writer) Sync() error {
	if err := w.f.Sync(); err != nil {
		return err
	}
	if w.named {
		return nil
	}
	if err := vfs.SyncDir(w.b.fs, w.b.folder(w.folder)); err != nil {
		return err
	}
	w.named = true
	return nil
}

// Close implements tiers.Writer.
func (w *writer) Close() error { return w.f.Close() }

// handle reads a segment.
type handle struct{ f vfs.File }

func (h *handle) ReadAt(p []byte, off int64) (int, error) { return h.f.ReadAt(p, off) }

// TryReadAt implements tiers.Reader.
func (h *handle) TryReadAt(p []byte, off int64) error { return vfs.TryRead(h.f, p, off) }

// Prefetch implements tiers.Prefetcher.
func (h *handle) Prefetch(off, n int64) { vfs.Prefetch(h.f, off, n) }

// Size implements tiers.Reader.
func (h *handle) Size() (int64, error) {
	st, err := h.f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Uncache asks the kernel to forget what it holds of the segment, so that the next read comes from the device.
func (h *handle) Uncache() error { return vfs.Uncache(h.f) }

// Close implements tiers.Reader.
func (h *handle) Close() error { return h.f.Close() }

// updater overwrites parts of a segment.
type updater struct{ handle }

// WriteAt implements tiers.Updater.
func (u *updater) WriteAt(p []byte, off int64) (int, error) { return u.f.WriteAt(p, off) }

// Sync implements tiers.Updater. The file may have grown, which DataSync covers.
func (u *updater) Sync() error { return vfs.DataSync(u.f) }
