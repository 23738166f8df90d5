package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

func putBE64(b []byte, v uint64) { binary.BigEndian.PutUint64(b, v) }

var countersKey = []byte{keyMeta, 'c'}

// counters are the few numbers of a store that every metadata batch carries.
type counters struct {
	AppliedSeq  uint64      // all control records up to here are in the rows
	Watermark   journal.Pos // replay starts here
	NextChunk   uint64
	NextPage    uint64 // pages and nodes of the maps
	NextSegment uint64
	NextVolume  uint64
	NextRow     uint64 // deadlist and job rows

	// Totals in bytes, kept so that no query ever scans.
	Unique uint64 // raw lengths of all chunks
	Shared uint64 // raw lengths of chunks with more than one reference

	StoreID block.UUID // of the store whose metadata this is

	// How many rows there are, so that a start sees when some are lost: Pebble itself takes a damaged end of its manifest for one that was never written.
	Segments uint64
	Nodes    uint64
}

func (c *counters) encode() []byte {
	e := &enc{}
	e.u8(rowVersion)
	e.zero(7)
	for _, v := range []uint64{c.AppliedSeq, uint64(c.Watermark), c.NextChunk, c.NextPage, c.NextSegment, c.NextVolume, c.NextRow, c.Unique, c.Shared} {
		e.u64(v)
	}
	e.bytes(c.StoreID[:])
	e.u64(c.Segments)
	e.u64(c.Nodes)
	e.zero(8)
	return e.b
}

func decodeCounters(b []byte) (c counters, err error) {
	d := &dec{b: b}
	if v := d.u8(); v != rowVersion {
		return c, fmt.Errorf("counters row version %d: %w", v, block.ErrVersion)
	}
	d.zero(7)
	c.AppliedSeq = d.u64()
	c.Watermark = journal.Pos(d.u64())
	for _, p := range []*uint64{&c.NextChunk, &c.NextPage, &c.NextSegment, &c.NextVolume, &c.NextRow, &c.Unique, &c.Shared} {
		*p = d.u64()
	}
	copy(c.StoreID[:], d.take(16))
	c.Segments, c.Nodes = d.u64(), d.u64()
	d.zero(8)
	return c, d.end("counters row")
}

// metaBatch is one atomic change of the metadata. Its owner holds Store.meta from begin to commit or abort, so it may read, decide and write counts exactly.
type metaBatch struct {
	s     *Store
	b     *pebble.Batch
	refs  *extentmap.Refs
	c     counters // becomes Store.c with the commit
	fresh map[block.ChunkID]chunkRow
	hints map[[16]byte]block.ChunkID
	segs  map[block.SegmentID]*segmentRow
	roots map[*node]extentmap.Root
	grown map[*node]int64 // change of node.mapped, bytes

	purged  []*node // leave the tree with the commit
	onApply []func()
}

func (s *Store) beginMeta() *metaBatch {
	s.meta.Lock()
	return &metaBatch{
		s: s, b: s.db.NewBatch(), refs: &extentmap.Refs{}, c: s.c,
		fresh: make(map[block.ChunkID]chunkRow),
		hints: make(map[[16]byte]block.ChunkID),
		segs:  make(map[block.SegmentID]*segmentRow),
		roots: make(map[*node]extentmap.Root),
		grown: make(map[*node]int64),
	}
}

// abort forgets the batch. Ids that it took are not given again: caches and frames already written may know them.
func (m *metaBatch) abort() {
	m.keepIDs()
	_ = m.b.Close()
	m.dropNewSegments()
	m.s.meta.Unlock()
}

// dropNewSegments removes the segments that only this batch knows. They would lie there until the next start, and on a full disk every repeat would leave one more.
func (m *metaBatch) dropNewSegments() {
	for id, row := range m.segs {
		if _, known := m.s.segments.get(id); known {
			continue
		}
		for _, p := range row.Placement {
			_ = m.s.tiers.Delete(p) // what stays is removed by the next start
		}
	}
}

func (m *metaBatch) keepIDs() {
	m.s.c.NextPage, m.s.c.NextChunk, m.s.c.NextSegment = m.c.NextPage, m.c.NextChunk, m.c.NextSegment
}

