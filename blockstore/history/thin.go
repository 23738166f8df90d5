package history

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// errBusy says that somebody reads what would be replaced, or that it is gone meanwhile.
var errBusy = fmt.Errorf("somebody reads it, or it is gone: %w", block.ErrInUse)

// errNoRoom says that the disk has no room for what would be written.
var errNoRoom = fmt.Errorf("the disk is short of room: %w", block.ErrNoSpace)

// errStopped says that the stream was removed or closed.
var errStopped = fmt.Errorf("its history ends: %w", block.ErrClosed)

// stopThinning makes who thins the stream stop, and keeps others from it until the returned function is called.
func (st *Stream) stopThinning() (release func()) {
	st.gone.Store(true)
	st.thinning.Lock()
	return st.thinning.Unlock
}

// Thin thins what lies between the two oldest roots between which more is left than should be, and reports whether there was such a stretch. Each file is replaced as a whole, newest first, by one of the same id that is durable before; a death leaves one or the
// other. What somebody reads stays as it is, and so does what comes before it, for the next call. It needs some MiB of memory: the records of a file (at most 64 MiB as stored, usually one or two, and as much for what is left of them), the blocks that a stretch wrote, a bit each, at most 64 MiB, and at most 40 MiB of payload and of where it lies.
func (st *Stream) Thin(t *Thinning) (done Thinned, found bool, err error) {
	st.thinning.Lock()
	defer st.thinning.Unlock()
	st.mu.Lock()
	files := append([]*file(nil), st.files...)
	forgive(files)
	for i, f := range files {
		if !f.sealed { // of that and what follows nothing is thinned, nor before a root that it may have records before, which need what comes before them
			files, t = files[:i], t.before(f.header.After)
			break
		}
	}
	st.mu.Unlock()
	first, end := st.due(t, files)
	if end == first {
		return done, false, nil
	}
	done, err = st.thinStretch(t, files, first, end)
	if err == nil {
		var more Thinned
		more, err = st.join(t)
		done.add(more)
	}
	if later := errors.Is(err, errBusy) || errors.Is(err, errDropped) || errors.Is(err, errNoRoom); later && !errors.Is(err, block.ErrCorrupt) {
		return done, done.Files > 0, nil
	}
	if err != nil {
		err = fmt.Errorf("thin the history of volume %d: %w", st.volume, err)
	}
	return done, done.Files > 0, err
}

// forgive lets files be thinned that were mended since, and joined again all that may have stayed apart for one of them.
func forgive(files []*file) {
	healed := false
	for _, f := range files {
		if f.guard.healed.Swap(false) {
			f.stuck, healed = false, true
		}
	}
	for _, f := range files {
		f.apart = f.apart && !healed
	}
}

// before is the same with the roots up to a record only.
func (t *Thinning) before(seq uint64) *Thinning {
	short := *t
	short.Roots = t.Roots[:t.stretch(seq)]
	return &short
}

// rootAfter is the index of the first root that does not lie before seq, or the number of roots.
func (t *Thinning) rootAfter(seq uint64) int {
	i, _ := slices.BinarySearchFunc(t.Roots, seq, func(r Root, seq uint64) int { return cmp.Compare(r.Seq, seq) })
	return i
}

// stretch is how many roots lie at or before a record.
func (t *Thinning) stretch(seq uint64) int {
	i := t.rootAfter(seq)
	if i < len(t.Roots) && t.Roots[i].Seq == seq {
		i++
	}
	return i
}

// want is how much should be left of a file.
func (t *Thinning) want(f *file) Level {
	i := t.rootAfter(f.lastSeq)
	if i == len(t.Roots) {
		return Whole
	}
	return t.Level(max(f.lastTime, t.Roots[i].Time))
}

// due finds the oldest files that end between the same two roots, one of which has more than it should; nobody reads that.
func (st *Stream) due(t *Thinning, files []*file) (first, end int) {
	for first < len(files) {
		root, due := t.rootAfter(files[first].lastSeq), false
		for end = first; end < len(files) && t.rootAfter(files[end].lastSeq) == root; end++ {
			due = due || t.want(files[end]) > files[end].header.Level && !files[end].stuck && !files[end].pinned()
		}
		if due {
			return first, end
		}
		first = end
	}
	return 0, 0
}

func (f *file) pinned() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.pins > 0
}

// thinStretch thins files[first:end].
func (st *Stream) thinStretch(t *Thinning, files []*file, first, end int) (done Thinned, err error) {
	w := newThinner(st, t)
	var corrupt error // what is damaged stays, and is told of once
	if bad, err := w.lookAhead(files[end:], files[end-1]); errors.Is(err, block.ErrCorrupt) {
		corrupt = errors.Join(corrupt, bad.told(err))
	} else if err != nil {
		return done, err
	}
	after, root := end, t.Roots[t.rootAfter(files[end-1].lastSeq)].Seq
	for after < len(files) && files[after].header.After < root { // it may begin before the root
		after++
	}
	for i := after - 1; i >= first; i-- {
		f := files[i]
		if st.gone.Load() {
			return done, errStopped
		}
		want := t.want(f)
		if i >= end || want <= f.header.Level || f.stuck || f.pinned() {
			if err := w.pass(f); errors.Is(err, block.ErrCorrupt) {
				corrupt = errors.Join(corrupt, f.told(err))
				w.blind(f)
			} else if err != nil {
				return done, errors.Join(corrupt, err)
			}
			continue
		}
		if t.Room != nil && !t.Room(f.end) {
			return done, errors.Join(corrupt, errNoRoom)
		}
		p, err := w.plan(f, want)
		if err == nil {
			var one Thinned
			one, err = st.replace(t, []part{{f, p}})
			done.add(one)
		}
		if errors.Is(err, block.ErrCorrupt) {
			err = f.told(err) // and the next call goes around it
		}
		if err != nil {
			return done, errors.Join(corrupt, err)
		}
	}
	return done, corrupt
}

// told takes note that a file is damaged, and returns the error if it was not known.
func (f *file) told(err error) error {
	if f.stuck {
		return nil
	}
	f.stuck = true
	return err
}

// empty reports whether nothing is left in a file that was thinned.
func (f *file) empty() bool {
	return f.header.Level != Whole && f.sealed && f.count == 0 && f.header.FirstPoint == 0
}

// ThinnedAt reports whether the record of that number lies in a stretch that was thinned.
func (st *Stream) ThinnedAt(seq uint64) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		if f.header.Level != Whole && f.header.After < seq && seq <= f.lastSeq {
			return true
		}
	}
	return false
}

// WholeFrom is the number of the last record that lies in a stretch that was thinned, and its time; every record behind it is there. Zero: nothing was thinned.
func (st *Stream) WholeFrom() (seq uint64, at int64) {
	st.mu.Lock()
	defer st.mu.Unlock()
	for _, f := range st.files {
		if f.header.Level != Whole {
			seq, at = f.lastSeq, f.lastTime
		}
	}
	return seq, at
}

// Idle reports whether nothing stands on a root any more: all between it and the next one was thinned, and there is no point.
func (st *Stream) Idle(root, next uint64) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.unsure {
		return false
	}
	covered := root
	for _, f := range st.files {
		h := &f.header
		if f.lastSeq < root || h.After >= next { // a mark may have the number of the root
			continue
		}
		if h.Level == Whole || h.After > covered || h.FirstPoint != 0 && h.FirstPoint < next && h.LastPoint >= root {
			return false
		}
		covered = f.lastSeq
	}
	return covered > root
}
