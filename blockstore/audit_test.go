package blockstore

import (
	"context"
	"encoding/binary"
	"errors"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// audit recounts everything that the metadata claims: references by the maps, deadlists and jobs; pages and nodes; live bytes of segments; hints. The store must be
// settled.
func (m *model) audit() {
	m.t.Helper()
	s := m.s
	s.meta.Lock()
	defer s.meta.Unlock()
	a := &audit{model: m, refs: map[block.ChunkID]uint64{}, pages: map[uint64]bool{}, nodes: map[uint64]bool{}, seen: map[insertion]bool{}}
	for _, n := range s.nodes {
		a.subtree(n.effectiveRoot().Subtree(), 0)
	}
	a.deadlists()
	a.rows()
}

// insertion identifies one insertion of an extent: its later remnants are insertions of their own.
type insertion struct {
	x extentmap.Extent
}

type audit struct {
	*model
	refs  map[block.ChunkID]uint64
	pages map[uint64]bool
	nodes map[uint64]bool
	seen  map[insertion]bool
}

// subtree counts what lies under a subtree and was born after bound. An extent that pages of several states list is one insertion: it has the same place, chunk and birth.
func (a *audit) subtree(t extentmap.Subtree, bound block.Epoch) {
	_, _, err := a.s.maps.Walk(context.Background(), t, bound, 0, extentmap.Visitor{
		Page: func(p extentmap.Page) bool {
			a.pages[p.ID()] = true
			p.Parts(func(id uint64, _ block.Epoch) { a.pages[id] = true })
			for i := range p.Len() {
				x := p.Extent(i)
				if key := (insertion{x: x}); x.Kind == extentmap.KindChunk && !a.seen[key] {
					a.seen[key] = true
					a.refs[x.Chunk]++
				}
			}
			return true
		},
		Node: func(t extentmap.Subtree) bool { a.nodes[t.ID] = true; return true },
	})
	a.check(err)
}

// deadlists sees that each entry names something that exists: after a settle only what a living state still has is on them, and that was counted already.
func (a *audit) deadlists() {
	a.scan('D', func(key, value []byte) {
		k := extentmap.DeadKey{Volume: block.VolumeID(binary.BigEndian.Uint64(key[1:])), Snapshot: block.Epoch(binary.BigEndian.Uint64(key[9:])),
			Birth: block.Epoch(binary.BigEndian.Uint64(key[17:])), N: binary.BigEndian.Uint64(key[25:])}
		dead, err := extentmap.DecodeDead(k, value)
		a.check(err)
		n := a.s.nodes[nodeID(k.Snapshot)]
		if n == nil {
			a.t.Fatalf("deadlist of node %d, which does not exist", k.Snapshot)
		}
		if p := n.parent.Load(); p == nil || k.Birth > p.birth() {
			a.t.Fatalf("deadlist of node %d holds a birth %d that its parent does not have", k.Snapshot, k.Birth)
		}
		for _, d := range dead {
			switch d.Kind {
			case extentmap.DeadChunk:
				if a.refs[block.ChunkID(d.ID)] == 0 {
					a.t.Fatalf("deadlist of node %d holds chunk %d, which no map has", k.Snapshot, d.ID)
				}
			case extentmap.DeadPage:
				if !a.pages[d.ID] {
					a.t.Fatalf("deadlist of node %d holds page %d, which no map has", k.Snapshot, d.ID)
				}
			case extentmap.DeadNode:
				if !a.nodes[d.ID] {
					a.t.Fatalf("deadlist of node %d holds radix node %d, which no map has", k.Snapshot, d.ID)
				}
			}
		}
	})
	a.scan('J', func(key, _ []byte) { a.t.Fatalf("job %x is left after a settle", key) })
}

func (a *audit) rows() {
	live := map[block.SegmentID]*segmentRow{}
	unique, shared := uint64(0), uint64(0)
	chunks := 0
	a.scan(keyChunk, func(key, value []byte) {
		id := block.ChunkID(binary.BigEndian.Uint64(key[1:]))
		row, err := decodeChunkRow(id, value)
		a.check(err)
		got, err := extentmap.ReadRef(a.s.db, id)
		a.check(err)
		if got != a.refs[id] {
			a.t.Fatalf("chunk %d has a count of %d, the maps hold %d", id, got, a.refs[id])
		}
		if live[row.Segment] == nil {
			live[row.Segment] = &segmentRow{}
		}
		live[row.Segment].LiveRaw += uint64(row.RawLen)
		live[row.Segment].LiveChunks++
		unique += uint64(row.RawLen)
		if got > 1 {
			shared += uint64(row.RawLen)
		}
		chunks++
	})
	if chunks != len(a.refs) {
		a.t.Fatalf("%d chunk rows, the maps name %d chunks", chunks, len(a.refs))
	}
	if a.s.c.Unique != unique || a.s.c.Shared != shared {
		a.t.Fatalf("totals say unique %d shared %d, rows say %d %d", a.s.c.Unique, a.s.c.Shared, unique, shared)
	}
	for _, r := range a.s.segments.all() {
		want := live[r.ID]
		if want == nil {
			want = &segmentRow{}
		}
		if r.LiveRaw != want.LiveRaw || r.LiveChunks != want.LiveChunks {
			a.t.Fatalf("segment %d says %d live bytes in %d chunks, rows say %d in %d", r.ID, r.LiveRaw, r.LiveChunks, want.LiveRaw, want.LiveChunks)
		}
	}
	a.scan('P', func(key, _ []byte) {
		if id := binary.BigEndian.Uint64(key[1:]); !a.pages[id] {
			a.t.Fatalf("page %d is in no map", id)
		}
	})
	a.scan('N', func(key, _ []byte) {
		if id := binary.BigEndian.Uint64(key[1:]); !a.nodes[id] {
			a.t.Fatalf("radix node %d is in no map", id)
		}
	})
	a.hints()
}

// hints sees that each names a chunk with its hash, or one that is gone: what the index lost with a crash may be the deletion of a hint.
func (a *audit) hints() {
	a.scanIn(a.s.index.db, keyHint, func(key, value []byte) {
		id := block.ChunkID(binary.LittleEndian.Uint64(value))
		row, err := a.s.chunks.row(id)
		if errors.Is(err, block.ErrNotFound) {
			return
		}
		a.check(err)
		if row.Hash != [16]byte(key[1:]) {
			a.t.Fatalf("hint %x names chunk %d, whose hash is %x", key[1:], id, row.Hash)
		}
	})
}

func (a *audit) scan(prefix byte, f func(key, value []byte)) { a.scanIn(a.s.db, prefix, f) }

func (a *audit) scanIn(db *pebble.DB, prefix byte, f func(key, value []byte)) {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	a.check(err)
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		a.check(err)
		f(it.Key(), v)
	}
}
