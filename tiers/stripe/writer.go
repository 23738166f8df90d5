package stripe

import (
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// Create implements tiers.Backend: the segment begins in as many directories as may be lost, and one more.
func (b *Backend) Create(key string) (tiers.Writer, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	if _, there := b.lookup(key); there {
		return nil, fmt.Errorf("create %s: %w", key, block.ErrExists)
	}
	w := &writer{b: b, key: key}
	for _, k := range b.turn(key) {
		if len(w.copies) == b.o.Shape.Parity+1 {
			break
		}
		f, err := k.b.Create(key)
		if errors.Is(err, block.ErrNoSpace) || errors.Is(err, block.ErrExists) {
			return nil, errors.Join(err, w.Close(), b.Delete(key))
		}
		if err != nil {
			if err := b.drop(k, err); err != nil {
				return nil, errors.Join(err, w.Close())
			}
			continue
		}
		w.copies = append(w.copies, &wholeCopy{k, f})
		b.edit(key, func(e *entry) { e.whole, e.open = append(e.whole, k), true })
	}
	if len(w.copies) == 0 {
		return nil, fmt.Errorf("no directory of the segments is left: %w", block.ErrNotFound)
	}
	b.edit(key, func(e *entry) { e.writer = w }) // from here on HealOpen may add to its copies
	return w, nil
}

// turn returns the directories that are in sync, another one first for each segment.
func (b *Backend) turn(key string) (disks []*disk) {
	id, _, _ := tiers.ParseSegmentKey(key)
	all := b.disks()
	if b.o.Shape.None() {
		id = 0
	}
	for i := range all {
		if k := all[(int(uint64(id)%uint64(len(all)))+i)%len(all)]; k.in.Load() {
			disks = append(disks, k)
		}
	}
	return disks
}

// writer appends to the copies of a segment.
type writer struct {
	b   *Backend
	key string

	mu     sync.Mutex // held by the one who writes, and by HealOpen
	copies []*wholeCopy
	length int64 // bytes written
	closed bool
}

// copyTo makes another copy, of all that was written so far, which gets what is written from now on.
func (w *writer) copyTo(k *disk) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	if err := w.sync(); err != nil {
		return err
	}
	var src tiers.Reader
	err := error(block.ErrNotFound)
	for _, c := range w.copies {
		if !c.k.in.Load() {
			continue
		}
		if src, err = c.k.b.Open(w.key); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("copy segment %s: %w", w.key, err)
	}
	defer src.Close()
	if err := k.b.Delete(w.key); err != nil { // of an earlier try
		return err
	}
	f, err := k.b.Create(w.key)
	if err != nil {
		return err
	}
	buf := make([]byte, 1<<20)
	for at := int64(0); at < w.length && err == nil; at += int64(len(buf)) {
		p := buf[:min(int64(len(buf)), w.length-at)]
		if err = full(src)(p, at); err == nil {
			_, err = f.Write(p)
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("copy segment %s to %s: %w", w.key, k.path, err), f.Close(), k.b.Delete(w.key))
	}
	w.copies = append(w.copies, &wholeCopy{k, f})
	w.b.edit(w.key, func(e *entry) { e.whole = append(e.whole, k) })
	return nil
}

type wholeCopy struct {
	k *disk
	w tiers.Writer
}

// settle drops the directories where something failed, and returns the errors if no copy is left. A full directory is a full tier: nothing is dropped for it.
func (w *writer) settle(errs []error) error {
	var kept []*wholeCopy
	for i, c := range w.copies {
		if errors.Is(errs[i], block.ErrNoSpace) {
			return errs[i]
		}
		if errs[i] == nil {
			kept = append(kept, c)
		}
	}
	if len(kept) == 0 {
		return errors.Join(errs...)
	}
	for i, c := range w.copies {
		if errs[i] == nil {
			continue
		}
		_ = c.w.Close()
		if err := w.b.drop(c.k, errs[i]); err != nil {
			return err
		}
		// What is in it lacks what the others have from now on.
		w.b.edit(w.key, func(e *entry) { e.forget(c.k) })
	}
	w.copies = kept
	return nil
}

