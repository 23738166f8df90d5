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

	Lost   uint64 // chunks whose bytes are in no segment (lost.go)
	RowSum uint64 // over the rows of volumes, nodes and segments (rowsum.go)
	summed bool   // RowSum counts: counters of version 1 have none
}

// countersVersion is what is written. Version 1 ends before Lost.
const countersVersion = 2

func (c *counters) encode() []byte {
	e := &enc{}
	e.u8(countersVersion)
	e.zero(7)
	for _, v := range []uint64{c.AppliedSeq, uint64(c.Watermark), c.NextChunk, c.NextPage, c.NextSegment, c.NextVolume, c.NextRow, c.Unique, c.Shared} {
		e.u64(v)
	}
	e.bytes(c.StoreID[:])
	e.u64(c.Segments)
	e.u64(c.Nodes)
	e.u64(c.Lost)
	e.u64(c.RowSum)
	e.zero(8)
	return e.b
}

func decodeCounters(b []byte) (c counters, err error) {
	d := &dec{b: b}
	version := d.u8()
	if version != 1 && version != countersVersion {
		return c, fmt.Errorf("counters row version %d: %w", version, block.ErrVersion)
	}
	d.zero(7)
	c.AppliedSeq = d.u64()
	c.Watermark = journal.Pos(d.u64())
	for _, p := range []*uint64{&c.NextChunk, &c.NextPage, &c.NextSegment, &c.NextVolume, &c.NextRow, &c.Unique, &c.Shared} {
		*p = d.u64()
	}
	copy(c.StoreID[:], d.take(16))
	c.Segments, c.Nodes = d.u64(), d.u64()
	if c.summed = version == countersVersion; c.summed {
		c.Lost, c.RowSum = d.u64(), d.u64()
	}
	d.zero(8)
	return c, d.end("counters row")
}

// deadChunk is a chunk whose last reference goes with a batch.
type deadChunk struct {
	id   block.ChunkID
	hash [16]byte
}

// metaBatch is one atomic change of the metadata. Its owner holds Store.meta from begin to commit or abort, so it may read, decide and write counts exactly.
type metaBatch struct {
	s     *Store
	b     *pebble.Batch
	refs  *extentmap.Refs
	c     counters                   // becomes Store.c with the commit
	fresh map[block.ChunkID]chunkRow // new chunks, and those that moved
	dead  []deadChunk
	hints map[[16]byte]block.ChunkID
	was   uint64 // last chunk id that was given before
	segs  map[block.SegmentID]*segmentRow
	roots map[*node]extentmap.Root
	grown map[*node]int64 // change of node.mapped, bytes
	sums  map[rowKey]uint64
	rows  rowIter

	unmatched map[[16]byte]bool // of hints, those of chunks that nobody looked for: they get none

	touched map[touchedKey]touched // what changed in volumes that have bitmaps

	purged  []*node // leave the tree with the commit
	onApply []func()
}

func (s *Store) beginMeta() *metaBatch {
	s.meta.Lock()
	return &metaBatch{
		s: s, b: s.db.NewBatch(), refs: &extentmap.Refs{}, c: s.c, was: s.c.NextChunk,
		fresh: make(map[block.ChunkID]chunkRow),
		hints: make(map[[16]byte]block.ChunkID),
		segs:  make(map[block.SegmentID]*segmentRow),
		roots: make(map[*node]extentmap.Root),
		grown: make(map[*node]int64),
		sums:  make(map[rowKey]uint64),
	}
}

// abort forgets the batch. Ids that it took are not given again: caches and frames already written may know them.
func (m *metaBatch) abort() {
	m.keepIDs()
	_ = m.b.Close()
	_ = m.rows.close()
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
			s.forgetPacked()
		}
	}()
	if err := errors.Join(m.refs.Resolve(s.refRows, refWriter{m.b, s.refRows}, m.refChange), m.rows.close()); err != nil {
		return fmt.Errorf("count references: %w", err)
	}
	for id, row := range m.segs {
		b, err := row.encode()
		if err == nil {
			err = m.setRow(key64(keySegment, uint64(id)), b)
		}
		if err != nil {
			return err
		}
		if _, known := s.segments.get(id); !known {
			m.c.Segments++
		}
	}
	if err := m.writeTouched(); err != nil {
		return err
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
	m.publish()
	s.publishing.Unlock()
	m.publishHints()
	return nil
}

