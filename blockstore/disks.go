package blockstore

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
	"github.com/hyper-nixos/hyper-nixos/tiers/stripe"
)

// A store may have further disks, each a directory that holds what makes up for the loss of another one: a copy of the log, its part of each segment, and copies of superblock and domain key. Pebble is on the first
// disk alone: it is made anew from the checkpoints, which are segments.
//
//	DISK/log/…      the log again, on the first of them (Options.LogCopies)
//	DISK/segments/… whole copies of open segments, shards of sealed ones (tiers/stripe)
//	DISK/super.0 …  what is needed to open the store without the first disk
//
// incompatDisks keeps programs away that know one disk only.

// restoredBoots is how far the boot epoch is raised when the superblock comes from a copy, which may be some starts old.
const restoredBoots = 1 << 10

// DiskInfo is the state of one disk of the store.
type DiskInfo struct {
	Path       string
	Log        string // "in sync", "filling", "stale", "vacant", "failed"; empty: it holds no log
	Segments   string // likewise; empty: it holds no segments
	LogFiles   int    // that it still lacks while it is being filled
	TotalBytes uint64
	FreeBytes  uint64
	Problem    string // why it is not in sync; else empty
}

// Redundancy is how well the store would survive the loss of a disk.
type Redundancy struct {
	Disks []DiskInfo
	// Missed is how many directories of disks were in use at the last run and are not configured, or empty.
	Missed int
	// SegmentsLacking have fewer shards than they shall have; SegmentsWaiting are not cut as they shall be yet.
	SegmentsLacking, SegmentsWaiting int
	// BytesLeft are those of both, and of log files that disks still lack.
	BytesLeft uint64
}

// Degraded reports whether less is there than there shall be.
func (r *Redundancy) Degraded() bool {
	bad := func(state string) bool { return state != "" && state != "in sync" }
	return r.Missed > 0 || r.SegmentsLacking > 0 || slices.ContainsFunc(r.Disks, func(d DiskInfo) bool { return bad(d.Log) || bad(d.Segments) })
}

// allDisks are the directories of all disks, the data directory first.
func (s *Store) allDisks() []string {
	s.diskMu.Lock()
	defer s.diskMu.Unlock()
	return append([]string{s.opts.Dir}, s.opts.Disks...)
}

// logCopies is how many disks hold the log.
func (o *Options) logCopies() int {
	n := o.LogCopies
	if n == 0 {
		n = journal.MaxPlaces
		if !o.Stripe.None() {
			n = min(n, o.Stripe.Parity+1)
		}
	}
	return min(n, 1+len(o.Disks), journal.MaxPlaces)
}

// validateDisks reports what of the options of disks is out of bounds.
func (o *Options) validateDisks() error {
	if err := stripe.CheckShape(o.Stripe); err != nil {
		return err
	}
	switch n := o.Stripe.Data + o.Stripe.Parity; {
	case n > 1+len(o.Disks):
		return fmt.Errorf("stripes of %d+%d need %d disks, there are %d with the data directory: %w", o.Stripe.Data, o.Stripe.Parity, n, 1+len(o.Disks), block.ErrInvalid)
	case o.LogCopies < 0 || o.LogCopies > journal.MaxPlaces:
		return fmt.Errorf("log on %d disks, at most %d: %w", o.LogCopies, journal.MaxPlaces, block.ErrInvalid)
	case o.LogCopies > 1+len(o.Disks):
		return fmt.Errorf("log on %d disks, there are %d with the data directory: %w", o.LogCopies, 1+len(o.Disks), block.ErrInvalid)
	case len(o.Disks) > 30:
		return fmt.Errorf("%d further disks, at most 30: %w", len(o.Disks), block.ErrInvalid)
	}
	for i, d := range o.Disks {
		if d == "" || d == o.Dir || slices.Contains(o.Disks[:i], d) {
			return fmt.Errorf("disk %q is named twice or not at all: %w", d, block.ErrInvalid)
		}
	}
	return nil
}

// logMirrors are the further directories of the log.
func (s *Store) logMirrors() (dirs []string) {
	for _, d := range s.allDisks()[1:s.opts.logCopies()] {
		dirs = append(dirs, s.fs.PathJoin(d, "log"))
	}
	return dirs
}

