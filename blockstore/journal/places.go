package journal

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/membership"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// A log may lie in up to MaxPlaces directories at once. What is appended is acknowledged when all directories that are in sync have it, and durable when all of them have synced it. One that fails drops out: the
// others say so in their labels (package membership) before anything is acknowledged that it lacks. A directory that is stale or new is filled beside the work (resync.go).
//
// With one directory none of this happens: a file has no further copies then, and there is no label.

// MaxPlaces bounds the directories of a log.
const MaxPlaces = 3

// placeState is what a directory of the log is good for.
type placeState int32

const (
	placeOut     placeState = iota // nothing is written to it
	placeFilling                   // gets every new file, and is given the older ones; nobody depends on it
	placeIn                        // has everything
)

// place is one directory of the log.
type place struct {
	dir   string
	index int // in the group
	state atomic.Int32
}

func (p *place) get() placeState { return placeState(p.state.Load()) }
func (p *place) is(s placeState) bool {
	return p.get() == s
}

// copied is a file of the log in one more directory.
type copied struct {
	place *place
	f     vfs.File
	path  string
}

// PlaceInfo is the state of one directory of the log.
type PlaceInfo struct {
	Dir   string
	State string // "in sync", "filling", "stale", "vacant", "failed"
	Err   error  // why it is not in sync, where something failed
	Left  int    // files that it still lacks, while it is being filled
}

// Places returns the state of the directories of the log, the first one being that of the store.
func (l *Log) Places() (infos []PlaceInfo) {
	if l.dirs == nil {
		return []PlaceInfo{{Dir: l.opts.Dir, State: membership.Current.String()}}
	}
	dirs := l.dirs.Directories()
	for _, p := range *l.places.Load() {
		d := dirs[p.index]
		info := PlaceInfo{Dir: p.dir, State: d.State.String(), Err: d.Err}
		if p.is(placeFilling) {
			info.State, info.Left = "filling", l.lacking(p)
		}
		infos = append(infos, info)
	}
	return infos
}

// Missed is how many directories were in sync at the last run and are not among those of this one.
func (l *Log) Missed() int {
	if l.dirs == nil {
		return 0
	}
	return l.dirs.Missed()
}

// Probe looks whether every directory of the log is still there, and goes on without those that are not: a log that nobody writes to would not notice.
func (l *Log) Probe() {
	if l.dirs == nil {
		return
	}
	for _, p := range *l.places.Load() {
		if !p.is(placeIn) {
			continue
		}
		l.member.Lock() // no label changes meanwhile
		err := l.dirs.Probe(p.index)
		l.member.Unlock()
		if err == nil {
			continue
		}
		if err := l.drop(p, err); err != nil {
			_ = l.fail(err)
		}
	}
}

// Returned reports whether the directory at path fell out, and whether it is there again as it was: then Replace of path by itself takes it back.
func (l *Log) Returned(path string) (out, back bool) {
	if l.dirs == nil {
		return false, false
	}
	for _, p := range *l.places.Load() {
		if p.dir == path && p.is(placeOut) {
			return true, l.dirs.Returned(p.index)
		}
	}
	return false, false
}

// lacking counts the live files that a directory lacks.
func (l *Log) lacking(p *place) (n int) {
	l.st.Lock()
	defer l.st.Unlock()
	for _, f := range l.st.live {
		if !f.has(p) {
			n++
		}
	}
	return n
}

// has reports whether the file lies in a directory.
func (f *logFile) has(p *place) bool {
	return f.home == p || slices.ContainsFunc(f.copies(), func(c copied) bool { return c.place == p })
}

// copies returns the file in the directories beside its home. It is never changed.
func (f *logFile) copies() []copied {
	if c := f.others.Load(); c != nil {
		return *c
	}
	return nil
}

// addCopy adds a copy.
func (f *logFile) addCopy(c copied) {
	for {
		was := f.others.Load()
		all := append(slices.Clone(f.copies()), c)
		if f.others.CompareAndSwap(was, &all) {
			return
		}
	}
}

// source returns the file that reads begin with: the one at home, as long as that has not failed.
func (f *logFile) source() vfs.File {
	if f.home == nil || f.home.is(placeIn) {
		return f.f
	}
	for _, c := range f.copies() {
		if c.place.is(placeIn) {
			return c.f
		}
	}
	return f.f
}

// write writes buffers to every copy of a file. It fails when no directory that was in sync has them; those that failed beside others have dropped out when it returns.
func (l *Log) write(f *logFile, bufs [][]byte, off int64) error {
	if f.home == nil {
		return vfs.WriteVec(f.f, bufs, off)
	}
	return l.each(f, func(f vfs.File) error { return vfs.WriteVec(f, bufs, off) })
}

// sync syncs every copy of a file.
func (l *Log) sync(f *logFile) error {
	if f.home == nil {
		return vfs.DataSync(f.f)
	}
	return l.each(f, vfs.DataSync)
}