// Write implements tiers.Writer.
func (w *writer) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	errs := make([]error, len(w.copies))
	for i, c := range w.copies {
		n, err := c.w.Write(p)
		if err == nil && n < len(p) {
			err = io.ErrShortWrite
		}
		errs[i] = err
	}
	if err := w.settle(errs); err != nil {
		return 0, err
	}
	w.length += int64(len(p))
	return len(p), nil
}

// Sync implements tiers.Writer: all directories at once.
func (w *writer) Sync() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.sync()
}

func (w *writer) sync() error {
	errs := make([]error, len(w.copies))
	var all sync.WaitGroup
	for i, c := range w.copies {
		all.Go(func() { errs[i] = c.w.Sync() })
	}
	all.Wait()
	return w.settle(errs)
}

// Close implements tiers.Writer.
func (w *writer) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	var errs []error
	for _, c := range w.copies {
		errs = append(errs, c.w.Close())
	}
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if e := w.b.mu.entries[w.key]; e != nil {
		e.open, e.writer = false, nil
	}
	return errors.Join(errs...)
}

// Update implements tiers.Backend: what is written goes into every whole copy, and what is read comes from the first that gives it.
func (b *Backend) Update(key string) (tiers.Updater, error) {
	if err := checkKey(key); err != nil {
		return nil, err
	}
	e, _ := b.lookup(key)
	u := &updater{b: b, key: key}
	for _, k := range e.whole {
		if !k.in.Load() {
			continue
		}
		f, err := k.b.Update(key)
		if err != nil {
			if errors.Is(err, block.ErrNotFound) {
				b.suspect(k, err)
				continue
			}
			return nil, errors.Join(err, u.Close())
		}
		u.files = append(u.files, f)
	}
	if len(u.files) == 0 {
		if len(e.sets) > 0 {
			return nil, fmt.Errorf("overwrite %s, which is striped: %w", key, errors.ErrUnsupported)
		}
		return nil, fmt.Errorf("segment %s: %w", key, block.ErrNotFound)
	}
	return u, nil
}

// updater overwrites every whole copy of a segment.
type updater struct {
	b     *Backend
	key   string
	files []tiers.Updater
}

// ReadAt implements io.ReaderAt.
func (u *updater) ReadAt(p []byte, off int64) (n int, err error) {
	for _, f := range u.files {
		if n, err = f.ReadAt(p, off); n == len(p) {
			return n, nil
		}
	}
	return n, err
}

// WriteAt implements io.WriterAt.
func (u *updater) WriteAt(p []byte, off int64) (int, error) {
	for _, f := range u.files {
		if n, err := f.WriteAt(p, off); err != nil {
			return n, err
		}
	}
	return len(p), nil
}

// Size implements tiers.Updater: that of the longest copy. What a shorter one lacks had not been synced.
func (u *updater) Size() (size int64, err error) {
	for _, f := range u.files {
		n, err := f.Size()
		if err != nil {
			return 0, err
		}
		size = max(size, n)
	}
	return size, nil
}

// Sync implements tiers.Updater.
func (u *updater) Sync() error {
	var errs []error
	for _, f := range u.files {
		errs = append(errs, f.Sync())
	}
	return errors.Join(errs...)
}

// Close implements tiers.Updater.
func (u *updater) Close() error {
	var errs []error
	for _, f := range u.files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// Replace implements tiers.Mender for the segments of which there are no shards yet.
func (b *Backend) Replace(key string) (tiers.Replacement, error) {
	if _, ok := tiers.ParseParityKey(key); ok {
		if home := b.disks()[0]; b.o.Shape.None() && home.in.Load() {
			return home.b.Replace(key)
		}
		return nil, fmt.Errorf("sidecar in a tier of several directories: %w", errors.ErrUnsupported)
	}
	e, _ := b.lookup(key)
	for _, k := range e.whole {
		if k.in.Load() {
			return k.b.Replace(key)
		}
	}
	return nil, fmt.Errorf("replace segment %s: %w", key, errors.ErrUnsupported)
}