// restoreSuper finds superblock and key on the further disks when the data directory has none. A data directory that is empty may also be one whose disk is not mounted: somebody has to say that it is lost.
func (s *Store) restoreSuper() (*superblock, error) {
	var best *superblock
	var from string
	for _, d := range s.opts.Disks {
		super, err := readSuper(s.fs, d)
		if errors.Is(err, block.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if best == nil || super.Generation > best.Generation {
			best, from = super, d
		}
	}
	if best == nil {
		return nil, nil
	}
	if !s.opts.RestoreDataDir {
		return nil, fmt.Errorf("%s holds no store, but %s has copies of store %v: mount the disk of %s, or start hvd once with --store-restore-data-dir on if it is lost: %w", s.opts.Dir, from, best.StoreID, s.opts.Dir, block.ErrNotFound)
	}
	key, err := readSmallFile(s.fs, s.fs.PathJoin(from, best.keyFile()), keyring.MaxFile)
	if err != nil {
		return nil, fmt.Errorf("copy of the keys: %w", err)
	}
	if err := s.syncParents(); err != nil {
		return nil, err
	}
	if err := s.writeKeys(best.keyFile(), key); err != nil {
		return nil, err
	}
	best.BootEpoch += restoredBoots
	best.Flags &^= flagClean
	s.restored = true
	return best, nil
}

// copySuper writes superblock and key to the further disks that are in use. A disk that does not take them is reported; what it holds besides tells for itself.
func (s *Store) copySuper(super *superblock) {
	for _, d := range s.allDisks()[1:] {
		if !s.inUse(d) {
			continue
		}
		err := s.copyKeys(d) // first: the disk with the newest superblock is what a lost data directory is made from
		if err == nil {
			err = writeFileAtomic(s.fs, d, superPath(s.fs, d, super.Generation), super.encode())
		}
		s.report("copy the superblock to "+d, err)
	}
}

// inUse reports whether a disk holds log or segments of this store.
func (s *Store) inUse(disk string) bool {
	for _, part := range []string{"log", "segments"} {
		if _, err := s.fs.Stat(s.fs.PathJoin(disk, part, "members")); err == nil {
			return true
		}
	}
	return false
}

// openTiers opens the places where segments live.
func (s *Store) openTiers() error {
	backend, err := s.openBackend()
	if err != nil {
		return fmt.Errorf("open segments: %w", err)
	}
	s.tiers, err = tiers.NewSet(tiers.Options{
		Tiers: []tiers.Tier{{Name: defaultTier, Backend: backend}},
		CheckOpen: func(id block.SegmentID, generation uint32, r tiers.Reader) error {
			size, err := r.Size()
			if err == nil {
				_, err = segment.CheckHeader(r, size, s.super.StoreID, id, generation)
			}
			return err
		},
	})
	return err
}

// openBackend opens the tier that a store begins with: a directory, or one on each disk.
func (s *Store) openBackend() (tiers.Backend, error) {
	s.superMu.Lock()
	several := s.super.Incompat&incompatDisks != 0
	s.superMu.Unlock()
	if !several {
		return dir.Open(s.fs, s.path("segments"))
	}
	var dirs []string
	for _, d := range s.allDisks() {
		dirs = append(dirs, s.fs.PathJoin(d, "segments"))
	}
	b, err := stripe.Open(stripe.Options{FS: s.fs, StoreID: s.super.StoreID, Dirs: dirs, Shape: s.opts.Stripe, Event: func(d stripe.DirInfo) { s.tellDisk(d.Dir, d.State, d.Err) }})
	if err != nil {
		return nil, err
	}
	if s.restored {
		if err := b.ReplaceDir(dirs[0], dirs[0], nil); err != nil && !errors.Is(err, block.ErrInvalid) {
			return nil, err
		}
	}
	s.stripes = b
	return b, nil
}

// tellDisk tells of a directory of a disk that fell out or came back.
func (s *Store) tellDisk(dir, state string, err error) {
	if f := s.opts.Events.Disk; f != nil {
		f(dir, state, err)
	}
	s.keeper.kick()
}

// tellMended tells of damage in one copy of the log that another one made good.
func (s *Store) tellMended(dir string, cause error) {
	k := &s.keeper.counts
	k.found.Add(1)
	k.mended.Add(1)
	k.inline.Add(1)
	s.report("read the log in "+dir+", which was mended from another disk", fmt.Errorf("%v", cause))
}

// ProbeDisks looks whether every disk is still there, and goes on without those that are not. The keeper does so each second, between its pieces of work.
func (s *Store) ProbeDisks() {
	if s.stripes != nil {
		s.stripes.Probe()
		s.log.Probe()
	}
}

// Redundancy returns the state of all disks, as ProbeDisks or a failed request saw them last.
func (s *Store) Redundancy() Redundancy {
	r := Redundancy{Missed: s.log.Missed()}
	places := map[string]journal.PlaceInfo{}
	for _, p := range s.log.Places() {
		places[p.Dir] = p
	}
	dirs := map[string]stripe.DirInfo{}
	if s.stripes != nil {
		for _, d := range s.stripes.Dirs() {
			dirs[d.Dir] = d
		}
		r.Missed = max(r.Missed, s.stripes.Missed())
		r.SegmentsLacking, r.SegmentsWaiting = s.stripes.Lacking()
	}
	if r.SegmentsLacking+r.SegmentsWaiting > 0 {
		r.BytesLeft = s.lackingBytes()
	}
	for i, d := range s.allDisks() {
		info := DiskInfo{Path: d}
		if p, ok := places[s.fs.PathJoin(d, "log")]; ok {
			info.Log, info.LogFiles = p.State, p.Left
			r.BytesLeft += uint64(int64(p.Left) * s.opts.LogFileBytes)
			info.Problem = text(p.Err)
		}
		if p, ok := dirs[s.fs.PathJoin(d, "segments")]; ok {
			info.Segments = p.State
			if info.Problem == "" {
				info.Problem = text(p.Err)
			}
		} else if i == 0 {
			info.Segments = "in sync"
		}
		if usage, err := s.fs.GetDiskUsage(d); err == nil {
			info.TotalBytes, info.FreeBytes = usage.TotalBytes, usage.AvailBytes
		} else if info.Problem == "" && !errors.Is(err, errors.ErrUnsupported) && info.Log+info.Segments != "" {
			info.Problem = err.Error()
		}
		r.Disks = append(r.Disks, info)
	}
	return r
}

// lackingBytes is the size of the segments that are not as they shall be.
func (s *Store) lackingBytes() (n uint64) {
	for _, row := range s.segments.all() {
		if row.State == segmentSealed && !s.stripes.Whole(row.Placement[0].Key) {
			n += row.Size
		}
	}
	return n
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// ReplaceDisk takes the directory at path in the place of the disk old: both may be the same, with another disk mounted there. What old held is made anew from the others in the background. Whoever starts the store next names path instead of old.
func (s *Store) ReplaceDisk(old, path string) error {
	i := slices.Index(s.allDisks(), old)
	switch {
	case i < 0:
		return fmt.Errorf("%s is no disk of this store: %w", old, block.ErrNotFound)
	case i == 0 && path != old:
		return fmt.Errorf("the data directory %s can be replaced at its own path only: %w", old, block.ErrInvalid)
	case path != old && slices.Contains(s.allDisks(), path):
		return fmt.Errorf("%s is a disk of this store already: %w", path, block.ErrExists)
	case s.stripes == nil:
		return fmt.Errorf("the store has one disk: %w", block.ErrInvalid)
	}
	s.ProbeDisks()
	part := func(d, name string) string { return s.fs.PathJoin(d, name) }
	segmentsErr := s.stripes.ReplaceDir(part(old, "segments"), part(path, "segments"), s.hasSegment)
	if segmentsErr != nil && !errors.Is(segmentsErr, block.ErrInvalid) {
		return segmentsErr
	}
	var logErr error
	if i < s.opts.logCopies() {
		logErr = s.log.Replace(part(old, "log"), part(path, "log"))
		if logErr != nil && !errors.Is(logErr, block.ErrInvalid) && !errors.Is(logErr, block.ErrInUse) {
			return logErr
		}
	}
	if segmentsErr != nil && (logErr != nil || i >= s.opts.logCopies()) {
		return segmentsErr
	}
	if i > 0 {
		s.diskMu.Lock()
		disks := slices.Clone(s.opts.Disks)
		disks[i-1] = path
		s.opts.Disks = disks
		s.diskMu.Unlock()
	}
	err := s.updateSuper(func(*superblock) {})
	s.keeper.kick()
	return err
}

// diskUsage is how full the disk is that has the least room: each takes its part of everything.
func (s *Store) diskUsage() (least vfs.DiskUsage, err error) {
	for i, d := range s.allDisks() {
		u, err := s.fs.GetDiskUsage(d)
		if err != nil {
			if i == 0 {
				return least, err
			}
			continue // it is out
		}
		if i == 0 || u.AvailBytes < least.AvailBytes {
			least = u
		}
	}
	return least, nil
}
