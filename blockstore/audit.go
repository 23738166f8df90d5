package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/marks"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// An audit proves that what garbage collection is about to delete for good is needed by nobody. Counters say what is dead; the audit does not believe them. It takes a
// snapshot of all rows between two metadata batches and marks every chunk that can be reached in an exact bitmap (package marks): from the map of every state of every volume, deleted
// ones that are not purged yet included, from the subtrees of jobs that are under way, and from deadlist entries that hold what they name. (Layers, frozen ones too, and
// retained ranges of the log hold bytes and no chunks, so nothing is reached from them; what an older checkpoint may need is kept by deltas, see unlink.go.) Then it
// goes over all chunk rows: each marked chunk must have one, and that must name a segment that has a row itself.
//
// If so, nothing that can be reached is in a file whose segment has no row, whatever any counter said. If not, the files that hold what is missing stay, or all, if that
// cannot be told (judge).
//
// The marks do not depend on births: the map of a state is walked wherever it differs from that of the state before (extentmap.NewPages). In the same pass references are
// counted by the rule of births (docs/format/references.md), as a sum over all of mix(chunk), and compared with the same sum over the rows: one wrong count among billions
// is found with certainty but for 2^-64, in no memory.

// AuditReport is what an audit found.
type AuditReport struct {
	EndedAt time.Time
	Took    time.Duration
	Error   string // why it could not be done; then nothing below counts

	Chunks           uint64 // that can be reached
	References       uint64 // to these
	Unreachable      uint64 // chunks with a row that nothing reaches: space that never comes back
	UnreachableBytes uint64 // raw
	Missing          uint64 // chunks that are reached and whose bytes no row leads to
	WrongReferences  bool   // the counts of references are not what the maps have
	WrongSegments    uint64 // segments whose live counters are not what the rows have
	Passes           int    // over all maps, as the bitmap's bound asked for
	MemoryBytes      uint64 // most that bitmap and tables took
	FilesProven      uint64 // files of dead segments that may go
	FilesKept        uint64 // files that stay, as they may be needed
}

// Passed reports whether nothing was found that a deletion could make worse.
func (r *AuditReport) Passed() bool { return r.Error == "" && r.Missing == 0 && !r.WrongReferences }

const (
	// auditBytesPerTiB and auditBytes bound the bitmap: 8 MiB for each TiB of unique data, in which a TiB of chunks of 16 KiB fits without gaps, and some more. The rest of the
	// published 64 MiB is for the tables of segments and for what walks hold.
	auditBytesPerTiB = 8 << 20
	auditBytes       = 32 << 20
	// missingMost bounds the missing chunks that are remembered one by one.
	missingMost = 1 << 16
)

// auditing is one audit on its way.
type auditing struct {
	s       *Store
	ctx     context.Context // of the one call
	snap    *pebble.Snapshot
	maps    *extentmap.Map
	c       counters
	files   []deadFile // that wait for it
	pace    func(ctx context.Context, bytes int) error
	nodes   []*nodeRow // by id
	byID    map[nodeID]*nodeRow
	set     *marks.Set
	most    int64
	segs    segmentSums
	missing map[block.ChunkID]bool
	counted uint64 // sum over all references
	rows    uint64 // the same by the rows
	report  AuditReport
	unpaced int
}

// segmentSums are the sums of chunk rows by segment, in the order of ids.
type segmentSums struct {
	ids    []block.SegmentID
	raw    []uint64
	chunks []uint32
	// Live counters as the segments' own rows have them.
	liveRaw    []uint64
	liveChunks []uint32
}

