package membership

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// State is what a directory of a group is good for.
type State int

const (
	// Current directories have all that was acknowledged.
	Current State = iota
	// Stale ones had been members, and others went on without them.
	Stale
	// New ones have no label, and no member is missed: they are wanted in addition.
	New
	// Vacant ones have no label while a member is missed, whose place they may have been given, or whose disk may just not be mounted. Somebody has to say that they are meant.
	Vacant
	// Failed ones cannot be read or written.
	Failed
)

// String returns the state in a word.
func (s State) String() string {
	return [...]string{"in sync", "stale", "new", "vacant", "failed"}[s]
}

// Directory is one directory of a group.
type Directory struct {
	Path   string
	State  State
	Err    error // why it is not current, where something failed
	id     block.UUID
	label  Label // as read by Open
	named  bool  // label is valid
	takes  bool  // it is given the place of one that is missed
	member bool  // it is or was in sync, and nobody has taken its place
}

// Group is the directories that hold the same thing. Its methods may be called from any number of goroutines.
type Group struct {
	fs    vfs.FS
	kind  Kind
	store block.UUID

	mu         sync.Mutex
	dirs       []Directory
	generation uint64
	labelled   bool // there are labels at all
	missed     []block.UUID
}

// Open reads the labels in the directories, whose first one is the truth where there is none at all. It changes nothing. A label of another store or kind is an error: somebody has named the wrong directory.
func Open(fsys vfs.FS, kind Kind, store block.UUID, paths []string) (*Group, error) {
	g := &Group{fs: fsys, kind: kind, store: store}
	if len(paths) == 0 || len(paths) > MaxMembers {
		return nil, fmt.Errorf("group of %d directories: %w", len(paths), block.ErrInvalid)
	}
	for _, path := range paths {
		d, err := g.look(path)
		if err != nil {
			return nil, err
		}
		if d.named && slices.ContainsFunc(g.dirs, func(o Directory) bool { return o.named && o.id == d.id }) {
			return nil, fmt.Errorf("%s is a copy of another directory of its group, or the same: %w", path, block.ErrInvalid)
		}
		g.dirs = append(g.dirs, d)
	}
	g.judge()
	return g, nil
}

// look reads the label of one directory.
func (g *Group) look(path string) (Directory, error) {
	d := Directory{Path: path, State: New}
	b, err := readLabel(g.fs, g.fs.PathJoin(path, FileName))
	if vfs.IsNotExist(err) {
		return d, nil
	}
	if err != nil {
		d.State, d.Err = Failed, err
		return d, nil
	}
	l, err := Parse(b)
	switch {
	case errors.Is(err, block.ErrVersion):
		return d, fmt.Errorf("%s: %w", path, err)
	case err != nil:
		d.State, d.Err = Stale, fmt.Errorf("%s: %w", path, err)
	case l.StoreID != g.store || l.Kind != g.kind:
		return d, fmt.Errorf("%s belongs to store %v (directory of kind %d), this is %v (kind %d); name another directory, or empty that one: %w", path, l.StoreID, l.Kind, g.store, g.kind, block.ErrInvalid)
	default:
		d.label, d.id, d.named = l, l.Self, true
	}
	return d, nil
}

func readLabel(fsys vfs.FS, path string) ([]byte, error) {
	f, err := fsys.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, labelSize+1))
}

// judge decides from the labels which directories are current.
func (g *Group) judge() {
	top := Label{}
	for i := range g.dirs {
		if l := &g.dirs[i].label; g.dirs[i].named && (!g.labelled || l.Generation > top.Generation) {
			top, g.labelled = *l, true
		}
	}
	if !g.labelled || len(top.Members) == 0 {
		g.labelled = false
		if g.dirs[0].State != Failed {
			g.dirs[0].State, g.dirs[0].Err, g.dirs[0].member = Current, nil, true
		}
		return
	}
	g.generation = top.Generation
	for _, m := range top.Members {
		if !slices.ContainsFunc(g.dirs, func(d Directory) bool { return d.named && d.id == m.ID }) {
			g.missed = append(g.missed, m.ID)
		}
	}
	known := true
	for i := range g.dirs {
		d := &g.dirs[i]
		switch {
		case d.named && slices.Contains(top.Members, Member{d.id, true}) && d.label.Generation >= top.Since:
			d.State, d.member = Current, true
		case d.named:
			d.State, d.member = Stale, slices.ContainsFunc(top.Members, func(m Member) bool { return m.ID == d.id })
		case d.State == New && len(g.missed) > 0:
			d.State = Vacant
		}
		known = known && d.named
	}
	if known {
		g.missed = nil // every directory has been one before: the others were taken out of the list on purpose
	}
}

// Labelled reports whether any directory had a label when the group was opened.
func (g *Group) Labelled() bool { return g.labelled }

// Directories returns what is known of each directory.
func (g *Group) Directories() []Directory {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.dirs)
}

// Missed is how many directories were in sync and are at none of the paths.
func (g *Group) Missed() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.missed)
}

// Begin writes new labels into the current directories, which makes all others stale. It comes before anything is acknowledged that only they have. It returns the directories that were dropped because
// they could not be written; an error if none is left.
func (g *Group) Begin() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.write()
}

// Drop goes on without a directory: when it returns nil the others say so, durably.
func (g *Group) Drop(i int, cause error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	was := g.dirs[i].State
	g.dirs[i].State, g.dirs[i].Err = Failed, cause
	if was != Current {
		return nil
	}
	return g.write()
}