// write makes the batch durable. When it returns nil, Store.publishing is held.
func (m *metaBatch) write() error {
	s := m.s
	if err := m.mark(); err != nil {
		return fmt.Errorf("mark what changed: %w", err)
	}
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
func (m *metaBatch) publish() {
	s := m.s
	s.c = m.c
	s.counted.Store(&m.c)
	m.keepSums()
	s.segments.apply(m.segs)
	s.refRows.trim()
	for id, row := range m.fresh {
		s.chunks.rows.changed(id, &row)
	}
	for i := range m.dead {
		s.chunks.rows.changed(m.dead[i].id, nil)
	}
	s.tree.Lock()
	for n, root := range m.roots {
		n.root.Store(&root)
		n.flags |= nodeStarted
	}
	for _, n := range m.purged {
		s.forgetNodeLocked(n)
	}
	s.tree.Unlock()
	for _, f := range m.onApply {
		f()
	}
}

// publishHints tells the index of the committed batch, and the filters in front of it.
func (m *metaBatch) publishHints() {
	s := m.s
	s.index.apply(m)
	for hash, id := range m.hints {
		if !m.unmatched[hash] {
			s.hints.added(&hash)
		}
		s.recentHints.put(&hash, id)
	}
	for i := range m.dead {
		s.recentHints.drop(&m.dead[i].hash, m.dead[i].id)
	}
	s.hints = s.hints.tighter(s.plan.hints, s.liveChunkCount)
	if len(m.purged) > 0 {
		s.indexer.noteFreed()
	}
}

// captureTreeLocked writes the rows of all volumes and nodes that changed since the last commit, as they are now, and the sequence number of the last control record
// they show. Store.tree is held.
func (m *metaBatch) captureTreeLocked() dirtySet {
	s := m.s
	got := s.dirty.take()
	for _, v := range got.volumes {
		_ = m.setRow(key64(keyVolume, uint64(v.id)), v.rowLocked().encode())
	}
	for id := range got.goneVolumes {
		_ = m.deleteRow(key64(keyVolume, uint64(id)))
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
		_ = m.setRow(key64(keySnapshot, uint64(n.id)), row.encode())
	}
	for _, n := range m.purged {
		_ = m.deleteRow(key64(keySnapshot, uint64(n.id)))
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
	row, err := m.nextChunkRow(id)
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
	if row.lost() {
		m.c.Lost--
		m.dead = append(m.dead, deadChunk{id, row.Hash})
		return m.b.Delete(key64(keyChunk, uint64(id)), nil) // no hint names it
	}
	seg, err := m.segment(row.Segment)
	if err != nil {
		return err
	}
	seg.LiveRaw -= raw
	seg.LiveChunks--
	delete(m.fresh, id)
	m.dead = append(m.dead, deadChunk{id, row.Hash})
	return m.b.Delete(key64(keyChunk, uint64(id)), nil)
}

// chunkRow returns a chunk's row as this batch sees it.
func (m *metaBatch) chunkRow(id block.ChunkID) (chunkRow, error) {
	if row, ok := m.fresh[id]; ok {
		return row, nil
	}
	return m.s.chunks.row(id)
}

// nextChunkRow is chunkRow for ids that are asked for in ascending order.
func (m *metaBatch) nextChunkRow(id block.ChunkID) (chunkRow, error) {
	if row, ok := m.fresh[id]; ok {
		return row, nil
	}
	return m.rows.row(m.s.db, id)
}

// errNotLooked is block.ErrNotFound of a chunk that may be there: to look for it would cost more time than there is.
var errNotLooked = fmt.Errorf("not looked for: %w", block.ErrNotFound)

// known returns the chunk that holds n bytes of this hash, or ErrNotFound: one that this batch stores, or one whose row says so. Hints alone prove nothing, and the row is
// read here, where nobody can change it.
func (m *metaBatch) known(hash [16]byte, n int) (block.ChunkID, error) {
	if id, ok := m.hints[hash]; ok {
		return id, nil
	}
	if m.s.indexer.blind.Load() {
		return 0, errNotLooked
	}
	if id, ok := m.s.recentHints.find(&hash); ok {
		if ok, err := m.holds(id, &hash, n); ok || err != nil {
			return id, err
		}
	}
	if !m.s.hints.perhaps(&hash) {
		return 0, block.ErrNotFound
	}
	if !m.s.hints.knows(&hash) && m.s.indexer.hurried() {
		return 0, errNotLooked
	}
	id, err := m.s.index.hint(&hash)
	if err != nil {
		return 0, err
	}
	ok, err := m.holds(id, &hash, n)
	if err == nil && !ok {
		err = block.ErrNotFound
	}
	if err == nil {
		m.s.recentHints.put(&hash, id)
		m.s.neighbours.hit(m.s, id)
	}
	return id, err
}

// holds reports whether a chunk has n bytes of this hash that can be read, as far as is known.
func (m *metaBatch) holds(id block.ChunkID, hash *[16]byte, n int) (bool, error) {
	row, err := m.chunkRow(id)
	if errors.Is(err, block.ErrNotFound) {
		return false, nil
	}
	return err == nil && row.Hash == *hash && int(row.RawLen) == n && row.Flags&chunkDamaged == 0 && !m.s.damaged.has(id), err
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
	return m.b.Set(key64(keyChunk, uint64(id)), row.encode(nil), nil)
}

// passChunk records that a frame holds bytes of a chunk that lives elsewhere, or no more.
func (m *metaBatch) passChunk(row chunkRow) error {
	seg, err := m.segment(row.Segment)
	if err != nil {
		return err
	}
	seg.TotalRaw += uint64(row.RawLen)
	seg.TotalChunks++
	return nil
}

// moveChunk records that a chunk that has a row now lies elsewhere, with the same bytes.
func (m *metaBatch) moveChunk(id block.ChunkID, row chunkRow) error {
	old, err := m.nextChunkRow(id)
	if err != nil {
		return err
	}
	born := block.SegmentID(0)
	if old.lost() {
		m.c.Lost-- // it was in no segment
	} else {
		from, err := m.segment(old.Segment)
		if err != nil {
			return err
		}
		from.LiveRaw -= uint64(old.RawLen)
		from.LiveChunks--
		born = from.born()
	}
	to, err := m.segment(row.Segment)
	if err != nil {
		return err
	}
	to.TotalRaw += uint64(row.RawLen)
	to.LiveRaw += uint64(row.RawLen)
	to.TotalChunks++
	to.LiveChunks++
	to.Born = max(to.Born, born)
	m.fresh[id] = row
	return m.b.Set(key64(keyChunk, uint64(id)), row.encode(nil), nil)
}
