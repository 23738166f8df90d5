package journal

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/membership"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// After a crash the directories that were in sync may differ in what had not been acknowledged, and after damage in more. Recovery reads of each file the copy that has most, and gives it to the others before
// the log goes on. So what one directory has lost is there as long as another one has it, file by file.

// choose makes the copy that holds most of a file the one that is read: one whose index can be used, or else the one with the most records.
func (r *recovery) choose(c *candidate) error {
	if len(c.copies) < 2 {
		return nil
	}
	var best *fileCopy
	records := uint64(0)
	for _, k := range c.copies {
		if k.state != valid || k.seed != c.seed {
			continue
		}
		n, sealed, err := r.weigh(k)
		if errors.Is(err, block.ErrVersion) {
			return err
		}
		if err != nil {
			continue // of the device; if it is so of all copies, the one that is read says so
		}
		if sealed {
			best = k
			break
		}
		if best == nil || n > records {
			best, records = k, n
		}
	}
	if best != nil && best.f != c.f {
		state := c.state
		c.take(best)
		c.state = state
	}
	return nil
}

// weigh counts the records of a copy, or reports that it has an index that counts them.
func (r *recovery) weigh(k *fileCopy) (records uint64, sealed bool, err error) {
	f := &logFile{f: k.f, path: k.path, header: k.header, seed: k.seed, vault: k.vault}
	ft, ok, err := readFooter(f)
	if err != nil {
		return 0, false, err
	}
	if ok {
		index, ok, err := readIndex(f, &ft, r.index)
		if err != nil {
			return 0, false, err
		}
		r.index = index
		if ok {
			return ft.Records, true, nil
		}
	}
	err = scan(f, &r.read, r.lastTime, func(*Replayed) error { return nil })
	return f.records, false, err
}

// beginPlaces gives every directory that is in sync the files as recovery has read them, and begins a new generation of labels. Directories where that fails drop out.
func (l *Log) beginPlaces(r *recovery) error {
	if l.dirs == nil {
		for _, c := range r.all {
			c.logFile.home = nil
		}
		return nil
	}
	chosen := map[*logFile]*candidate{}
	for _, c := range r.all {
		chosen[c.logFile] = c
	}
	for _, f := range r.live {
		for _, p := range *l.places.Load() {
			if p == f.home || !p.is(placeIn) {
				continue
			}
			if err := l.equal(f, chosen[f], p); err != nil {
				if err := l.drop(p, err); err != nil {
					return err
				}
			}
		}
	}
	for _, f := range r.spares {
		for _, k := range chosen[f].copies {
			if k.place != f.home {
				f.addCopy(copied{k.place, k.f, k.path})
			}
		}
	}
	if len(r.all) == 0 {
		l.joinEmpty()
	}
	if err := l.dirs.Begin(); err != nil {
		return fmt.Errorf("directories of the log: %w", err)
	}
	l.dropFailed()
	if !l.anyIn() {
		return fmt.Errorf("directories of the log: %s: %w", describe(l.dirs.Directories()), block.ErrNotFound)
	}
	return nil
}

// joinEmpty makes the directories of a log that has no record yet equal, which takes nothing. One where that fails stays as it is.
func (l *Log) joinEmpty() {
	dirs := l.dirs.Directories()
	for _, p := range *l.places.Load() {
		if dirs[p.index].State == membership.New && l.clear(p) == nil && l.dirs.Admit(p.index) {
			p.state.Store(int32(placeIn))
		}
	}
}

// anyIn reports whether a directory is in sync.
func (l *Log) anyIn() bool {
	for _, p := range *l.places.Load() {
		if p.is(placeIn) {
			return true
		}
	}
	return false
}

// equal makes sure that a directory has a file of the log, which is sealed, as it was recovered.
func (l *Log) equal(f *logFile, c *candidate, p *place) error {
	for _, k := range c.copies {
		if k.place != p {
			continue
		}
		if k.state == valid && k.seed == f.seed && sameSeal(f, k) {
			f.addCopy(copied{p, k.f, k.path})
			return nil
		}
		_ = k.f.Close()
		k.f = nil
	}
	return l.copyTo(f, p, func() bool { return true })
}

// sameSeal reports whether a copy is sealed as the file is. What lies before is checked when it is read.
func sameSeal(f *logFile, k *fileCopy) bool {
	ours, ok, err := readFooter(f)
	if !ok || err != nil {
		return false
	}
	other := &logFile{f: k.f, path: k.path, header: k.header, seed: k.seed, vault: k.vault}
	theirs, ok, err := readFooter(other)
	if !ok || err != nil || ours != theirs {
		return false
	}
	_, ok, err = readIndex(other, &theirs, nil)
	return ok && err == nil
}

