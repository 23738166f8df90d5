package blockstore

import (
	"cmp"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/idset"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Explanation says where the bytes of a volume, or of all volumes, went. Everything is in bytes. It describes the maps of one moment, so what was only in the log then is not in it, but for UndestagedBytes.
//
// These add up exactly, unless the chunks were sampled:
//
//	SizeBytes = UnwrittenBytes + ZeroBytes + DamagedBytes + DataBytes
//	DataBytes = DedupInsideBytes + DedupAcrossBytes + ClonedBytes + FirstBytes
type Explanation struct {
	Volume  string // empty: all volumes
	Volumes int    // how many it is about
	At      time.Time

	// The volumes as they are now, snapshots aside.

	SizeBytes        uint64
	UnwrittenBytes   uint64 // no extent: never written, trimmed, or written with zeroes that became holes
	ZeroBytes        uint64 // allocated zeroes, which take no space
	DamagedBytes     uint64 // answers EIO
	DataBytes        uint64
	DedupInsideBytes uint64 // the same volume has the chunk at a lower offset, too
	DedupAcrossBytes uint64 // another volume has the chunk, and dedup found that; of all volumes: one that is older
	ClonedBytes      uint64 // the same, but because this volume began as a clone
	FirstBytes       uint64 // the rest

	// Chunks, each counted once, with what they take in segments.

	Unique    HeldBytes // that a volume needs now, and no other volume or its snapshots
	Shared    HeldBytes // that a volume needs now, and another one as well
	Snapshots HeldBytes // that only snapshots of one volume need: deleting them gives it back
	Elsewhere HeldBytes // that only snapshots need, of several volumes
	Waiting   HeldBytes // of the store: that nothing visible needs; deletes and trims are still being worked off

	// PartlyDeadBytes are of chunks that a volume needs now, before compression, and that none of its extents refers to: what overwrites have left of chunks that they did not replace whole. At most, as two mentions of a chunk may
	// need different parts of it. Such regions are cut anew in time (recut.go), unless a snapshot holds the chunks anyhow.
	PartlyDeadBytes uint64

	// Of the store.

	HeldUnusedBytes    uint64 // dead bytes of segments that wait for reclaim
	ParityBytes        uint64 // beside segments; of a volume: its part of it
	HistoryParityBytes uint64 // beside files of history; of a volume: of its own
	MetadataBytes      uint64
	UndestagedBytes    uint64
	FreeBytes          uint64

	PerVolume []ExplainedVolume // of the store, by name

	// What it cost.

	SampledOneIn uint64 // 1: every chunk was counted; else one in so many, and what depends on chunks is scaled
	Pages, Rows  uint64 // of the maps that were read, pages twice if two passes did; chunk rows
	MemoryBytes  uint64 // of sets at most
	Took         time.Duration
}

// HeldBytes is an amount of chunks: before compression, and in segments, headers included. What is stored is a chunk's part of its segment by raw length.
type HeldBytes struct{ RawBytes, StoredBytes uint64 }

// ExplainedVolume is a line of the table of all volumes. OwnBytes is what no other volume refers to, of DataBytes.
type ExplainedVolume struct {
	Name                                                                     string
	SizeBytes, DataBytes, DedupInsideBytes, SharedBytes, OwnBytes, Snapshots uint64
}

// ExplainProgress says how far a survey is, in bytes of volumes and chunks that were looked at.
type ExplainProgress struct{ DoneBytes, TotalBytes uint64 }

// TookSeconds is how long the survey took.
func (e *Explanation) TookSeconds() float64 { return e.Took.Seconds() }

// explainSets is how many sets of chunks the survey of a store holds at a time.
const explainSets = 4

// Explain surveys the maps and chunk rows of a moment and says where the savings of a volume come from, or, if volume is empty, of all. skip, if not nil, names volumes that are not described themselves.
//
// It reads each map twice and each chunk row once, through a Pebble snapshot: nobody waits for it, but compactions keep old rows until it ends. Its memory is four sets of a bit for each chunk id, 32 MiB for each TiB
// of unique data cut to 16 KiB, and at most an eighth of the engine's budget: beyond that one chunk in 2, 4, 8, … stands for all, and SampledOneIn says so. It ends with ctx.
func (s *Store) Explain(ctx context.Context, volume string, skip func(name string) bool, progress func(ExplainProgress)) (*Explanation, error) {
	began := time.Now()
	e, err := s.explain(ctx, volume, skip, progress)
	if err != nil {
		what := "the store"
		if volume != "" {
			what = fmt.Sprintf("volume %q", volume)
		}
		return nil, fmt.Errorf("explain %s: %w", what, err)
	}
	e.Took = time.Since(began)
	return e, nil
}

func (s *Store) explain(ctx context.Context, volume string, skip func(string) bool, progress func(ExplainProgress)) (*Explanation, error) {
	if volume != "" {
		if _, err := s.lookupVolume(volume); err != nil {
			return nil, err
		}
	}
	if err := s.flushTree(); err != nil { // what was made lately is in rows then
		return nil, err
	}
	snap := s.db.NewSnapshot()
	defer snap.Close()
	v := &survey{s: s, ctx: ctx, snap: snap, maps: extentmap.NewMap(snap, nil), told: progress, out: &Explanation{Volume: volume, At: s.opts.Now(), UndestagedBytes: uint64(s.undestaged())}}
	if err := v.load(volume, skip); err != nil {
		return nil, err
	}
	v.makeSets()
	for _, pass := range []func() error{v.mark, v.weigh, v.count} {
		if err := pass(); err != nil {
			return nil, err
		}
	}
	v.finish()
	return v.out, nil
}

// survey is one Explain. The passes: mark which chunks each volume needs, weigh the chunks by that, count the extents of the volumes that are described.
type survey struct {
	s    *Store
	ctx  context.Context // of the one call
	snap *pebble.Snapshot
	maps *extentmap.Map
	told func(ExplainProgress)
	out  *Explanation

	volumes []*surveyed // by id, so that what a clone came from is before it
	nodes   map[nodeID]*nodeRow
	segs    map[block.SegmentID]*surveyedSegment
	last    uint64 // highest chunk id
	shift   uint   // one chunk in 2^shift is looked at

	// Of the store: any and many are the chunks that at least one, and at least two volumes need; heads, those of volumes as they are. Of one volume: any are the chunks of it and its snapshots, heads those of its
	// head, many those of other volumes. own is for the volume that is being walked.
	own, any, many, heads *idset.Set

	done, total uint64
}

// surveyed is a volume of a survey.
type surveyed struct {
	row   *volumeRow
	focus bool       // is described
	base  nodeID     // of a clone: births up to it were inherited
	snaps []*nodeRow // visible, oldest first
	line  ExplainedVolume
}

// surveyedSegment gathers the raw bytes of a segment's chunks by what needs them.
type surveyedSegment struct {
	row segmentRow
	raw [needs]uint64
}

// What needs a chunk.
const (
	needUnique = iota
	needShared
	needSnapshots
	needElsewhere
	needNothing
	needOthers // survey of one volume: only other volumes
	needs
)

// load reads what the survey is about.
func (v *survey) load(volume string, skip func(string) bool) error {
	t, err := readForest(v.snap)
	if err != nil {
		return err
	}
	v.nodes, v.last, v.segs = t.nodes, t.counters.NextChunk, t.segments
	for _, row := range t.volumes {
		u := &surveyed{row: row, focus: row.Name == volume || volume == "" && (skip == nil || !skip(row.Name)), snaps: t.visible(row.ID)}
		if v.nodes[row.Head] == nil {
			return &block.CorruptError{Source: fmt.Sprintf("volume row %d", row.ID), Want: "a head with a row", Got: fmt.Sprint("node ", row.Head)}
		}
		for n := v.nodes[row.Head]; n != nil; n = v.nodes[n.Parent] {
			if n.Volume != row.ID {
				u.base = n.ID
				break
			}
		}
		u.line.Name, u.line.SizeBytes, u.line.Snapshots = row.Name, row.Size, uint64(len(u.snaps))
		v.volumes = append(v.volumes, u)
		v.total += v.rootOf(v.nodes[row.Head]).mapped
		if u.focus {
			v.out.Volumes++
			v.total += v.rootOf(v.nodes[row.Head]).mapped
		}
	}
	if volume != "" && v.out.Volumes == 0 {
		return fmt.Errorf("volume %q: %w", volume, block.ErrNotFound)
	}
	v.total += t.counters.Unique
	return nil
}

// makeSets chooses how many chunks stand for one, so that the sets stay within their part of the budget.
func (v *survey) makeSets() {
	end := v.last + 1
	v.shift = v.s.opts.explainShift
	for explainSets*idset.MostBytes(end>>v.shift+1) > uint64(v.s.opts.MemoryBytes)/8 {
		v.shift++
	}
	for _, set := range []**idset.Set{&v.own, &v.any, &v.many, &v.heads} {
		*set = idset.New(end>>v.shift + 1)
	}
	v.out.SampledOneIn = 1 << v.shift
}

// sampled returns the number of a chunk in the sets, if it stands for others or itself.
func (v *survey) sampled(id uint64) (uint64, bool) {
	return id >> v.shift, id&(1<<v.shift-1) == 0
}

// step says that so many bytes were looked at.
func (v *survey) step(n uint64) {
	v.done = min(v.total, v.done+n)
	if v.told != nil {
		v.told(ExplainProgress{DoneBytes: v.done, TotalBytes: v.total})
	}
}

// finish adds up.
func (v *survey) finish() {
	o := v.out
	scale := func(n uint64) uint64 {
		hi, lo := bits.Mul64(n, 1<<v.shift)
		if hi != 0 {
			return ^uint64(0)
		}
		return lo
	}
	into := [needs]*HeldBytes{needUnique: &o.Unique, needShared: &o.Shared, needSnapshots: &o.Snapshots, needElsewhere: &o.Elsewhere, needNothing: &o.Waiting}
	mine, parity := uint64(0), uint64(0)
	for _, g := range v.segs {
		sidecar := uint64(0)
		if g.row.State == segmentSealed {
			sidecar = uint64(erasure.SidecarSize(g.row.Parity, int64(g.row.Size)))
		}
		parity += sidecar
		if isMetadata(&g.row) || g.row.TotalRaw == 0 {
			continue
		}
		part := func(raw, of uint64) uint64 { // of the segment, by raw length
			hi, lo := bits.Mul64(min(raw, g.row.TotalRaw), of)
			q, _ := bits.Div64(hi, lo, g.row.TotalRaw)
			return q
		}
		for need, raw := range g.raw {
			raw = scale(raw)
			if into[need] != nil {
				into[need].RawBytes += raw
				into[need].StoredBytes += part(raw, g.row.Size)
			}
			if need < needNothing {
				mine += part(raw, sidecar)
			}
		}
		o.HeldUnusedBytes += part(g.row.TotalRaw-min(g.row.TotalRaw, g.row.LiveRaw), g.row.Size)
	}
	st := v.s.Stats()
	o.ParityBytes, o.MetadataBytes, o.FreeBytes = parity, st.MetadataBytes, st.FreeBytes
	o.HistoryParityBytes = v.s.historyParity(o.Volume)
	slices.SortFunc(o.PerVolume, func(a, b ExplainedVolume) int { return cmp.Compare(a.Name, b.Name) })
	needed, once := o.Unique.RawBytes+o.Shared.RawBytes, o.DataBytes-o.DedupInsideBytes
	if o.Volume == "" {
		once = o.FirstBytes
	}
	o.PartlyDeadBytes = needed - min(needed, once)
	if o.Volume != "" {
		o.ParityBytes, o.PerVolume, o.Waiting = mine, nil, HeldBytes{}
	}
	o.MemoryBytes = v.own.Bytes() + v.any.Bytes() + v.many.Bytes() + v.heads.Bytes()
}
