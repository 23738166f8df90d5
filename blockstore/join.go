package blockstore

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// joiner makes one chunk of two that have the same bytes. Nothing but maps changes: each extent that names the double, and that no snapshot shares, names the other from then
// on; with the last reference the double goes. What snapshots hold of it stays, and is looked at again when one is gone.
type joiner struct {
	s       *Store
	doubles checkpoint.LiveSet // ids; with them most extents are told apart without a lookup
}

const (
	doubleSize = 12
	// joinRegions is how many regions are changed with one batch of metadata.
	joinRegions = 16
	// joinPiece is how many rows of doubles are looked at while Store.meta is held.
	joinPiece = 4096
)

// encodeDouble is the row of a double: which chunk it equals, and its length.
func encodeDouble(of block.ChunkID, rawLen uint32) []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint64(nil, uint64(of)), rawLen)
}

// run goes through all volumes once. It returns nil when it was broken off with the index.
func (j *joiner) run(ctx context.Context) error {
	if ok, err := j.load(ctx); err != nil || !ok {
		return err
	}
	for _, n := range j.s.joinable() {
		if err := j.node(ctx, n); err != nil {
			return err
		}
	}
	return j.tidy(ctx)
}

// scan calls f with rows of doubles from an id on, at most joinPiece. It returns the id to go on with, 0 after the last. Store.meta is held.
func (j *joiner) scan(from uint64, f func(id block.ChunkID, value []byte) error) (next uint64, err error) {
	it, err := j.s.index.db.NewIter(&pebble.IterOptions{LowerBound: key64(keyDouble, from), UpperBound: []byte{keyDouble + 1}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		id := binary.BigEndian.Uint64(it.Key()[1:])
		if n++; n > joinPiece {
			return id, nil
		}
		v, err := it.ValueAndErr()
		if err == nil && len(v) != doubleSize {
			err = &block.CorruptError{Source: fmt.Sprintf("double %d in the index", id), Want: "12 bytes", Got: fmt.Sprint(len(v))}
		}
		if err == nil {
			err = f(block.ChunkID(id), v)
		}
		if err != nil {
			return 0, err
		}
	}
	return 0, nil
}

// each calls f for each row of a double, holding Store.meta for some rows at a time, and done after each such piece. It reports whether the index was there all the time.
func (j *joiner) each(ctx context.Context, f func(id block.ChunkID, value []byte) error, done func()) (bool, error) {
	for from := uint64(0); ; {
		if err := ctx.Err(); err != nil {
			return false, err
		}
		next, ok, err := j.piece(from, f, done)
		if err != nil || !ok || next == 0 {
			return ok, err
		}
		from = next
	}
}

func (j *joiner) piece(from uint64, f func(id block.ChunkID, value []byte) error, done func()) (next uint64, ok bool, err error) {
	s := j.s
	s.meta.Lock()
	defer s.meta.Unlock()
	if s.index.db == nil || s.index.broken.Load() {
		return 0, false, nil
	}
	if next, err = j.scan(from, f); err != nil {
		s.index.fail()
		return 0, false, err
	}
	done()
	return next, true, nil
}

func (j *joiner) load(ctx context.Context) (bool, error) {
	return j.each(ctx, func(id block.ChunkID, _ []byte) error { j.doubles.Add(id); return nil }, func() {})
}

// joinable returns the heads with a map of their own. Maps of snapshots never change.
func (s *Store) joinable() (all []*node) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, n := range s.nodes {
		if n.flags&nodeClosed == 0 && n.flags&nodeStarted != 0 && n.readyLocked() && !n.abandonedLocked() {
			all = append(all, n)
		}
	}
	return all
}

// node joins what a head names.
func (j *joiner) node(ctx context.Context, n *node) error {
	s := j.s
	s.tree.RLock()
	bound := block.Epoch(n.bound)
	s.tree.RUnlock()
	for at := extentmap.Cursor(0); ; {
		var regions []uint64
		next, done, err := s.maps.Walk(ctx, n.effectiveRoot().Subtree(), bound, at, extentmap.Visitor{Recent: true, Page: func(p extentmap.Page) bool {
			for i := range p.Len() {
				if j.names(p.Extent(i), bound) {
					regions = append(regions, p.Region())
					break
				}
			}
			return len(regions) < joinRegions
		}})
		if errors.Is(err, block.ErrNotFound) { // the map went on meanwhile
			if s.removed(n) {
				return nil
			}
			err = nil
			if next == at && len(regions) == 0 {
				done = true // what is new was looked for when it was written
			}
		}
		if err == nil && len(regions) > 0 {
			err = j.regions(n, regions)
		}
		if err != nil || done {
			return err
		}
		at = next
	}
}

