package stripe

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/membership"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// ErrTooFew says that there are fewer directories than stripes need.
var ErrTooFew = errors.New("too few directories")

// Options say what a tier consists of.
type Options struct {
	FS      vfs.FS
	StoreID block.UUID
	// Dirs are the directories, each on a disk of its own; the first is the one that the tier had when it was a single one. At least as many as Shape has shards.
	Dirs []string
	// Shape is how sealed segments are cut. None: whole, in the first directory; for the way back.
	Shape erasure.Shape
	// Event is called, if set, when a directory falls out or comes back; it must not call the backend.
	Event func(DirInfo)
}

// DirInfo is the state of a directory of a tier.
type DirInfo struct {
	Dir   string
	State string // "in sync", "vacant", "failed"
	Err   error
}

// Backend is a tier of several directories. It implements tiers.Mender; sidecars are left over from a single directory, and can be read and deleted.
type Backend struct {
	o     Options
	group *membership.Group
	code  *erasure.Code // of o.Shape

	mu struct {
		sync.Mutex
		disks   []*disk // replaced, never changed
		entries map[string]*entry
		dirty   map[string]bool // segments of which a read has met damage
	}
	counts struct{ reconstructed atomic.Uint64 }
}

// disk is one directory.
type disk struct {
	path  string
	index int // in the group
	b     *dir.Backend
	in    atomic.Bool
}

// entry is where a segment lies.
type entry struct {
	whole   []*disk
	open    bool // a writer appends to it
	writer  *writer
	sets    []*shardSet
	changed uint64 // counts what readers must see anew
}

// shardSet is the shards of a segment that were cut alike.
type shardSet struct {
	shape  erasure.Shape
	size   int64
	shards []*disk // by index; nil: missing
}

func (s *shardSet) present() (n int) {
	for _, d := range s.shards {
		if d != nil && d.in.Load() {
			n++
		}
	}
	return n
}

func (s *shardSet) name(key string, i int) string {
	n := shardName{key, s.shape, i, s.size}
	return n.String()
}

var _ tiers.Mender = (*Backend)(nil)

// Open opens the tier. Directories that are stale give up their whole copies and join; one that is vacant waits for Replace. It reads names only.
func Open(o Options) (*Backend, error) {
	if err := CheckShape(o.Shape); err != nil {
		return nil, err
	}
	if n := max(1, o.Shape.Data+o.Shape.Parity); n > len(o.Dirs) {
		return nil, fmt.Errorf("stripes of %v need %d directories, there are %d: %w", o.Shape, n, len(o.Dirs), block.ErrInvalid)
	}
	b := &Backend{o: o}
	b.mu.entries, b.mu.dirty = map[string]*entry{}, map[string]bool{}
	var err error
	if !o.Shape.None() {
		if b.code, err = erasure.NewCode(o.Shape); err != nil {
			return nil, err
		}
	}
	if b.group, err = membership.Open(o.FS, membership.Segments, o.StoreID, o.Dirs); err != nil {
		return nil, fmt.Errorf("directories of the segments: %w", err)
	}
	return b, b.begin()
}