// segmentSumBytes is what each segment takes.
const segmentSumBytes = 32

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// newAuditing takes the moment that an audit is about. The caller calls end.
func (s *Store) newAuditing(ctx context.Context, pace func(context.Context, int) error) *auditing {
	a := &auditing{s: s, ctx: ctx, pace: pace, byID: map[nodeID]*nodeRow{}, missing: map[block.ChunkID]bool{}}
	s.meta.Lock()
	// A file is listed after the batch is committed that dropped its row, so the snapshot shows that.
	a.files = s.checkpoints.files.unproven()
	a.snap, a.c = s.db.NewSnapshot(), s.c
	s.meta.Unlock()
	a.maps = extentmap.NewMap(a.snap, nil) // what is in memory proves nothing of what is durable
	a.most = auditBytes + int64(float64(a.c.Unique)/(1<<40)*auditBytesPerTiB)
	if s.opts.auditBytes > 0 {
		a.most = s.opts.auditBytes
	}
	return a
}

func (a *auditing) end() error { return a.snap.Close() }

// run marks and compares. An error says that rows could not be read, or not understood: then the audit is none.
func (a *auditing) run() error {
	if err := a.readTree(); err != nil {
		return err
	}
	if err := a.readSegments(); err != nil {
		return err
	}
	for first := uint64(1); ; {
		a.set = marks.New(first, a.most)
		if err := a.mark(); err != nil {
			return err
		}
		a.report.Passes++
		end := min(a.set.End(), a.c.NextChunk+1)
		if err := a.compare(first, end); err != nil {
			return err
		}
		a.report.MemoryBytes = max(a.report.MemoryBytes, uint64(a.set.Bytes())+a.segs.bytes())
		if first = end; first > a.c.NextChunk {
			break
		}
	}
	if err := a.countRows(); err != nil {
		return err
	}
	a.report.WrongReferences = a.rows != a.counted
	a.segs.compare(&a.report)
	return nil
}

// readTree reads all states of volumes, by id, so that parents come before children.
func (a *auditing) readTree() error {
	return a.scan(keySnapshot, 0, 0, func(id uint64, value []byte) error {
		n, err := decodeNodeRow(value)
		if err == nil && uint64(n.ID) != id {
			err = &block.CorruptError{Source: fmt.Sprintf("node row %d", id), Offset: 8, Want: fmt.Sprint(id), Got: fmt.Sprint(n.ID)}
		}
		if err != nil {
			return err
		}
		a.nodes, a.byID[n.ID] = append(a.nodes, n), n
		return nil
	})
}

func (a *auditing) readSegments() error {
	return a.scan(keySegment, 0, 0, func(id uint64, value []byte) error {
		r, err := decodeSegmentRow(value)
		if err != nil {
			return err
		}
		t := &a.segs
		t.ids, t.raw, t.chunks = append(t.ids, r.ID), append(t.raw, 0), append(t.chunks, 0)
		t.liveRaw, t.liveChunks = append(t.liveRaw, r.LiveRaw), append(t.liveChunks, r.LiveChunks)
		return nil
	})
}

// base is the nearest older state whose map counts, and root the map of a state: its own, or that of the state it began as.
func (a *auditing) base(n *nodeRow) *nodeRow {
	p := a.byID[n.Parent]
	for p != nil && p.Flags&nodePurging != 0 {
		p = a.byID[p.Parent]
	}
	return p
}

func (a *auditing) root(n *nodeRow) extentmap.Root {
	for ; n != nil; n = a.byID[n.Parent] {
		if n.Flags&nodeStarted != 0 {
			return n.Root
		}
	}
	return extentmap.Root{}
}