// names reports whether an extent names a double and is of one state alone.
func (j *joiner) names(x extentmap.Extent, bound block.Epoch) bool {
	return x.Kind == extentmap.KindChunk && x.Birth > bound && j.doubles.Has(x.Chunk)
}

// regions joins what some regions of a head name, in one batch.
func (j *joiner) regions(n *node, regions []uint64) error {
	m := j.s.beginMeta()
	j.s.tree.RLock()
	head := n.flags&nodeClosed == 0 && n.flags&nodeStarted != 0
	j.s.tree.RUnlock()
	e := (*mapEdit)(nil)
	if head && j.s.index.db != nil {
		e = m.edit(n)
	}
	if e == nil {
		m.abort()
		return nil
	}
	for _, r := range regions {
		if err := j.region(m, e, n, r); err != nil {
			m.abort()
			return err
		}
	}
	if err := e.finish(); err != nil {
		m.abort()
		return err
	}
	if err := m.commit(); err != nil {
		return err
	}
	j.s.at(afterJoin)
	return nil
}

func (j *joiner) region(m *metaBatch, e *mapEdit, n *node, region uint64) error {
	page, err := j.s.maps.Region(n.effectiveRoot(), region)
	if err != nil {
		return err
	}
	for i := range page.Len() {
		x := page.Extent(i)
		if !j.names(x, e.bound) {
			continue
		}
		of, err := j.equal(m, x.Chunk)
		if err != nil {
			return err
		}
		if of == 0 {
			continue
		}
		x.Chunk = of
		if err := e.replace(x.Off, uint64(x.Len), []extentmap.Extent{x}); err != nil {
			return err
		}
	}
	return nil
}

// equal returns the chunk that a double equals, by their rows as they are now, or 0.
func (j *joiner) equal(m *metaBatch, double block.ChunkID) (block.ChunkID, error) {
	v, closer, err := j.s.index.db.Get(key64(keyDouble, uint64(double)))
	if errors.Is(err, pebble.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer closer.Close()
	if len(v) != doubleSize {
		return 0, nil
	}
	of := block.ChunkID(binary.LittleEndian.Uint64(v))
	row, err := m.chunkRow(double)
	if errors.Is(err, block.ErrNotFound) || err == nil && of == double {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	ok, err := m.holds(of, &row.Hash, int(row.RawLen))
	if !ok {
		of = 0
	}
	return of, err
}

// tidy drops the rows of doubles that are gone. One whose equal is gone is known by its hash from then on.
func (j *joiner) tidy(ctx context.Context) error {
	s := j.s
	var b *pebble.Batch
	var st indexState
	var added [][16]byte
	_, err := j.each(ctx, func(id block.ChunkID, v []byte) error {
		if b == nil {
			b, st = s.index.db.NewBatch(), s.index.state
		}
		row, err := s.chunks.row(id)
		of := block.ChunkID(binary.LittleEndian.Uint64(v))
		switch {
		case errors.Is(err, block.ErrNotFound):
			st.Joined++
			st.JoinedRaw += uint64(binary.LittleEndian.Uint32(v[8:]))
		case err != nil:
			return err
		default:
			if other, err := s.chunks.row(of); err == nil && other.Hash == row.Hash {
				return nil // a snapshot holds it
			} else if err != nil && !errors.Is(err, block.ErrNotFound) {
				return err
			}
			_ = b.Set(hintKey(&row.Hash), binary.LittleEndian.AppendUint64(nil, uint64(id)), nil)
			added = append(added, row.Hash)
		}
		st.Doubles--
		return b.Delete(key64(keyDouble, uint64(id)), nil)
	}, func() {
		if b == nil {
			return
		}
		if !b.Empty() && s.index.write(b, st) {
			for i := range added {
				s.hints.added(&added[i])
			}
		}
		_ = b.Close()
		b, added = nil, nil
	})
	if b != nil {
		_ = b.Close()
	}
	return err
}
