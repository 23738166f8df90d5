package blockstore

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// mappedRoot is the map that counts for a node, and the bytes that are in it.
type mappedRoot struct {
	root   extentmap.Root
	mapped uint64
}

// rootOf returns the map of a node: its own, or that of the state it began as.
func (v *survey) rootOf(n *nodeRow) mappedRoot {
	for ; n != nil; n = v.nodes[n.Parent] {
		if n.Flags&nodeStarted != 0 {
			return mappedRoot{n.Root, n.Mapped}
		}
	}
	return mappedRoot{}
}

// mark finds out which volumes need which chunks.
func (v *survey) mark() error {
	for _, u := range v.volumes {
		v.own.Clear()
		into := v.any
		if v.out.Volume != "" && !u.focus {
			into = v.many
		}
		if err := v.each(u, func(id uint64, head bool) {
			if head && (u.focus || v.out.Volume == "") {
				v.heads.Add(id)
			}
			if v.own.Add(id) && !into.Add(id) && v.out.Volume == "" {
				v.many.Add(id)
			}
		}); err != nil {
			return err
		}
		v.step(v.rootOf(v.nodes[u.row.Head]).mapped)
	}
	return nil
}

// each calls visit with the sampled chunks that a volume or its snapshots need, some of them several times. head says that it is the volume as it is that needs it.
func (v *survey) each(u *surveyed, visit func(id uint64, head bool)) error {
	if err := v.chunks(v.rootOf(v.nodes[u.row.Head]).root, 0, func(id uint64) { visit(id, true) }); err != nil {
		return err
	}
	older := map[nodeID]bool{}
	for _, n := range u.snaps {
		// What was born before the nearest older snapshot is in that one's map, or in the map of none.
		least := nodeID(0)
		for p := v.nodes[n.Parent]; p != nil && least == 0; p = v.nodes[p.Parent] {
			if older[p.ID] {
				least = p.ID
			}
		}
		older[n.ID] = true
		if err := v.chunks(v.rootOf(n).root, block.Epoch(least), func(id uint64) { visit(id, false) }); err != nil {
			return err
		}
	}
	return nil
}

// chunks calls visit with each sampled chunk of a map's pages that were born after least.
func (v *survey) chunks(r extentmap.Root, least block.Epoch, visit func(id uint64)) error {
	return v.pages(r, least, func(p extentmap.Page) {
		for i := range p.Len() {
			if x := p.Extent(i); x.Kind == extentmap.KindChunk {
				if id, ok := v.sampled(uint64(x.Chunk)); ok {
					visit(id)
				}
			}
		}
	})
}

func (v *survey) pages(r extentmap.Root, least block.Epoch, visit func(extentmap.Page)) error {
	if r.ID == 0 {
		return nil
	}
	_, _, err := v.maps.Walk(v.ctx, r.Subtree(), least, 0, extentmap.Visitor{Recent: true, Page: func(p extentmap.Page) bool {
		v.out.Pages++
		visit(p)
		return true
	}})
	return err
}

// count goes through the volumes that are described once more and says of each extent where its bytes come from.
func (v *survey) count() error {
	o := v.out
	for _, u := range v.volumes {
		if !u.focus {
			continue
		}
		v.own.Clear()
		c := extentCount{v: v, u: u}
		if err := v.pages(v.rootOf(v.nodes[u.row.Head]).root, 0, c.page); err != nil {
			return err
		}
		c.add(o)
		v.step(v.rootOf(v.nodes[u.row.Head]).mapped)
	}
	return nil
}

// extentCount is the count of one volume. What depends on chunks counts the sampled ones, whose data is counted in sampledData.
type extentCount struct {
	v     *survey
	u     *surveyed
	kinds []uint8 // of the extents of the page so far

	zero, damaged, data, sampledData uint64
	by                               [mentionKinds]uint64
}

// Kinds of mentions of a chunk.
const (
	mentionFirst  = iota // no other volume has the chunk, and this one not before
	mentionLent          // others have the chunk, and it is counted as the first here
	mentionInside        // this volume has had it
	mentionAcross        // another volume has it
	mentionCloned        // another volume has it, and this one was made from that
	mentionKinds
)

// page counts the extents of a page. Several extents of one chunk are one mention of it if they are the pieces that an overwrite left: these lie where they would in the whole chunk.
func (c *extentCount) page(p extentmap.Page) {
	c.kinds = slices.Grow(c.kinds[:0], p.Len())[:p.Len()]
	for i := range p.Len() {
		x := p.Extent(i)
		if x.Off >= c.u.row.Size {
			return
		}
		n := min(uint64(x.Len), c.u.row.Size-x.Off)
		switch x.Kind {
		case extentmap.KindZero:
			c.zero += n
		case extentmap.KindDamaged:
			c.damaged += n
		default:
			c.data += n
			if id, ok := c.v.sampled(uint64(x.Chunk)); ok && x.Kind == extentmap.KindChunk {
				c.kinds[i] = c.kind(p, i, x, id)
				c.sampledData += n
				c.by[c.kinds[i]] += n
			}
		}
	}
}

// kind says which kind of mention extent i of a page belongs to.
func (c *extentCount) kind(p extentmap.Page, i int, x extentmap.Extent, id uint64) uint8 {
	if start := x.Off - uint64(x.ChunkOff); x.ChunkOff > 0 && x.Off >= uint64(x.ChunkOff) {
		for j := i - 1; j >= 0; j-- {
			e := p.Extent(j)
			if e.Off < start {
				break
			}
			if e.Kind == extentmap.KindChunk && e.Chunk == x.Chunk && e.Off-uint64(e.ChunkOff) == start {
				return c.kinds[j]
			}
		}
	}
	v := c.v
	shared := v.many.Has(id)
	switch {
	case !v.own.Add(id):
		return mentionInside
	case !shared:
		return mentionFirst
	case v.out.Volume == "" && v.any.Remove(id):
		return mentionLent
	case x.Birth <= block.Epoch(c.u.base):
		return mentionCloned
	}
	return mentionAcross
}