// mark marks all chunks that can be reached. In the first pass it counts references, too.
func (a *auditing) mark() error {
	for _, n := range a.nodes {
		if n.Flags&nodePurging == 0 && n.Flags&nodeStarted != 0 {
			head := a.s.recutHead(n.ID)
			err := a.maps.NewPages(a.ctx, a.root(a.base(n)), n.Root, head != nil, func(p extentmap.Page) error {
				if head != nil && inPieces(p, block.Epoch(n.Bound), head.volume.cut) {
					a.s.recuts.note(head, p.Region())
				}
				return a.page(p, block.Epoch(n.Bound), false)
			})
			if err != nil {
				return fmt.Errorf("map of node %d: %w", n.ID, err)
			}
		}
		if err := a.deadlist(n); err != nil {
			return fmt.Errorf("deadlist of node %d: %w", n.ID, err)
		}
	}
	return extentmap.ScanJobs(a.snap, 0, func(owner block.VolumeID, _ uint64, j extentmap.Job) (bool, error) {
		n := a.byID[nodeID(owner)]
		if n == nil {
			return false, &block.CorruptError{Source: fmt.Sprintf("job of node %d", owner), Want: "the node", Got: "none"}
		}
		return true, a.subtree(j.Subtree, block.Epoch(n.Bound), j.Cursor)
	})
}

// deadlist marks what entries hold: those that were born after the bound of their node.
func (a *auditing) deadlist(n *nodeRow) error {
	bound := block.Epoch(n.Bound)
	return extentmap.ScanDead(a.snap, deadOwner, block.Epoch(n.ID), bound, ^block.Epoch(0)-1, func(k extentmap.DeadKey, dead []extentmap.Dead) (bool, error) {
		for _, d := range dead {
			switch d.Kind {
			case extentmap.DeadChunk:
				a.reference(block.ChunkID(d.ID))
			case extentmap.DeadSubtree:
				if err := a.subtree(extentmap.Subtree{ID: d.ID, Level: d.Level, Region: d.Region, Birth: k.Birth}, bound, 0); err != nil {
					return false, err
				}
			}
		}
		return true, nil
	})
}

// subtree marks what a subtree holds that is in no map any more.
func (a *auditing) subtree(t extentmap.Subtree, bound block.Epoch, from extentmap.Cursor) error {
	var failed error
	_, _, err := a.maps.Walk(a.ctx, t, bound, from, extentmap.Visitor{Page: func(p extentmap.Page) bool {
		failed = a.page(p, bound, true)
		return failed == nil
	}})
	return errors.Join(err, failed)
}

// page marks the chunks of a page and counts those born after a bound. What a cut-off page holds of older states is in their maps.
func (a *auditing) page(p extentmap.Page, bound block.Epoch, own bool) error {
	for i := range p.Len() {
		x := p.Extent(i)
		switch {
		case x.Kind != extentmap.KindChunk:
		case x.Birth > bound:
			a.reference(x.Chunk)
		case !own:
			a.set.Add(uint64(x.Chunk))
		}
	}
	return a.moved(pageHeaderBytes + pageEntryBytes*p.Len())
}

// Sizes of rows, for the pace and the progress.
const (
	pageHeaderBytes = 48
	pageEntryBytes  = 40
	pacedAtOnce     = 1 << 20
)

// moved books bytes that were read, about a MiB at once.
func (a *auditing) moved(n int) error {
	if a.unpaced += n; a.unpaced < pacedAtOnce {
		return nil
	}
	n, a.unpaced = a.unpaced, 0
	return a.pace(a.ctx, n)
}

func (a *auditing) reference(id block.ChunkID) {
	a.set.Add(uint64(id))
	if a.report.Passes == 0 {
		a.report.References++
		a.counted += mix(uint64(id))
	}
}

// compare goes over the chunk rows of [first, end) and the marked chunks beside each other.
func (a *auditing) compare(first, end uint64) error {
	marked, more := a.set.Next(first)
	err := a.scan(keyChunk, first, end, func(id uint64, value []byte) error {
		for ; more && marked < id; marked, more = a.set.Next(marked + 1) {
			a.miss(marked)
		}
		row, err := decodeChunkRow(block.ChunkID(id), value)
		if err != nil {
			return err
		}
		a.rows += mix(id)
		known := row.lost() || a.segs.add(&row)
		if !more || marked != id {
			a.report.Unreachable++
			a.report.UnreachableBytes += uint64(row.RawLen)
			return a.moved(chunkRowSize)
		}
		a.report.Chunks++
		if !known {
			a.miss(id)
		}
		marked, more = a.set.Next(marked + 1)
		return a.moved(chunkRowSize)
	})
	for ; err == nil && more && marked < end; marked, more = a.set.Next(marked + 1) {
		a.miss(marked)
	}
	return err
}