// each does something to every copy of a file in turn.
func (l *Log) each(f *logFile, do func(vfs.File) error) error {
	return l.settle(f, func(report func(*place, error)) {
		if f.home.get() != placeOut {
			report(f.home, do(f.f))
		}
		for _, c := range f.copies() {
			if c.place.get() != placeOut {
				report(c.place, do(c.f))
			}
		}
	})
}

// settle runs work on the copies of a file and drops the directories where it failed. It returns their errors if none is left that is in sync and where it went well.
func (l *Log) settle(f *logFile, work func(report func(*place, error))) error {
	var failed []*place
	var errs []error
	well := false
	work(func(p *place, err error) {
		if err == nil {
			well = well || p.is(placeIn)
			return
		}
		failed, errs = append(failed, p), append(errs, err)
	})
	if !well {
		if len(errs) == 0 {
			errs = append(errs, fmt.Errorf("%s is in no directory that is in sync: %w", fileSource(f.header.ID), block.ErrNotFound))
		}
		return errors.Join(errs...)
	}
	for i, p := range failed {
		if err := l.drop(p, errs[i]); err != nil {
			return err
		}
	}
	return nil
}

// syncFiles syncs files, oldest first in each directory, all directories at once. Those that fail have dropped out when it returns nil.
func (l *Log) syncFiles(files []*logFile) error {
	if l.dirs == nil {
		for _, f := range files {
			if err := vfs.DataSync(f.f); err != nil {
				return fmt.Errorf("sync %s: %w", fileSource(f.header.ID), err)
			}
		}
		return nil
	}
	type result struct {
		p   *place
		err error
	}
	places := *l.places.Load()
	results := make(chan result, len(places))
	for _, p := range places {
		if p.is(placeOut) {
			results <- result{}
			continue
		}
		go func() { results <- result{p, p.sync(files)} }()
	}
	return l.settle(files[len(files)-1], func(report func(*place, error)) {
		for range places {
			if r := <-results; r.p != nil {
				report(r.p, r.err)
			}
		}
	})
}

// sync syncs what a directory has of the files.
func (p *place) sync(files []*logFile) error {
	for _, f := range files {
		if f.home == p {
			if err := vfs.DataSync(f.f); err != nil {
				return fmt.Errorf("sync %s in %s: %w", fileSource(f.header.ID), p.dir, err)
			}
		}
		for _, c := range f.copies() {
			if c.place != p {
				continue
			}
			if err := vfs.DataSync(c.f); err != nil {
				return fmt.Errorf("sync %s in %s: %w", fileSource(f.header.ID), p.dir, err)
			}
		}
	}
	return nil
}

// drop goes on without a directory. When it returns nil the labels of the others say so, durably, and what only they have may be acknowledged.
func (l *Log) drop(p *place, cause error) error {
	l.member.Lock()
	defer l.member.Unlock()
	was := placeState(p.state.Swap(int32(placeOut)))
	if was == placeOut {
		return nil
	}
	if err := l.dirs.Drop(p.index, cause); err != nil {
		return fmt.Errorf("go on without %s, which failed (%w): %w", p.dir, cause, err)
	}
	l.dropFailed()
	if l.opts.Events.Place != nil {
		l.opts.Events.Place(PlaceInfo{Dir: p.dir, State: membership.Failed.String(), Err: cause})
	}
	return nil
}

// dropFailed takes over what the group found out by itself: a directory whose label could not be written is out. member is held, or nobody else is there yet.
func (l *Log) dropFailed() {
	dirs := l.dirs.Directories()
	for _, p := range *l.places.Load() {
		if dirs[p.index].State != membership.Current && p.is(placeIn) {
			p.state.Store(int32(placeOut))
			if l.opts.Events.Place != nil {
				l.opts.Events.Place(PlaceInfo{Dir: p.dir, State: dirs[p.index].State.String(), Err: dirs[p.index].Err})
			}
		}
	}
}

// openPlaces finds out which directories of the log are in sync.
func (o *Options) openPlaces() (group *membership.Group, places []*place, err error) {
	paths := append([]string{o.Dir}, o.Mirrors...)
	if group, err = membership.Open(o.FS, membership.Log, o.StoreID, paths); err != nil {
		return nil, nil, fmt.Errorf("directories of the log: %w", err)
	}
	if len(paths) == 1 && !group.Labelled() {
		only := &place{dir: o.Dir}
		only.state.Store(int32(placeIn))
		return nil, []*place{only}, nil
	}
	current := false
	for i, d := range group.Directories() {
		p := &place{dir: d.Path, index: i}
		if d.State == membership.Current {
			p.state.Store(int32(placeIn))
			current = true
		}
		places = append(places, p)
	}
	if !current {
		err = fmt.Errorf("no directory of the log is up to date (%s); name the one that was in use last: %w", describe(group.Directories()), block.ErrCorrupt)
	}
	return group, places, err
}

// describe says of each directory what it is.
func describe(dirs []membership.Directory) (text string) {
	for i, d := range dirs {
		if i > 0 {
			text += ", "
		}
		text += fmt.Sprintf("%s: %v", d.Path, d.State)
		if d.Err != nil {
			text += fmt.Sprintf(" (%v)", d.Err)
		}
	}
	return text
}