// begin opens the directories, lets those join that may, and reads what lies in them.
func (b *Backend) begin() error {
	var joining []*disk
	for i, d := range b.group.Directories() {
		k := &disk{path: d.Path, index: i}
		b.mu.disks = append(b.mu.disks, k)
		switch d.State {
		case membership.Current:
			if err := k.open(b.o.FS); err != nil {
				_ = b.group.Drop(i, err) // the next generation of labels says so
				continue
			}
			k.in.Store(true)
		case membership.Stale, membership.New:
			joining = append(joining, k)
		}
	}
	if err := b.group.Begin(); err != nil {
		return err
	}
	for _, k := range joining {
		if err := b.join(k); err != nil {
			_ = b.group.Drop(k.index, err)
		}
	}
	for _, k := range b.disks() {
		if !k.in.Load() {
			b.tell(k)
			continue
		}
		if err := b.load(k, nil); err != nil {
			if err := b.drop(k, err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (k *disk) open(fs vfs.FS) (err error) {
	k.b, err = dir.Open(fs, k.path)
	return err
}

// join brings a directory in that has been away: its whole copies, which others may have appended to, go. What is missing is made by Check.
func (b *Backend) join(k *disk) error {
	if err := b.o.FS.MkdirAll(k.path, 0o700); err != nil {
		return err
	}
	if err := vfs.SyncDir(b.o.FS, b.o.FS.PathDir(k.path)); err != nil {
		return err
	}
	if err := k.open(b.o.FS); err != nil {
		return err
	}
	if err := b.group.Prepare(k.index); err != nil {
		return err
	}
	err := k.b.List(func(key string, _ int64) error { return k.b.Delete(key) })
	if err == nil {
		err = k.b.Sync()
	}
	if err == nil {
		err = b.group.Join(k.index)
	}
	if err == nil {
		k.in.Store(true)
	}
	return err
}

// folders calls visit with the names in each folder of a directory.
func (b *Backend) folders(k *disk, visit func(folder, name string) error) error {
	for i := range 256 {
		folder := b.o.FS.PathJoin(k.path, fmt.Sprintf("%02x", i))
		names, err := b.o.FS.List(folder)
		if err != nil && !vfs.IsNotExist(err) {
			return err
		}
		for _, name := range names {
			if err := visit(folder, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// load takes over what lies in a directory, and removes what a crash left half made. What is of a segment that no other directory has, and known does not know, stays where it is and counts for nothing; nil knows all.
func (b *Backend) load(k *disk, known func(key string) bool) error {
	wanted := func(key string) bool {
		if known == nil {
			return true
		}
		b.mu.Lock()
		there := b.mu.entries[key] != nil
		b.mu.Unlock()
		return there || known(key)
	}
	return b.folders(k, func(folder, name string) error {
		if shard, temporary := strings.CutSuffix(name, ".tmp"); temporary {
			if _, ok := parseShardName(shard); ok {
				return b.o.FS.Remove(b.o.FS.PathJoin(folder, name))
			}
			return nil
		}
		if _, _, ok := tiers.ParseSegmentKey(name); ok && wanted(name) {
			b.edit(name, func(e *entry) { e.whole = append(e.whole, k) })
		} else if n, ok := parseShardName(name); ok && wanted(n.segment) {
			b.edit(n.segment, func(e *entry) { e.set(n.shape, n.size).shards[n.index] = k })
		}
		return nil
	})
}

// set returns the shards of a shape and size, which it adds if there are none.
func (e *entry) set(shape erasure.Shape, size int64) *shardSet {
	for _, s := range e.sets {
		if s.shape == shape && s.size == size {
			return s
		}
	}
	s := &shardSet{shape: shape, size: size, shards: make([]*disk, shape.Data+shape.Parity)}
	e.sets = append(e.sets, s)
	return s
}

// edit changes the entry of a segment, which it makes if there is none.
func (b *Backend) edit(key string, change func(*entry)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.mu.entries[key]
	if e == nil {
		e = &entry{}
		b.mu.entries[key] = e
	}
	change(e)
	e.changed++
}

// lookup returns a copy of the entry of a segment.
func (b *Backend) lookup(key string) (entry, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.mu.entries[key]
	if e == nil {
		return entry{}, false
	}
	c := entry{whole: slices.Clone(e.whole), open: e.open, writer: e.writer, changed: e.changed}
	for _, s := range e.sets {
		c.sets = append(c.sets, &shardSet{s.shape, s.size, slices.Clone(s.shards)})
	}
	return c, true
}

func (b *Backend) disks() []*disk {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.disks
}

// Dirs returns the state of each directory.
func (b *Backend) Dirs() (infos []DirInfo) {
	dirs := b.group.Directories()
	for _, k := range b.disks() {
		infos = append(infos, DirInfo{k.path, dirs[k.index].State.String(), dirs[k.index].Err})
	}
	return infos
}

// Missed is how many directories were in sync at the last run and are not among those of this one.
func (b *Backend) Missed() int { return b.group.Missed() }

// Reconstructed is how many columns reads have reconstructed since Open.
func (b *Backend) Reconstructed() uint64 { return b.counts.reconstructed.Load() }

func (b *Backend) tell(k *disk) {
	if b.o.Event != nil {
		d := b.group.Directories()[k.index]
		b.o.Event(DirInfo{k.path, d.State.String(), d.Err})
	}
}

// drop goes on without a directory.
func (b *Backend) drop(k *disk, cause error) error {
	if !k.in.Swap(false) {
		return nil
	}
	if err := b.group.Drop(k.index, cause); err != nil {
		return fmt.Errorf("go on without %s, which failed (%w): %w", k.path, cause, err)
	}
	dirs := b.group.Directories()
	for _, o := range b.disks() {
		if dirs[o.index].State != membership.Current {
			o.in.Store(false)
		}
	}
	b.tell(k)
	return nil
}

// suspect looks whether a directory where something failed is there at all, and goes on without it if not. One that has its label has lost a file, or some bytes of it.
func (b *Backend) suspect(k *disk, cause error) {
	if _, err := b.o.FS.Stat(b.o.FS.PathJoin(k.path, membership.FileName)); err != nil {
		_ = b.drop(k, fmt.Errorf("%w; %w", cause, err))
	}
}

// Probe looks whether every directory is still there, and goes on without those that are not: one that nobody asks for anything would not be noticed.
func (b *Backend) Probe() {
	for _, k := range b.disks() {
		if !k.in.Load() {
			continue
		}
		if err := b.group.Probe(k.index); err != nil {
			_ = b.drop(k, err)
		}
	}
}

// Returned reports whether the directory at path fell out, and whether it is there again as it was: then ReplaceDir of path by itself takes it back.
func (b *Backend) Returned(path string) (out, back bool) {
	for _, k := range b.disks() {
		if k.path == path && !k.in.Load() {
			return true, b.group.Returned(k.index)
		}
	}
	return false, false
}

// ReplaceDir takes the directory at path in the place of another one: both may be the same path, with another disk behind it, or with the same that was away. Shards that lie in it count; what is missing is made anew in the
// background. known says which segments there are, whether or not another directory has some of them: what else a directory that was away has left was deleted meanwhile, and is removed by the next start. nil knows all.
func (b *Backend) ReplaceDir(old, path string, known func(key string) bool) error {
	var was *disk
	for _, k := range b.disks() {
		if k.path == old {
			was = k
		}
	}
	b.Probe()
	if was == nil {
		return fmt.Errorf("%s is no directory of the segments: %w", old, block.ErrNotFound)
	}
	if old == path && was.in.Load() {
		return fmt.Errorf("%s is in sync: %w", old, block.ErrInvalid)
	}
	index := was.index
	if old != path {
		if err := b.o.FS.MkdirAll(path, 0o700); err != nil {
			return err
		}
		var err error
		if index, err = b.group.Add(path); err != nil {
			return err
		}
	}
	k := &disk{path: path, index: index}
	if err := b.join(k); err != nil {
		return fmt.Errorf("take %s: %w", path, err)
	}
	if err := b.drop(was, fmt.Errorf("replaced by %s", path)); err != nil {
		return err
	}
	if was.index != k.index {
		if err := b.group.Forget(was.index); err != nil {
			return err
		}
	}
	b.mu.Lock()
	disks := slices.Clone(b.mu.disks)
	disks[slices.Index(disks, was)] = k
	b.mu.disks = disks
	for _, e := range b.mu.entries {
		e.forget(was)
	}
	b.mu.Unlock()
	return b.load(k, known)
}

// forget takes a directory out of an entry.
func (e *entry) forget(k *disk) {
	e.whole = slices.DeleteFunc(e.whole, func(o *disk) bool { return o == k })
	for _, s := range e.sets {
		for i := range s.shards {
			if s.shards[i] == k {
				s.shards[i] = nil
			}
		}
	}
	e.changed++
}

// folderOf is the folder of a segment in a directory.
func (b *Backend) folderOf(k *disk, key string) string {
	id, _, _ := tiers.ParseSegmentKey(key)
	return b.o.FS.PathJoin(k.path, fmt.Sprintf("%02x", uint8(id)))
}

func checkKey(key string) error {
	if _, _, ok := tiers.ParseSegmentKey(key); !ok {
		return fmt.Errorf("segment key %q: %w", key, block.ErrInvalid)
	}
	return nil
}

// Delete implements tiers.Backend. A directory that is out keeps what it has until it comes back.
func (b *Backend) Delete(key string) error {
	if _, ok := tiers.ParseParityKey(key); ok {
		return b.each(func(k *disk) error { return k.b.Delete(key) })
	}
	if err := checkKey(key); err != nil {
		return err
	}
	e, ok := b.lookup(key)
	if !ok {
		return nil
	}
	b.mu.Lock()
	delete(b.mu.entries, key)
	delete(b.mu.dirty, key)
	b.mu.Unlock()
	var errs []error
	for _, k := range e.whole {
		if k.in.Load() {
			errs = append(errs, k.b.Delete(key))
		}
	}
	for _, s := range e.sets {
		errs = append(errs, b.removeSet(key, s))
	}
	return errors.Join(errs...)
}

// removeSet removes the shards of a set.
func (b *Backend) removeSet(key string, s *shardSet) error {
	var errs []error
	for i, k := range s.shards {
		if k != nil && k.in.Load() {
			if err := b.o.FS.Remove(b.o.FS.PathJoin(b.folderOf(k, key), s.name(key, i))); err != nil && !vfs.IsNotExist(err) {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

// each does something in every directory that is in sync.
func (b *Backend) each(do func(*disk) error) error {
	var errs []error
	for _, k := range b.disks() {
		if k.in.Load() {
			errs = append(errs, do(k))
		}
	}
	return errors.Join(errs...)
}

// List implements tiers.Backend.
func (b *Backend) List(visit func(key string, sizeBytes int64) error) error {
	b.mu.Lock()
	keys := make([]string, 0, len(b.mu.entries))
	for key := range b.mu.entries {
		keys = append(keys, key)
	}
	b.mu.Unlock()
	slices.Sort(keys)
	for _, key := range keys {
		size, err := b.size(key)
		if errors.Is(err, block.ErrNotFound) {
			continue // deleted meanwhile, or beyond reach
		}
		if err != nil {
			return err
		}
		if err := visit(key, size); err != nil {
			return err
		}
	}
	return nil
}

// size is the length of a segment: that of its longest whole copy, or what the names of its shards say.
func (b *Backend) size(key string) (size int64, err error) {
	e, _ := b.lookup(key)
	size, err = -1, block.ErrNotFound
	for _, k := range e.whole {
		if !k.in.Load() {
			continue
		}
		st, e := b.o.FS.Stat(b.o.FS.PathJoin(b.folderOf(k, key), key))
		if e != nil {
			err = fmt.Errorf("%w: %w", block.ErrNotFound, e)
			continue
		}
		size = max(size, st.Size())
	}
	if size < 0 && len(e.sets) > 0 {
		size = e.sets[0].size
	}
	if size < 0 {
		return 0, err
	}
	return size, nil
}

// Capacity implements tiers.Backend: that of the directory with the least room, as each takes its part of everything.
func (b *Backend) Capacity() (least tiers.Capacity, err error) {
	found := false
	for _, k := range b.disks() {
		if !k.in.Load() {
			continue
		}
		c, err := k.b.Capacity()
		if err != nil {
			return c, err
		}
		if !found || c.FreeBytes < least.FreeBytes {
			least, found = c, true
		}
	}
	if !found {
		return least, fmt.Errorf("no directory of the segments is left: %w", block.ErrNotFound)
	}
	return least, nil
}

// Sync implements tiers.Backend.
func (b *Backend) Sync() error { return b.each(func(k *disk) error { return k.b.Sync() }) }

// ListBeside implements tiers.Mender: sidecars of the time before.
func (b *Backend) ListBeside(visit func(parityKey string) error) error {
	return b.each(func(k *disk) error { return k.b.ListBeside(visit) })
}