// miss notes a chunk that is reached and that no row leads to.
func (a *auditing) miss(id uint64) {
	a.report.Missing++
	if len(a.missing) < missingMost {
		a.missing[block.ChunkID(id)] = true
	}
}

// countRows adds what rows of reference counts say beyond one.
func (a *auditing) countRows() error {
	return a.scan(keyRef, 0, 0, func(id uint64, value []byte) error {
		n, err := extentmap.DecodeRef(block.ChunkID(id), value)
		a.rows += mix(id) * (n - 1)
		return errors.Join(err, a.moved(16))
	})
}

// scan calls f with the rows of a table whose ids are in [first, end); without an end with all from first on. Values are lent.
func (a *auditing) scan(table byte, first, end uint64, f func(id uint64, value []byte) error) error {
	bounds := &pebble.IterOptions{LowerBound: key64(table, first), UpperBound: []byte{table + 1}}
	if end > 0 {
		bounds.UpperBound = key64(table, end)
	}
	it, err := a.snap.NewIter(bounds)
	if err != nil {
		return err
	}
	for ok := it.First(); ok && err == nil; ok = it.Next() {
		var v []byte
		if v, err = it.ValueAndErr(); err == nil {
			err = f(binary.BigEndian.Uint64(it.Key()[1:]), v)
		}
	}
	return errors.Join(err, it.Error(), it.Close())
}

// add books a chunk on its segment, and reports whether that has a row.
func (t *segmentSums) add(row *chunkRow) bool {
	lo, hi := 0, len(t.ids)
	for lo < hi {
		if mid := (lo + hi) / 2; t.ids[mid] < row.Segment {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(t.ids) || t.ids[lo] != row.Segment {
		return false
	}
	t.raw[lo] += uint64(row.RawLen)
	t.chunks[lo]++
	return true
}

// compare counts the segments whose rows say something else than those of their chunks.
func (t *segmentSums) compare(r *AuditReport) {
	for i := range t.ids {
		if t.liveRaw[i] != t.raw[i] || t.liveChunks[i] != t.chunks[i] {
			r.WrongSegments++
		}
	}
}

func (t *segmentSums) bytes() uint64 { return uint64(len(t.ids)) * segmentSumBytes }

// judge says of each file that waited for the audit whether it may go. With all references accounted for, all may; with some chunks missing, those whose directory shows that
// they hold none of these; if it cannot be told which are missing, none.
func (a *auditing) judge() {
	blind := a.report.WrongReferences || a.report.Missing > uint64(len(a.missing))
	for i := range a.files {
		f := &a.files[i]
		if !blind && (a.report.Missing == 0 || !a.holdsMissing(f)) {
			a.report.FilesProven++
			a.s.checkpoints.files.prove(f.num)
		} else {
			a.report.FilesKept++
		}
	}
}

// holdsMissing reports whether a file holds a chunk that is missing, or cannot be asked.
func (a *auditing) holdsMissing(f *deadFile) bool {
	r, err := a.s.tiers.OpenCopy(f.placement)
	if err != nil {
		return !errors.Is(err, block.ErrNotFound)
	}
	defer r.Close()
	size, err := r.Size()
	if err != nil {
		return true
	}
	footer, err := segment.ReadFooter(r, size)
	if err != nil {
		return true
	}
	frames, err := segment.ReadDirectory(r, &footer)
	if err != nil {
		return true
	}
	for i := range frames {
		for j := range frames[i].Chunks {
			if a.missing[frames[i].Chunks[j].ID] {
				return true
			}
		}
	}
	return false
}
