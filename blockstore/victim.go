package blockstore

import (
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A sealed segment is rewritten when less than this part of it is live, in percent. While guests wait for destage, it pays to wait: what is overwritten meanwhile need not
// be moved. While somebody settles, or when the disk is getting full, it pays to go further.
const (
	rewriteBelow         = 40
	rewriteBelowCold     = 65
	rewriteBelowPressed  = 15
	rewriteBelowThorough = 80
	rewriteBelowWaste    = 97
)

// wasteWhenSettled is how much of all segments may be dead when a settle is done, in percent. While it is more, a settle rewrites the deadest segments even where little is
// dead; so it moves no more than it must.
const wasteWhenSettled = 3

// victim returns the segment that is the most worth to be emptied. What lives in it must fit into the file system beside it: the reserve is there for that, but the metadata
// needs it, too.
//
// While nobody waits for space that is the one with the best ratio of benefit to cost as Rosenblum and Ousterhout weigh it ("The Design and Implementation of a Log-Structured
// File System", ACM TOCS 10(1), 1992): (1 − u) × age / (1 + u), u being the live part. Reading it costs 1 and writing what lives costs u; what is freed is 1 − u, and
// counts the more the longer it is likely to stay so, which the age of the youngest data in it tells: what was not overwritten for long will live on, so its free space is worth
// having early, while a young segment is likely to empty itself. Age is counted in segments that were begun since, the log's own clock.
//
// What a settle waits for comes first, and of that, and while space is short, the one with the least live share: what frees the most for what is written.
func (s *Store) victim() (segmentRow, bool) {
	short, mark := SpaceState(s.space.state.Load()) != SpaceOK, block.SegmentID(s.dueFirst.segment.Load())
	next := block.SegmentID(s.counted.Load().NextSegment)
	var best *segmentRow
	var bestScore float64
	s.eachVictim(func(r *segmentRow) {
		u := r.liveShare()
		score := (1 - u) * r.age(next) / (1 + u)
		if due := r.ID <= mark; due || short {
			if score = 1 - u; due {
				score += 2 * float64(next+1) // above all others
			}
		}
		if r.LiveChunks == 0 {
			score += 4 * float64(next+1) // that costs nothing
		}
		if best == nil || score > bestScore || score == bestScore && r.ID < best.ID {
			best, bestScore = r, score
		}
	})
	if best == nil {
		return segmentRow{}, false
	}
	return *best, true
}

// victims lists all segments that are worth reclaiming now.
func (s *Store) victims() (ids []block.SegmentID) {
	s.eachVictim(func(r *segmentRow) { ids = append(ids, r.ID) })
	return ids
}

// eachVictim calls f with all segments that are worth emptying and can be. Rows that others read never change, they are replaced.
func (s *Store) eachVictim(f func(*segmentRow)) {
	below, room, now := s.rewriteBelow(), s.rewriteRoom(), time.Now()
	next := block.SegmentID(s.counted.Load().NextSegment)
	s.collector.mu.Lock()
	defer s.collector.mu.Unlock()
	s.segments.mu.RLock()
	defer s.segments.mu.RUnlock()
	for id, r := range s.segments.rows {
		most := below.of(id)
		if most == rewriteBelow { // nobody waits for anything
			most += uint64((rewriteBelowCold - rewriteBelow) * min(1, r.age(next)/float64(len(s.segments.rows))))
		}
		if r.worthReclaiming(most) && (r.liveBytes() <= room || r.LiveChunks == 0) && !s.damaged.keeps(id) && !s.coolsSoon(r) && !s.collector.skips(id, now) {
			f(r)
		}
	}
}

// rewriteBelow is the part of a segment, in percent, that must be live for it to stay.
func (s *Store) rewriteBelow() liveShares {
	l := liveShares{mark: block.SegmentID(s.dueFirst.segment.Load()), later: rewriteBelow}
	switch {
	case SpaceState(s.space.state.Load()) != SpaceOK:
		l.later = rewriteBelowThorough
	case s.space.fill.Load() >= fillDestage:
		l.later = rewriteBelowPressed
	}
	l.due = rewriteBelowThorough
	if l.mark > 0 && s.wasteful() {
		l.due = rewriteBelowWaste
	}
	return l
}

// liveShares says how much of a segment must be live for it to stay, in percent. Only for what a settle waits for it is worth going far: what others kill while it waits would
// have the same data moved again and again.
type liveShares struct {
	mark       block.SegmentID // the youngest that a settle waits for; 0 none
	due, later uint64
}

func (l liveShares) of(id block.SegmentID) uint64 {
	if id <= l.mark {
		return l.due
	}
	return l.later
}

// worthReclaiming reports whether enough of a sealed segment is dead.
func (r *segmentRow) worthReclaiming(below uint64) bool {
	if r.State != segmentSealed || isMetadata(r) {
		return false
	}
	dead := r.TotalRaw - r.LiveRaw
	return r.LiveChunks == 0 || r.LiveRaw*100 < r.TotalRaw*below && dead >= rewriteSlack
}

// liveShare is the part of a segment's data that lives.
func (r *segmentRow) liveShare() float64 {
	if r.TotalRaw == 0 {
		return 0
	}
	return float64(r.LiveRaw) / float64(r.TotalRaw)
}

// born is the id that was given last when the youngest data in a segment was destaged: its own, or of one that was filled out of others the youngest of theirs.
func (r *segmentRow) born() block.SegmentID {
	if r.Born != 0 {
		return r.Born
	}
	return r.ID
}

// age is how many segments have been begun since the youngest data in it was destaged, and one.
func (r *segmentRow) age(next block.SegmentID) float64 {
	return float64(next-min(next, r.born())) + 1
}

// wasteWhenCollected is how much of what was dead may still be so when a collection is done that somebody asked for, in percent.
const wasteWhenCollected = 4

// wasteful reports whether more of the sealed segments is dead than a settle leaves, or than a collection leaves if one is under way.
func (s *Store) wasteful() bool {
	s.segments.mu.RLock()
	defer s.segments.mu.RUnlock()
	live, total := uint64(0), uint64(0)
	for _, r := range s.segments.rows {
		if r.State == segmentSealed && !isMetadata(r) {
			live += r.LiveRaw
			total += r.TotalRaw
		}
	}
	dead := total - live
	if c := s.collector; c.asked.Load() > 0 {
		most := max(dead, c.deadMost.Load())
		c.deadMost.Store(most)
		if dead*100 > most*wasteWhenCollected {
			return true
		}
	}
	return dead*100 > total*wasteWhenSettled
}
