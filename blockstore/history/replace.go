package history

import (
	"crypto/rand"
	"errors"
	"fmt"
	"hash/crc32"
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

// replace puts what a plan leaves of files, which follow each other, in their place, as one file: that is durable under another name before it takes the name of the first; then the others go. Of all but the first nothing is left.
func (st *Stream) replace(t *Thinning, old []*file, p *thinPlan) (done Thinned, err error) {
	t.step(BeforeWrite)
	first, last := old[0], old[len(old)-1]
	for _, f := range old {
		done.Before += f.end
	}
	h := first.header
	h.Level, h.Through, h.FirstPoint, h.LastPoint = p.level, max(last.header.ID, last.header.Through), p.first, p.last
	f, path, err := st.s.thinnedFile(first, h)
	if err != nil {
		return done, err
	}
	var late error
	err = st.writeThinned(t, f, first, last, p)
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

// writeThinned writes what is left, and makes it durable.
func (st *Stream) writeThinned(t *Thinning, f, old, last *file, p *thinPlan) error {
	out := &Stream{s: st.s, volume: st.volume, single: true, files: []*file{f}}
	record := uint32(0)
	for i := range p.frames {
		if st.gone.Load() {
			return errStopped
		}
		n, err := st.thinFrame(t, out, old, p, i, record)
		if err != nil {
			return err
		}
		record += n
	}
	out.mu.Lock()
	defer out.mu.Unlock()
	if err := out.writeFrame(); err != nil {
		return err
	}
	if f.indexSize() > maxIndex || f.lastSeq > last.lastSeq {
		return fmt.Errorf("thin %s: %d B of index, records up to %d of %d", old.source(), f.indexSize(), f.lastSeq, last.lastSeq)
	}
	f.lastSeq, f.lastTime = last.lastSeq, last.lastTime
	return f.seal()
}

// thinFrame copies what is left of a frame. It returns how many records the frame has.
func (st *Stream) thinFrame(t *Thinning, out *Stream, old *file, p *thinPlan, i int, first uint32) (n uint32, err error) {
	m, ref := p.reader(old, i), &p.frames[i]
	var payload []byte
	for at := m.raw; len(m.rest) > 0; at, n = m.raw, n+1 {
		if !m.next() {
			return n, old.name(damaged("records in bounds", ref.off))
		}
		r, keep := m.rec, p.keep[first+n]
		switch {
		case keep == 0:
		case r.Kind != Write:
			err = out.Append(&r)
		default:
			if payload == nil {
				if err := t.Pace(2 * int(ref.stored)); err != nil { // to read it, and to write what is left
					return n, err
				}
				if payload, err = old.payload(ref); err != nil {
					return n, old.name(err)
				}
			}
			err = appendLeft(out, old, &r, keep, payload[at-ref.raw:])
		}
		if err == nil && p.kept[first+n] {
			err = out.Append(&Record{Kind: Kept, Seq: r.Seq, Time: r.Time})
		}
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// appendLeft appends the blocks of a write that are left.
func appendLeft(out *Stream, old *file, r *Record, keep uint32, payload []byte) error {
	for _, run := range blocks(keep, len(r.Sums)) {
		part := Record{Kind: Write, Seq: r.Seq, Time: r.Time, MapEpoch: r.MapEpoch, Off: r.Off + uint64(run[0])*sectorSize, Len: uint64(run[1]) * sectorSize}
		part.Payload = payload[run[0]*sectorSize : (run[0]+run[1])*sectorSize]
		part.Sums = r.Sums[run[0] : run[0]+run[1]]
		for i, want := range part.Sums { // damage must not get a checksum that fits
			if crc32.Checksum(part.Payload[i*sectorSize:(i+1)*sectorSize], castagnoli) != want {
				return old.name(damaged("sectors that match their checksums", int64(r.Pos)))
			}
		}
		if err := out.Append(&part); err != nil {
			return err
		}
	}
	return nil
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
