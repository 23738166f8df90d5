package blockstore

import (
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// A disk that vanishes while the store runs, such as one whose cable or host adapter failed, and comes back at its path is taken back by itself. Its labels tell that it is stale: the others have gone on under higher generations. Its
// copy of the log is filled anew. Of the segments it keeps its shards, as what a segment holds never changes, and only those are made that are missing: of what was sealed while it was away, and of what it lost.
//
// Only a disk that was really gone is taken back. One that is there and fails would fall out again and again: for that somebody has to say `disk replace`. And an empty directory is never taken, as the disk may not be mounted.

// returning is what the keeper remembers of disks that fell out.
type returning struct {
	gone  map[string]bool // directories that were seen to be gone since they fell out
	again time.Time       // when the next try is due
}

// takeBack looks for disks that are there again. The keeper calls it once a second.
func (k *keeper) takeBack() {
	s, r := k.s, &k.returning
	if s.stripes == nil || time.Now().Before(r.again) {
		return
	}
	if r.gone == nil {
		r.gone = map[string]bool{}
	}
	for i, disk := range s.allDisks() {
		if i == 0 {
			continue // without its metadata the store does not run
		}
		back := false
		for _, part := range []struct {
			dir  string
			look func(string) (out, back bool)
		}{{s.fs.PathJoin(disk, "segments"), s.stripes.Returned}, {s.fs.PathJoin(disk, "log"), s.log.Returned}} {
			out, here := part.look(part.dir)
			switch {
			case !out:
				delete(r.gone, part.dir)
			case !here:
				r.gone[part.dir] = true
			case r.gone[part.dir]:
				back = true
			}
		}
		if !back {
			continue
		}
		if err := s.ReplaceDisk(disk, disk); err != nil {
			s.report("take back the disk "+disk, err)
			r.again = time.Now().Add(keeperRetry)
			continue
		}
		k.seconds.next = time.Time{} // it may have brought second copies along
		s.tellDisk(disk, "filling", nil)
	}
}

// hasSegment reports whether a segment has a row.
func (s *Store) hasSegment(key string) bool {
	id, _, ok := tiers.ParseSegmentKey(key)
	if !ok {
		return false
	}
	row, there := s.segments.get(id)
	return there && slices.ContainsFunc(row.Placement, func(p tiers.Placement) bool { return p.Key == key })
}
