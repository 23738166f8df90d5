package check

import (
	"fmt"
)

// docs/format/references.md
const (
	deadPage    = 1
	deadRadix   = 2
	deadChunk   = 3
	deadSubtree = 4
	jobSubtree  = 1
)

// dead is an entry of a deadlist.
type dead struct {
	Kind   uint8  `json:"kind"`
	Level  uint8  `json:"level"`
	Region uint64 `json:"region"`
	ID     uint64 `json:"id"`
}

func parseDead(b []byte) ([]dead, error) {
	f := &fields{b: b}
	f.rule(len(b) >= 16, 0, "at least 16 B", "%d B", len(b))
	f.magic("HvDl")
	if f.err == nil {
		f.err = sumWithout(b, 12)
	}
	f.version(2)
	count := int(f.u16())
	f.reserved(4)
	f.take(4)
	f.rule(1 <= count && count <= 256 && len(b) == 16+16*count, 6, "1 to 256 entries that fill the row", "%d in %d B", count, len(b))
	if f.err != nil {
		return nil, f.err
	}
	all := make([]dead, count)
	for i := range all {
		at := f.at
		word := f.u64()
		d := dead{Kind: uint8(word), Level: uint8(word >> 8), Region: word >> 16, ID: f.u64()}
		f.rule(deadPage <= d.Kind && d.Kind <= deadSubtree && d.ID > 0, at, "a known kind and an id", "%+v", d)
		if d.Kind == deadSubtree {
			f.rule(d.Level <= maxLevel && d.Region < regionCount && d.Region%span(d.Level) == 0, at+1, "a level and a region of it", "%+v", d)
		} else {
			f.rule(d.Level == 0 && d.Region == 0, at+1, "no place", "%+v", d)
		}
		all[i] = d
	}
	return all, f.end()
}

// subtreeJob is a job that frees a subtree which is dead in a node.
type subtreeJob struct {
	unit   string
	ref    ref
	region uint64
	cursor uint64
}

func parseJob(b []byte) (j subtreeJob, err error) {
	f := &fields{b: b}
	f.rule(len(b) == 64, 0, "64 B", "%d B", len(b))
	f.magic("HvJb")
	if f.err == nil {
		f.err = sumWithout(b, 12)
	}
	f.version(2)
	kind := f.u8()
	j.ref.Level = f.u8()
	f.reserved(4)
	f.take(4)
	j.ref.ID, j.region, j.ref.Birth = f.u64(), f.u64(), f.u64()
	snapshot, previous := f.u64(), f.u64()
	j.cursor = f.u64()
	f.rule(kind == jobSubtree, 6, "kind 1, the only one that is written", "%d", kind)
	f.rule(j.ref.ID > 0 && j.ref.Birth > 0 && j.ref.Level <= maxLevel, 16, "a subtree", "%+v", j.ref)
	f.rule(j.ref.Level > maxLevel || j.region < regionCount && j.region%span(j.ref.Level) == 0, 24, "a region of its level", "%d", j.region)
	f.rule(snapshot == 0 && previous == 0, 40, "zeroes", "%d, %d", snapshot, previous)
	f.rule(j.cursor == 0 || j.cursorOK(), 56, "a position behind something in the subtree", "%d", j.cursor)
	return j, f.end()
}

// cursorOK reports whether the cursor is behind a page or node that may be in the subtree.
func (j *subtreeJob) cursorOK() bool {
	level, end := uint8(j.cursor&7), j.cursor>>3
	return level <= j.ref.Level && end%span(level) == 0 && end > j.region && end <= j.region+span(j.ref.Level)
}

// cursorAfter is the position of a walk behind all of a subtree.
func cursorAfter(level uint8, region uint64) uint64 { return (region+span(level))<<3 | uint64(level) }

func (r *run) readJobs() error {
	return r.meta.table(tableJob, func(key, value []byte) error {
		j, err := parseJob(value)
		if err != nil {
			r.noteErr(unit(key), err)
			return nil
		}
		j.unit = unit(key)
		r.rep.Totals.Jobs++
		r.checkRowNumber(key, 1)
		n := r.tree.nodes[keyField(key, 0)]
		if !r.expect(n != nil, j.unit, 0, "a node that exists", keyField(key, 0)) {
			return nil
		}
		r.expect(j.ref.Birth > n.Bound && j.ref.Birth <= n.ID, j.unit, 32, fmt.Sprintf("a birth from %d to %d", n.Bound+1, n.ID), j.ref.Birth)
		n.jobs = append(n.jobs, j)
		return nil
	})
}

// checkRowNumber checks the last field of the key of a deadlist or job row.
func (r *run) checkRowNumber(key []byte, field int) {
	n := keyField(key, field)
	r.expect(0 < n && n <= r.tree.counters.Row, unit(key), 0, fmt.Sprintf("a number from 1 to %d", r.tree.counters.Row), n)
}
