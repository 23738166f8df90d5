package history

import (
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// joinSpan is how much time files cover at most that are joined, as what expires goes by files.
const joinSpan = 24 * time.Hour

// errApart says that files cannot be one.
var errApart = fmt.Errorf("too many changes without payload would follow one another: %w", block.ErrInvalid)

// join makes one of files that follow each other: of those in which nothing is left, so that a month of idle quarters of an hour is not thousands of files, and of a day of those that will not be thinned any more, so that what a block was from hour to hour lies side by side.
func (st *Stream) join(t *Thinning) (done Thinned, err error) {
	st.mu.Lock()
	var files []*file
	for _, f := range st.files {
		if !f.sealed {
			break
		}
		files = append(files, f)
	}
	st.mu.Unlock()
	for i := 0; i < len(files); {
		n := emptyRun(files[i:])
		ready := n > 1
		if !ready {
			if n, ready, err = st.oldRun(t, files[i:]); err != nil {
				return done, err
			}
		}
		if ready {
			one, err := st.joinFiles(t, files[i:i+n])
			if err != nil {
				return done, err
			}
			done.add(one)
		}
		i += max(n, 1)
	}
	return done, nil
}

// joinFiles makes one of files. Those that cannot be one stay apart.
func (st *Stream) joinFiles(t *Thinning, files []*file) (done Thinned, err error) {
	parts, level, bytes := make([]part, len(files)), Hours, int64(0)
	for _, f := range files {
		level, bytes = min(level, f.header.Level), bytes+f.end
	}
	if t.Room != nil && !t.Room(bytes) {
		return done, errNoRoom
	}
	for i, f := range files {
		if parts[i], err = f.all(level); err != nil {
			break
		}
		if err := t.Pace(len(parts[i].plan.index.metas)); err != nil {
			return done, err
		}
	}
	if err == nil {
		done, err = st.replace(t, parts)
	}
	if apart := errors.Is(err, errApart); apart || errors.Is(err, block.ErrCorrupt) {
		for _, f := range files {
			f.apart = true
		}
		if apart {
			err = nil
		}
	}
	return done, err
}

// all is a file of which everything is left.
func (f *file) all(level Level) (part, error) {
	p := &thinPlan{level: level, first: f.header.FirstPoint, last: f.header.LastPoint}
	var err error
	p.index, err = f.index()
	p.begin()
	return part{f, p}, err
}

// emptyRun is of how many of the first files nothing is left.
func emptyRun(files []*file) (n int) {
	for n < len(files) && files[n].empty() && !files[n].apart && !files[n].pinned() {
		n++
	}
	return n
}

// old reports whether a file is one that will not be thinned any more.
func (f *file) old() bool { return f.header.Level == Hours && !f.stuck && !f.apart }

// oldRun is how many of the first files shall be one: as many as cover a day and are not too large together. They are not ready as long as more may come, or one is in use, or a root between them may go: one that nothing stands on could not be told from others any more.
func (st *Stream) oldRun(t *Thinning, files []*file) (n int, ready bool, err error) {
	first := files[0]
	if !first.old() || first.empty() {
		return 0, false, nil
	}
	if err := first.lookAtFirst(); err != nil {
		return 0, false, err
	}
	ready = true
	written, index, bytes := uint64(0), int64(0), int64(0)
	for ; n < len(files); n++ {
		f := files[n]
		if n > 0 && (!f.old() && f.header.Level == Hours || f.header.After != files[n-1].lastSeq || f.lastTime-first.firstTime > int64(st.s.joinSpan)) {
			break
		}
		written, index, bytes = written+uint64(f.written), index+f.indexLen, bytes+f.end
		if n > 0 && (written > MaxFileRaw || index > maxIndex/2 || bytes > maxFileStored) {
			break
		}
		if f.header.Level != Hours {
			return n, false, nil
		}
		ready = ready && !f.pinned()
	}
	if n < 2 || n == len(files) || !ready {
		return n, false, nil
	}
	for i := t.rootAfter(first.firstSeq); i+1 < len(t.Roots) && t.Roots[i].Seq <= files[n-1].lastSeq; i++ {
		if st.Idle(t.Roots[i].Seq, t.Roots[i+1].Seq) {
			return n, false, nil
		}
	}
	return n, true, nil
}

// lookAtFirst finds number and time of the first record of an old file. A file that is damaged stays apart.
func (f *file) lookAtFirst() error {
	if f.firstTime > 0 {
		return nil
	}
	err := f.each(func(r *Record) error {
		f.firstSeq, f.firstTime = r.Seq, r.Time
		return errEnough
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	f.apart = errors.Is(err, block.ErrCorrupt)
	return err
}