// commit makes the batch durable, publishes it in memory and ends it. The segments it refers to must be synced.
func (m *metaBatch) commit() (err error) {
	s := m.s
	defer s.meta.Unlock()
	defer m.b.Close()
	defer func() {
		if err != nil {
			m.keepIDs()
			s.packer.forget()
		}
	}()
	if err := m.refs.Resolve(s.db, m.b, m.refChange); err != nil {
		return fmt.Errorf("count references: %w", err)
	}
	for id, row := range m.segs {
		if err := m.b.Set(key64(keySegment, uint64(id)), row.encode(), nil); err != nil {
			return err
		}
		if _, known := s.segments.get(id); !known {
			m.c.Segments++
		}
	}
	s.tree.Lock()
	captured := m.captureTreeLocked()
	s.tree.Unlock()
	if err := m.write(); err != nil {
		s.tree.Lock()
		s.dirty.putBack(captured)
		for n, by := range m.grown {
			n.mapped = uint64(int64(n.mapped) - by)
		}
		s.tree.Unlock()
		return err
	}
	m.publish(captured)
	s.publishing.Unlock()
	return nil
}

// write makes the batch durable. When it returns nil, Store.publishing is held.
func (m *metaBatch) write() error {
	s := m.s
	if err := m.b.Set(countersKey, m.c.encode(), nil); err != nil {
		return err
	}
	if durable, _ := s.log.Durable(); durable < m.c.AppliedSeq {
		// Rows must not show an operation that a power loss would take from the log, with the writes before it.
		if err := s.log.Sync(context.Background()); err != nil {
			return err
		}
	}
	s.publishing.Lock()
	if err := m.b.Commit(pebble.Sync); err != nil {
		s.publishing.Unlock()
		return fmt.Errorf("commit metadata: %w", err)
	}
	return nil
}

// publish shows the committed batch to readers.
func (m *metaBatch) publish(captured capturedDirty) {
	s := m.s
	s.c = m.c
	s.counted.Store(&m.c)
	s.segments.apply(m.segs)
	s.tree.Lock()
	for n, root := range m.roots {
		n.root.Store(&root)
		n.flags |= nodeStarted
	}
	for _, n := range m.purged {
		s.forgetNodeLocked(n)
	}
	s.persisted = captured.next
	s.tree.Unlock()
	for _, f := range m.onApply {
		f()
	}
}

// captureTreeLocked writes the rows of all volumes and nodes that changed since the last commit, as they are now, and the sequence number of the last control record
// they show. Store.tree is held.
func (m *metaBatch) captureTreeLocked() capturedDirty {
	s := m.s
	got := s.dirty.take()
	for _, v := range got.volumes {
		_ = m.b.Set(key64(keyVolume, uint64(v.id)), v.rowLocked().encode(), nil)
	}
	for id := range got.goneVolumes {
		_ = m.b.Delete(key64(keyVolume, uint64(id)), nil)
	}
	for n, by := range m.grown {
		n.mapped = uint64(int64(n.mappedLocked()) + by)
		got.nodes[n.id] = n
	}
	rows := make(map[*node]bool, len(got.nodes)+len(m.roots))
	for _, n := range got.nodes {
		rows[n] = true
	}
	for n := range m.roots {
		rows[n] = true
	}
	for n := range rows {
		row := n.rowLocked()
		if root, ok := m.roots[n]; ok {
			row.Root, row.Flags = root, row.Flags|nodeStarted
		}
		_ = m.b.Set(key64(keySnapshot, uint64(n.id)), row.encode(), nil)
	}
	for _, n := range m.purged {
		_ = m.b.Delete(key64(keySnapshot, uint64(n.id)), nil)
	}
	m.c.AppliedSeq = s.appliedSeq
	m.c.NextVolume = s.nextVolume
	m.c.Nodes = uint64(len(s.nodes) - len(m.purged))
	return got
}