// add brings the count of the volume into the explanation.
func (c *extentCount) add(o *Explanation) {
	part := func(kind int) uint64 { // what the sampled chunks stand for
		if c.sampledData == c.data {
			return c.by[kind]
		}
		return uint64(float64(c.by[kind]) * float64(c.data) / float64(max(1, c.sampledData)))
	}
	inside, across, cloned := part(mentionInside), part(mentionAcross), part(mentionCloned)
	size := c.u.row.Size
	o.SizeBytes += size
	o.UnwrittenBytes += size - min(size, c.zero+c.damaged+c.data)
	o.ZeroBytes += c.zero
	o.DamagedBytes += c.damaged
	o.DataBytes += c.data
	o.DedupInsideBytes += inside
	o.DedupAcrossBytes += across
	o.ClonedBytes += cloned
	o.FirstBytes += c.data - min(c.data, inside+across+cloned)
	line := c.u.line
	line.DataBytes, line.DedupInsideBytes, line.OwnBytes = c.data, inside, part(mentionFirst)
	line.SharedBytes = c.data - min(c.data, inside+line.OwnBytes)
	o.PerVolume = append(o.PerVolume, line)
}

// weigh books each sampled chunk under what needs it.
func (v *survey) weigh() error {
	return v.rows(func(n uint64, row chunkRow, g *surveyedSegment) { g.raw[v.need(n)] += uint64(row.RawLen) })
}

// rows reads all chunk rows and calls visit with each sampled one, its number in the sets, and its segment.
func (v *survey) rows(visit func(n uint64, row chunkRow, g *surveyedSegment)) error {
	it, err := v.snap.NewIter(&pebble.IterOptions{LowerBound: []byte{keyChunk}, UpperBound: []byte{keyChunk + 1}})
	if err != nil {
		return err
	}
	defer it.Close()
	seen := uint64(0)
	for ok := it.First(); ok; ok = it.Next() {
		key := it.Key()
		if len(key) != 9 {
			return &block.CorruptError{Source: "chunk row", Want: "a key of 9 bytes", Got: fmt.Sprintf("%x", key)}
		}
		id := block.ChunkID(binary.BigEndian.Uint64(key[1:]))
		row, err := decodeChunkRow(id, it.Value())
		if err != nil {
			return err
		}
		seen += uint64(row.RawLen)
		if v.out.Rows++; v.out.Rows%4096 == 0 {
			if err := v.ctx.Err(); err != nil {
				return err
			}
			v.step(seen)
			seen = 0
		}
		if n, ok := v.sampled(uint64(id)); ok && v.segs[row.Segment] != nil {
			visit(n, row, v.segs[row.Segment])
		}
	}
	v.step(seen)
	return it.Error()
}

// need says what needs a chunk.
func (v *survey) need(id uint64) int {
	any, many, head := v.any.Has(id), v.many.Has(id), v.heads.Has(id)
	switch {
	case !any && many:
		return needOthers
	case !any:
		return needNothing
	case head && many:
		return needShared
	case head:
		return needUnique
	case many:
		return needElsewhere
	}
	return needSnapshots
}

// forest is what the rows of a moment say of volumes, their states and segments.
type forest struct {
	counters counters
	volumes  []*volumeRow // by id
	nodes    map[nodeID]*nodeRow
	segments map[block.SegmentID]*surveyedSegment
}

func readForest(snap *pebble.Snapshot) (*forest, error) {
	t := &forest{nodes: map[nodeID]*nodeRow{}, segments: map[block.SegmentID]*surveyedSegment{}}
	b, closer, err := snap.Get(countersKey)
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	t.counters, err = decodeCounters(b)
	if err = errors.Join(err, closer.Close()); err != nil {
		return nil, err
	}
	for _, table := range []struct {
		prefix byte
		take   func(b []byte) error
	}{
		{keyVolume, func(b []byte) error {
			r, err := decodeVolumeRow(b)
			t.volumes = append(t.volumes, r)
			return err
		}},
		{keySnapshot, func(b []byte) error {
			r, err := decodeNodeRow(b)
			if err == nil {
				t.nodes[r.ID] = r
			}
			return err
		}},
		{keySegment, func(b []byte) error {
			r, err := decodeSegmentRow(b)
			if err == nil {
				t.segments[r.ID] = &surveyedSegment{row: *r}
			}
			return err
		}},
	} {
		it, err := snap.NewIter(&pebble.IterOptions{LowerBound: []byte{table.prefix}, UpperBound: []byte{table.prefix + 1}})
		if err != nil {
			return nil, err
		}
		for ok := it.First(); ok && err == nil; ok = it.Next() {
			err = table.take(it.Value())
		}
		if err = errors.Join(err, it.Error(), it.Close()); err != nil {
			return nil, err
		}
	}
	slices.SortFunc(t.volumes, func(a, b *volumeRow) int { return cmp.Compare(a.ID, b.ID) })
	return t, nil
}

// visible returns the snapshots of a volume that a user may name, oldest first.
func (t *forest) visible(id block.VolumeID) (all []*nodeRow) {
	for _, n := range t.nodes {
		if n.Volume == id && n.Flags&nodeClosed != 0 && n.Flags&nodeDeleted == 0 && n.Name != "" {
			all = append(all, n)
		}
	}
	slices.SortFunc(all, func(a, b *nodeRow) int { return cmp.Compare(a.ID, b.ID) })
	return all
}