// copyWindow is how much of a file is copied at a time, in bytes.
const copyWindow = 1 << 20

// copyTo copies a sealed file into a directory, under another name until it is whole and durable, and adds it to the file's copies if it is still wanted then.
func (l *Log) copyTo(f *logFile, p *place, wanted func() bool) (err error) {
	path := l.opts.FS.PathJoin(p.dir, fileName(f.header.ID))
	defer func() {
		if err != nil {
			err = fmt.Errorf("copy %s to %s: %w", fileSource(f.header.ID), p.dir, err)
		}
	}()
	dst, err := vfs.Create(l.opts.FS, path+".tmp")
	if err != nil {
		return err
	}
	abandon := func(err error) error {
		return errors.Join(err, dst.Close(), l.opts.FS.Remove(path+".tmp"))
	}
	if err := vfs.Preallocate(dst, f.header.Capacity); err != nil {
		return abandon(err)
	}
	if err := l.copyBytes(f, dst); err != nil {
		return abandon(err)
	}
	if err := vfs.DataSync(dst); err != nil {
		return abandon(err)
	}
	if err := l.opts.FS.Rename(path+".tmp", path); err != nil {
		return abandon(err)
	}
	if err := vfs.SyncDir(l.opts.FS, p.dir); err != nil {
		return errors.Join(err, dst.Close())
	}
	if !wanted() {
		return errors.Join(dst.Close(), l.opts.FS.Remove(path))
	}
	f.addCopy(copied{p, dst, path})
	return nil
}

// copyBytes copies header, records, index and footer of a sealed file. What cannot be read at one place is read at the next.
func (l *Log) copyBytes(f *logFile, dst vfs.File) error {
	ft, ok, err := readFooter(f)
	if err != nil {
		return err
	}
	if !ok {
		return inFile(f.header.ID, damaged("a footer", f.dataLimit()))
	}
	buf := make([]byte, copyWindow)
	for _, part := range [][2]int64{{0, ft.DataEnd}, {ft.IndexOff, ft.IndexOff + ft.IndexLen}, {f.dataLimit(), f.header.Capacity}} {
		for at := part[0]; at < part[1]; {
			b := buf[:min(copyWindow, part[1]-at)]
			if err := f.readAny(b, at); err != nil {
				return err
			}
			if err := vfs.WriteVec(dst, [][]byte{b}, at); err != nil {
				return err
			}
			at += int64(len(b))
		}
	}
	return nil
}

// readAny reads bytes from the first copy that gives them.
func (f *logFile) readAny(p []byte, off int64) error {
	err := readZeroFilled(f.source(), p, off)
	for _, c := range f.copies() {
		if err == nil {
			return nil
		}
		if c.place.is(placeIn) {
			err = readZeroFilled(c.f, p, off)
		}
	}
	return err
}

// readCopies fills p with sectors that could not be read, or were damaged, where they were looked for first, and mends them there. cause is returned if no directory has them.
func (l *Log) readCopies(f *logFile, p []byte, pos Pos, sums []uint32, cause error) error {
	var bad []copied
	all := append([]copied{{f.home, f.f, f.path}}, f.copies()...)
	for i, c := range all {
		if !c.place.is(placeIn) {
			continue
		}
		err := vfs.ReadFull(c.f, p, pos.Offset())
		if err == nil {
			err = verify(p, pos, sums)
		}
		if err == nil && f.vault != nil {
			err = f.vault.open(slices.Clone(p), pos.File(), pos.Offset())
		}
		if err != nil {
			bad = append(bad, all[i])
			continue
		}
		for _, b := range bad {
			l.mend(b, p, pos, cause)
		}
		return nil
	}
	return cause
}

// mend writes sectors over those that were found damaged in one directory. They are as they were written, so whoever reads beside sees the one or the other. A directory that does not take them fails.
func (l *Log) mend(c copied, p []byte, pos Pos, cause error) {
	err := vfs.WriteVec(c.f, [][]byte{p}, pos.Offset())
	if err == nil {
		err = vfs.DataSync(c.f)
	}
	l.mended.Add(1)
	if l.opts.Events.Mended != nil {
		l.opts.Events.Mended(c.place.dir, cause)
	}
	if err != nil {
		if err := l.drop(c.place, err); err != nil {
			_ = l.fail(err)
		}
	}
}

// Mended is how many reads have found damage in one directory and bytes in another since Open.
func (l *Log) Mended() uint64 { return l.mended.Load() }