// Probe looks whether a directory that is in sync is still there, and the same: its label is as it was written last. The error says what is wrong with it.
func (g *Group) Probe(i int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := &g.dirs[i]
	if d.State != Current {
		return nil
	}
	b, err := readLabel(g.fs, g.fs.PathJoin(d.Path, FileName))
	if err != nil {
		return err
	}
	l, err := Parse(b)
	if err == nil && (l.Self != d.id || l.Generation != g.generation) {
		err = &block.CorruptError{Source: g.fs.PathJoin(d.Path, FileName), Want: fmt.Sprintf("label %v of generation %d", d.id, g.generation), Got: fmt.Sprintf("%v of generation %d", l.Self, l.Generation)}
	}
	return err
}

// Returned reports whether a directory that is not current is there again as it was: its label is that of a member that others went on without. One without a label may be an empty mount point.
func (g *Group) Returned(i int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := &g.dirs[i]
	if d.State == Current {
		return false
	}
	b, err := readLabel(g.fs, g.fs.PathJoin(d.Path, FileName))
	if err != nil {
		return false
	}
	l, err := Parse(b)
	return err == nil && l.StoreID == g.store && l.Kind == g.kind && (l.Self == d.id || slices.Contains(g.missed, l.Self))
}

// Forget says that another directory has taken the place of one that fell out: nobody waits for it any more.
func (g *Group) Forget(i int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if d := &g.dirs[i]; d.State == Current || !d.member {
		return nil
	}
	g.dirs[i].member = false
	return g.write()
}

// Join makes a directory current that has all that the others have.
func (g *Group) Join(i int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dirs[i].State, g.dirs[i].Err, g.dirs[i].member = Current, nil, true
	if g.dirs[i].takes && len(g.missed) > 0 {
		g.missed = g.missed[1:] // it has taken a place that was empty
	}
	if err := g.write(); err != nil {
		return err
	}
	return g.dirs[i].Err
}

// Admit makes a new directory current from the next Begin on, while nobody has anything that it could lack. It reports whether it is.
func (g *Group) Admit(i int) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirs[i].State == New {
		g.dirs[i].State, g.dirs[i].member = Current, true
	}
	return g.dirs[i].State == Current
}

// Prepare gives a directory that is to be filled a new name, under which no label counts it as current yet. Until Join it stays what it is.
func (g *Group) Prepare(i int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	d := &g.dirs[i]
	if d.State == Current {
		return fmt.Errorf("%s is in sync: %w", d.Path, block.ErrInvalid)
	}
	d.id, d.member, d.takes = block.UUID(uuid.New()), false, d.State == Vacant
	l := Label{Kind: g.kind, StoreID: g.store, Self: d.id}
	if err := writeLabel(g.fs, d.Path, &l); err != nil {
		d.State, d.Err = Failed, err
		return err
	}
	d.State, d.Err = Stale, nil
	return nil
}

// Add adds a directory that was not there when the group was opened, and returns its number. It is Vacant until it was prepared and joins.
func (g *Group) Add(path string) (int, error) {
	d, err := g.look(path)
	if err != nil {
		return 0, err
	}
	if d.Err != nil {
		return 0, d.Err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.dirs) >= MaxMembers {
		return 0, fmt.Errorf("more than %d directories: %w", MaxMembers, block.ErrInvalid)
	}
	if slices.ContainsFunc(g.dirs, func(o Directory) bool { return o.Path == path && o.State == Current }) {
		return 0, fmt.Errorf("%s is in use: %w", path, block.ErrExists)
	}
	d.State, d.named = Vacant, false
	g.dirs = append(g.dirs, d)
	return len(g.dirs) - 1, nil
}

// write writes labels of the next generation into all current directories. One that cannot be written is current no more, and the others are told so by another round.
func (g *Group) write() error {
	for {
		since := g.generation
		g.generation++
		l := Label{Kind: g.kind, StoreID: g.store, Generation: g.generation, Since: since}
		for i := range g.dirs {
			if d := &g.dirs[i]; d.State == Current {
				if d.id == (block.UUID{}) {
					d.id = block.UUID(uuid.New())
				}
				l.Members = append(l.Members, Member{d.id, true})
			}
		}
		alone := len(l.Members) == 0
		for i := range g.dirs {
			if d := &g.dirs[i]; d.State != Current && d.member {
				l.Members = append(l.Members, Member{ID: d.id})
			}
		}
		for _, id := range g.missed {
			l.Members = append(l.Members, Member{ID: id})
		}
		l.Members = l.Members[:min(len(l.Members), MaxMembers)]
		if alone {
			return fmt.Errorf("no directory is left: %w", g.causes())
		}
		if g.writeEach(l) {
			return nil
		}
	}
}

// writeEach writes one label into each current directory and reports whether all have it.
func (g *Group) writeEach(l Label) bool {
	all := true
	for i := range g.dirs {
		d := &g.dirs[i]
		if d.State != Current {
			continue
		}
		l.Self = d.id
		if err := writeLabel(g.fs, d.Path, &l); err != nil {
			d.State, d.Err, all = Failed, err, false
		}
	}
	return all
}

func (g *Group) causes() error {
	var errs []error
	for i := range g.dirs {
		errs = append(errs, g.dirs[i].Err)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return block.ErrNotFound
}

// writeLabel replaces the label of a directory: temporary file, sync, rename, sync of the directory.
func writeLabel(fsys vfs.FS, dir string, l *Label) error {
	path := fsys.PathJoin(dir, FileName)
	f, err := vfs.Create(fsys, path+".tmp")
	if err == nil {
		_, err = f.Write(l.Append(nil))
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}
	if err == nil {
		err = fsys.Rename(path+".tmp", path)
	}
	if err == nil {
		err = vfs.SyncDir(fsys, dir)
	}
	if err != nil {
		return fmt.Errorf("write label of %s: %w", dir, err)
	}
	return nil
}
