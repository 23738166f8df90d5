package journal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/membership"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// fillPoll is how often a file is looked at that is not sealed yet.
const fillPoll = 5 * time.Millisecond

// errFillEnds says that a directory fell out, or the log ended, while it was being filled.
var errFillEnds = errors.New("the directory fell out while it was being filled")

// fillAll begins to fill the directories that are stale or new. One that is vacant is left alone: whose place it was given may come back, and an empty mount point looks like an empty disk.
func (l *Log) fillAll() {
	if l.dirs == nil {
		return
	}
	dirs := l.dirs.Directories()
	for _, p := range *l.places.Load() {
		if s := dirs[p.index].State; s == membership.Stale || s == membership.New {
			l.startFill(p)
		} else if s != membership.Current && l.opts.Events.Place != nil {
			l.opts.Events.Place(PlaceInfo{Dir: p.dir, State: s.String(), Err: dirs[p.index].Err})
		}
	}
}

func (l *Log) startFill(p *place) {
	l.fillers.Go(func() {
		l.filled(p, l.fill(p))
	})
}

// filled drops a directory that could not be filled, unless it is only that the log ends.
func (l *Log) filled(p *place, err error) {
	if err == nil || l.closed.Load() || l.failed() != nil {
		return
	}
	if err := l.drop(p, err); err != nil {
		_ = l.fail(err)
	}
}

// Replace takes the directory at path in the place of another one, which drops out if it has not yet; both may be the same path, with another disk behind it. It returns when the filling has begun.
func (l *Log) Replace(old, path string) error {
	if l.dirs == nil {
		return fmt.Errorf("the log has one directory, %s: %w", l.opts.Dir, block.ErrInvalid)
	}
	if err := l.usable(); err != nil {
		return err
	}
	var was *place
	for _, p := range *l.places.Load() {
		if p.dir == old {
			was = p
		}
	}
	if was == nil {
		return fmt.Errorf("%s is no directory of the log: %w", old, block.ErrNotFound)
	}
	if was.is(placeFilling) {
		return fmt.Errorf("%s is being filled: %w", old, block.ErrInUse)
	}
	if old == path && was.is(placeIn) {
		return fmt.Errorf("%s is in sync: %w", old, block.ErrInvalid)
	}
	if err := l.opts.FS.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("create log directory: %w", err)
	}
	index := was.index
	if old != path {
		var err error
		if index, err = l.dirs.Add(path); err != nil {
			return err
		}
	}
	// A place of its own, even for the same directory: what the files had there is gone.
	p := &place{dir: path, index: index}
	l.member.Lock()
	var places []*place
	for _, o := range *l.places.Load() {
		if o != was || o.is(placeIn) {
			places = append(places, o) // one that is in sync stays until the new one is
		}
	}
	places = append(places, p)
	l.places.Store(&places)
	l.member.Unlock()
	l.fillers.Go(func() {
		err := l.fill(p)
		l.filled(p, err)
		if err == nil {
			l.filled(was, fmt.Errorf("replaced by %s", path))
			if was.index != p.index {
				l.filled(p, l.dirs.Forget(was.index))
			}
		}
		l.forget(was)
	})
	return nil
}

// forget takes a directory that is out off the list.
func (l *Log) forget(was *place) {
	l.member.Lock()
	defer l.member.Unlock()
	var places []*place
	for _, o := range *l.places.Load() {
		if o != was || !o.is(placeOut) {
			places = append(places, o)
		}
	}
	l.places.Store(&places)
}

// fill brings a directory into sync: every file from now on is written to it, too; then it gets the older ones; then it counts.
func (l *Log) fill(p *place) error {
	if err := l.clear(p); err != nil {
		return err
	}
	if err := l.dirs.Prepare(p.index); err != nil {
		return err
	}
	p.state.Store(int32(placeFilling))
	if err := l.turn(p); err != nil {
		return err
	}
	for {
		f, err := l.nextLacking(p)
		if err != nil {
			return err
		}
		if f == nil {
			break
		}
		if err := l.copyTo(f, p, func() bool { return l.isLive(f) }); err != nil {
			return err
		}
	}
	if err := l.Sync(context.Background()); err != nil {
		return err
	}
	l.member.Lock()
	defer l.member.Unlock()
	if !p.is(placeFilling) || l.lacking(p) > 0 {
		return errFillEnds
	}
	if err := l.dirs.Join(p.index); err != nil {
		return err
	}
	p.state.Store(int32(placeIn))
	l.dropFailed()
	if l.opts.Events.Place != nil {
		l.opts.Events.Place(PlaceInfo{Dir: p.dir, State: membership.Current.String()})
	}
	return nil
}

// clear removes the log files of another time from a directory.
func (l *Log) clear(p *place) error {
	if err := l.opts.FS.MkdirAll(p.dir, 0o700); err != nil {
		return err
	}
	if err := vfs.SyncDir(l.opts.FS, l.opts.FS.PathDir(p.dir)); err != nil {
		return err
	}
	names, err := l.opts.FS.List(p.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		base, temporary := name, false
		if len(name) > 4 && name[len(name)-4:] == ".tmp" {
			base, temporary = name[:len(name)-4], true
		}
		if _, ok := parseFileName(base); ok || temporary && base == membership.FileName {
			if err := l.opts.FS.Remove(l.opts.FS.PathJoin(p.dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// turn makes the log go on in a file that the directory has.
func (l *Log) turn(p *place) error {
	l.st.Lock()
	if next := l.st.next; next != nil && !next.has(p) {
		// It was prepared without the directory. Nothing is in it, and its id is not used.
		l.st.next = nil
		l.st.spares = append(l.st.spares, next)
	}
	l.st.Unlock()
	l.kick(l.prepKick)
	for {
		done, err := l.turnOnce(p)
		if done || err != nil {
			return err
		}
		select {
		case <-l.quit:
			return errFillEnds
		case <-time.After(fillPoll):
		}
	}
}

func (l *Log) turnOnce(p *place) (done bool, err error) {
	l.app.Lock()
	defer l.app.Unlock()
	if err := l.usable(); err != nil {
		return false, err
	}
	if l.app.active.has(p) {
		return true, nil
	}
	if !p.is(placeFilling) {
		return false, errFillEnds
	}
	if !l.canRoll() {
		return false, nil
	}
	return false, l.roll()
}

// nextLacking waits for a live file that the directory lacks to be sealed, and returns it; nil when there is none left.
func (l *Log) nextLacking(p *place) (*logFile, error) {
	for {
		if err := l.failed(); err != nil {
			return nil, err
		}
		if !p.is(placeFilling) {
			return nil, errFillEnds
		}
		l.st.Lock()
		var lacking *logFile
		open := false
		for _, f := range l.st.live {
			if f.has(p) {
				continue
			}
			if f.sealed {
				lacking = f
				break
			}
			open = true
		}
		l.st.Unlock()
		if lacking != nil || !open {
			return lacking, nil
		}
		select {
		case <-l.quit:
			return nil, errFillEnds
		case <-time.After(fillPoll):
		}
	}
}

// isLive reports whether a file is still in use.
func (l *Log) isLive(f *logFile) bool {
	l.st.Lock()
	defer l.st.Unlock()
	for _, o := range l.st.live {
		if o == f {
			return true
		}
	}
	return false
}
