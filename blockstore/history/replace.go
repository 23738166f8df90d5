package history

import (
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const thinningSuffix = fileSuffix + ".thin"

// isThinning reports whether a name is that of a thinned file that is not whole.
func isThinning(name string) bool {
	digits, ok := strings.CutSuffix(name, ".thin")
	if !ok {
		return false
	}
	_, ok = parseFileName(digits)
	return ok
}

// part is a file and what is left of it.
type part struct {
	file *file
	plan *thinPlan
}

// replace puts what is left of files, which follow each other, in their place, as one file: that is durable under another name before it takes the name of the first; then the others go.
func (st *Stream) replace(t *Thinning, parts []part) (done Thinned, err error) {
	t.step(BeforeWrite)
	var old []*file
	points := &thinPlan{}
	for _, p := range parts {
		old = append(old, p.file)
		done.Before += p.file.end
		if p.plan.first > 0 {
			points.add(p.plan.first)
			points.add(p.plan.last)
		}
	}
	first, last := old[0], old[len(old)-1]
	h := first.header
	h.Placed, h.Level, h.Through, h.FirstPoint, h.LastPoint = true, parts[0].plan.level, max(last.header.ID, last.header.Through), points.first, points.last
	f, path, err := st.s.thinnedFile(first, h)
	if err != nil {
		return done, err
	}
	var late error
	err = st.writeThinned(t, f, parts)
	if err == nil {
		t.step(BeforeRename)
		err = t.Pace(0) // it may have to stop since
	}
	if err == nil {
		late, err = st.swap(t, f, path, old)
	}
	if err != nil {
		return Thinned{}, errors.Join(err, st.s.handles.drop(f), ignoreMissing(st.s.opts.FS.Remove(path)))
	}
	done.Files, done.After = 1, f.end
	return done, late
}

func (t *Thinning) step(s ThinStep) {
	if t.Step != nil {
		t.Step(s)
	}
}

func ignoreMissing(err error) error {
	if vfs.IsNotExist(err) {
		return nil
	}
	return err
}

// thinnedFile makes the file that takes the place of another one, under a name of its own.
func (s *Set) thinnedFile(old *file, h Header) (f *file, path string, err error) {
	f = &file{path: old.path, header: h, unsynced: true, handles: s.handles}
	path = s.opts.FS.PathJoin(s.dirOf(h.Volume), strings.TrimSuffix(fileName(h.ID), fileSuffix)+thinningSuffix)
	if s.opts.Keys != nil {
		f.header.KeyID = s.opts.Keys.Current()
	}
	if _, err := rand.Read(f.header.Salt[:]); err != nil {
		return nil, "", err
	}
	page, seed := f.header.encode()
	f.seed, f.chain, f.end, f.lastSeq = seed, seed, headerSize, h.After
	if f.vault, err = openVault(s.opts.Keys, &f.header, page); err != nil {
		return nil, "", err
	}
	handle, err := vfs.Create(s.opts.FS, path)
	if err != nil {
		return nil, "", fmt.Errorf("make %s: %w", path, err)
	}
	s.handles.begin(f, handle)
	if err := vfs.WriteVec(f.f, [][]byte{page}, 0); err != nil {
		return nil, "", errors.Join(f.name(err), s.handles.drop(f), s.opts.FS.Remove(path))
	}
	return f, path, nil
}

// swap gives a file that is durable the place of others. A late error came when that was done already: what is durable of it is not known.
func (st *Stream) swap(t *Thinning, f *file, path string, old []*file) (late, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	at := 0
	for at < len(st.files) && st.files[at] != old[0] {
		at++
	}
	if st.gone.Load() || at+len(old) > len(st.files) {
		return nil, errBusy
	}
	for i, o := range old {
		if st.files[at+i] != o || o.pinned() {
			return nil, errBusy
		}
	}
	s := st.s
	// Durably before the file is another one: a sidecar never lies beside bytes that it was not made of.
	if _, bytes, _ := old[0].guard.get(); bytes > 0 {
		if err := old[0].unguard(); err != nil {
			return nil, f.name(fmt.Errorf("replace: parity: %w", err))
		}
		t.step(Unguarded)
	}
	if err := s.opts.FS.Rename(path, f.path); err != nil {
		return nil, f.name(fmt.Errorf("replace: %w", err))
	}
	t.step(BeforeSync)
	late = vfs.SyncDir(s.opts.FS, s.dirOf(st.volume))
	st.unsure = late != nil
	s.mu.Lock()
	for _, o := range old {
		delete(s.mu.files, o.header.ID)
	}
	s.mu.files[f.header.ID] = f
	s.mu.Unlock()
	st.files = append(st.files[:at], append([]*file{f}, st.files[at+len(old):]...)...)
	if late == nil {
		t.step(BeforeRemove)
	}
	for i, o := range old {
		s.cache.forget(o)
		_ = s.handles.drop(o) // it was only read
		if i > 0 && late == nil {
			late = errors.Join(o.removeSidecar(), ignoreMissing(s.opts.FS.Remove(o.path))) // else the next open does it
		}
	}
	t.step(AfterRemove)
	return f.name(late), nil
}