// refChange is told of every count that this batch changes. A chunk whose count falls to zero loses its row and its hint, and its segment the live bytes.
func (m *metaBatch) refChange(id block.ChunkID, before, after uint64) error {
	shared := func(n uint64) bool { return n > 1 }
	if after != 0 && shared(before) == shared(after) {
		return nil
	}
	row, err := m.chunkRow(id)
	if err != nil {
		return err
	}
	raw := uint64(row.RawLen)
	if shared(before) && !shared(after) {
		m.c.Shared -= raw
	}
	if !shared(before) && shared(after) {
		m.c.Shared += raw
	}
	if after != 0 {
		return nil
	}
	m.c.Unique -= raw
	seg, err := m.segment(row.Segment)
	if err != nil {
		return err
	}
	seg.LiveRaw -= raw
	seg.LiveChunks--
	delete(m.fresh, id)
	if err := m.b.Delete(key64(keyChunk, uint64(id)), nil); err != nil {
		return err
	}
	// Only one row can carry this hash: a chunk is stored again only after its hint was a miss, and then the hint names the newer one.
	if hint, err := m.hint(row.Hash); err == nil && hint == id {
		return m.b.Delete(append([]byte{keyHint}, row.Hash[:]...), nil)
	} else if err != nil && !errors.Is(err, block.ErrNotFound) {
		return err
	}
	return nil
}

// chunkRow returns a chunk's row as this batch sees it.
func (m *metaBatch) chunkRow(id block.ChunkID) (chunkRow, error) {
	if row, ok := m.fresh[id]; ok {
		return row, nil
	}
	return m.s.chunks.row(id)
}

// hint returns the chunk that is known under a hash, as this batch sees it, or ErrNotFound.
func (m *metaBatch) hint(hash [16]byte) (block.ChunkID, error) {
	if id, ok := m.hints[hash]; ok {
		return id, nil
	}
	v, closer, err := m.s.db.Get(append([]byte{keyHint}, hash[:]...))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, block.ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("read hint: %w", err)
	}
	defer closer.Close()
	if len(v) != 8 {
		return 0, &block.CorruptError{Source: "hint row", Want: "8 bytes", Got: fmt.Sprint(len(v))}
	}
	return block.ChunkID(binary.LittleEndian.Uint64(v)), nil
}

// segment returns the row of a segment for changing in this batch.
func (m *metaBatch) segment(id block.SegmentID) (*segmentRow, error) {
	if row, ok := m.segs[id]; ok {
		return row, nil
	}
	row, ok := m.s.segments.get(id)
	if !ok {
		return nil, &block.CorruptError{Source: fmt.Sprintf("segment %06x", id), Want: "a segment row", Got: "none"}
	}
	m.segs[id] = &row
	return &row, nil
}

// addChunk records a chunk that was just stored in a frame.
func (m *metaBatch) addChunk(id block.ChunkID, row chunkRow) error {
	m.fresh[id] = row
	m.refs.New(id)
	m.c.Unique += uint64(row.RawLen)
	seg, err := m.segment(row.Segment)
	if err != nil {
		return err
	}
	seg.TotalRaw += uint64(row.RawLen)
	seg.LiveRaw += uint64(row.RawLen)
	seg.TotalChunks++
	seg.LiveChunks++
	if err := m.b.Set(key64(keyChunk, uint64(id)), row.encode(nil), nil); err != nil {
		return err
	}
	return m.b.Set(append([]byte{keyHint}, row.Hash[:]...), binary.LittleEndian.AppendUint64(nil, uint64(id)), nil)
}

// moveChunk records that a chunk that has a row now lies elsewhere, with the same bytes.
func (m *metaBatch) moveChunk(id block.ChunkID, row chunkRow) error {
	old, err := m.chunkRow(id)
	if err != nil {
		return err
	}
	from, err := m.segment(old.Segment)
	if err != nil {
		return err
	}
	from.LiveRaw -= uint64(old.RawLen)
	from.LiveChunks--
	to, err := m.segment(row.Segment)
	if err != nil {
		return err
	}
	to.TotalRaw += uint64(row.RawLen)
	to.LiveRaw += uint64(row.RawLen)
	to.TotalChunks++
	to.LiveChunks++
	m.fresh[id] = row
	return m.b.Set(key64(keyChunk, uint64(id)), row.encode(nil), nil)
}
