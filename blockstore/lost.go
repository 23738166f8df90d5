package blockstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/checkpoint"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// A lost chunk is one that maps name and that no segment has: its row is marked as damaged and names segment 0. Its blocks give EIO, everything else goes on. Whoever writes
// over them heals them.

// lostRow is the row of a lost chunk, of which only extents are left to tell.
func lostRow(hash [8]byte, rawLen uint32) chunkRow {
	row := chunkRow{RawLen: rawLen, Flags: chunkDamaged}
	copy(row.Hash[:], hash[:])
	return row
}

// lost reports whether the row is that of a lost chunk.
func (r *chunkRow) lost() bool { return r.Segment == 0 && r.Flags&chunkDamaged != 0 }

// errLost is what reads of a lost chunk get.
var errLost = &block.CorruptError{Source: "segment", Want: "the bytes of a chunk", Got: "none: it was in no segment that could be read when the metadata was made anew; write over its blocks, or restore them"}

// LostInfo says what a rebuild of the metadata did not find.
type LostInfo struct {
	Chunks, Bytes uint64 // at least so many bytes of chunks, before compression
	// Ranges are the blocks of volumes and snapshots that give EIO now: the first ones, as many as maxLostRanges; More says whether there are others.
	Ranges []LostRange
	More   bool
}

// LostRange is a range of a volume, or of one of its snapshots.
type LostRange struct {
	Volume, Snapshot string
	block.Range
}

func (r LostRange) String() string {
	name := r.Volume
	if r.Snapshot != "" {
		name += "@" + r.Snapshot
	}
	return fmt.Sprintf("%s at %d+%d", name, r.Off, r.Len)
}

// String names what is lost, in a line.
func (l *LostInfo) String() string {
	parts := make([]string, 0, len(l.Ranges)+1)
	for _, r := range l.Ranges {
		parts = append(parts, r.String())
	}
	if l.More {
		parts = append(parts, "and others: store check names them")
	}
	return strings.Join(parts, ", ")
}

// maxLostRanges bounds a report: it goes into a line of a log.
const maxLostRanges = 100

// lostExtent is what an extent tells of a lost chunk.
type lostExtent struct {
	id   block.ChunkID
	hash [8]byte
	end  uint32 // of the part that the extent names, in the chunk
}

// lostABatch is how many of them are gathered before they become rows.
const lostABatch = 1 << 16

// lose makes rows for the chunks that maps name and no segment has.
func (r *rebuild) lose() error {
	l := &r.live
	if l.found.Len() == l.want.Len() {
		return nil
	}
	if l.found.Len() == 0 {
		return &block.CorruptError{Source: r.s.path("segments"), Want: fmt.Sprintf("%d chunks", l.want.Len()), Got: "none in any segment that can be read; are all of them there?"}
	}
	var batch []lostExtent
	err := r.eachPage(func(page extentmap.Page) error {
		for i := range page.Len() {
			x := page.Extent(i)
			if x.Kind != extentmap.KindChunk || !l.want.Has(x.Chunk) || l.found.Has(x.Chunk) {
				continue
			}
			if batch = append(batch, lostExtent{x.Chunk, x.Hash8, x.ChunkOff + x.Len}); len(batch) == lostABatch {
				if err := r.loseBatch(batch); err != nil {
					return err
				}
				batch = batch[:0]
			}
		}
		return nil
	})
	if err == nil {
		err = r.loseBatch(batch)
	}
	if missing := l.want.Len() - l.found.Len(); err == nil && r.lost.Chunks != missing {
		err = &block.CorruptError{Source: "checkpoint", Want: fmt.Sprintf("maps that name all of %d chunks that are in no segment", missing), Got: fmt.Sprintf("%d of them", r.lost.Chunks)}
	}
	return err
}

// loseBatch makes rows of chunks, or lets those that are there grow: extents may name parts.
func (r *rebuild) loseBatch(batch []lostExtent) error {
	slices.SortFunc(batch, func(a, b lostExtent) int { return int(min(1, max(-1, int64(a.id-b.id)))) })
	for len(batch) > 0 {
		x, n := batch[0], 1
		for ; n < len(batch) && batch[n].id == x.id; n++ {
			if batch[n].hash != x.hash {
				return errTwoHashes(x.id, x.hash, batch[n].hash)
			}
			x.end = max(x.end, batch[n].end)
		}
		batch = batch[n:]
		if err := r.loseChunk(x); err != nil {
			return err
		}
	}
	return r.flush(0)
}

func errTwoHashes(id block.ChunkID, a, b [8]byte) error {
	return &block.CorruptError{Source: fmt.Sprintf("extents of chunk %d", id), Want: fmt.Sprintf("hash %x in all", a), Got: fmt.Sprintf("%x in one", b)}
}

func (r *rebuild) loseChunk(x lostExtent) error {
	was, err := r.chunkRow(x.id)
	switch {
	case errors.Is(err, block.ErrNotFound):
		r.lost.Chunks++
		r.lostIDs.Add(x.id)
	case err != nil:
		return err
	case [8]byte(was.Hash[:8]) != x.hash:
		return errTwoHashes(x.id, [8]byte(was.Hash[:8]), x.hash)
	case was.RawLen >= x.end:
		return nil
	}
	grown := uint64(x.end - was.RawLen)
	r.live.unique += grown
	r.lost.Bytes += grown
	row := lostRow(x.hash, x.end)
	return r.set(key64(keyChunk, uint64(x.id)), row.encode(nil))
}

// loseWrong makes a lost chunk of one whose bytes in the segments are not those that the maps mean: a file of another store's history, or of another time.
func (r *rebuild) loseWrong(x lostExtent) error {
	if err := r.flush(0); err != nil {
		return err
	}
	was, err := r.chunkRow(x.id)
	if err != nil {
		return err
	}
	if was.lost() {
		return errors.Join(r.loseChunk(x), r.flush(0))
	}
	i, found := slices.BinarySearchFunc(r.segs, was.Segment, func(f foundSegment, id block.SegmentID) int { return int(min(1, max(-1, int64(f.row.ID-id)))) })
	if !found {
		return &block.CorruptError{Source: fmt.Sprintf("chunk row %d", x.id), Want: "a segment that was found", Got: fmt.Sprint(was.Segment)}
	}
	r.segs[i].row.LiveRaw -= uint64(was.RawLen)
	r.segs[i].row.LiveChunks--
	r.live.unique += uint64(x.end) - uint64(was.RawLen)
	r.lost.Chunks++
	r.lost.Bytes += uint64(x.end)
	r.lostIDs.Add(x.id)
	row := lostRow(x.hash, x.end)
	if err := r.set(key64(keyChunk, uint64(x.id)), row.encode(nil)); err != nil {
		return err
	}
	return r.flush(0)
}

// chunkRow reads the row of a chunk that was flushed, or returns ErrNotFound.
func (r *rebuild) chunkRow(id block.ChunkID) (chunkRow, error) {
	v, err := r.get(key64(keyChunk, uint64(id)))
	if errors.Is(err, pebble.ErrNotFound) {
		return chunkRow{}, block.ErrNotFound
	}
	if err != nil {
		return chunkRow{}, err
	}
	return decodeChunkRow(id, v)
}

// get returns a copy of a row.
func (r *rebuild) get(key []byte) ([]byte, error) {
	v, closer, err := r.db.Get(key)
	if err != nil {
		return nil, err
	}
	v = bytes.Clone(v)
	return v, closer.Close()
}

// lostRanges finds the ranges that chunks are in. It reads the maps of all volumes and snapshots, as making the metadata anew did.
func (s *Store) lostRanges(ctx context.Context, chunks *checkpoint.LiveSet, info *LostInfo) error {
	s.tree.RLock()
	var visible []*node
	for _, n := range s.nodes {
		if n.visibleLocked() || n.volume.head.Load() == n {
			visible = append(visible, n)
		}
	}
	s.tree.RUnlock()
	slices.SortFunc(visible, func(a, b *node) int { return strings.Compare(a.volume.name+"\x00"+a.name, b.volume.name+"\x00"+b.name) })
	for _, n := range visible {
		_, done, err := s.maps.Walk(ctx, n.effectiveRoot().Subtree(), 0, 0, extentmap.Visitor{Page: func(p extentmap.Page) bool {
			for i := range p.Len() {
				x := p.Extent(i)
				if x.Kind == extentmap.KindChunk && chunks.Has(x.Chunk) && !info.add(LostRange{n.volume.name, n.name, block.Range{Off: x.Off, Len: uint64(x.Len)}}) {
					return false
				}
			}
			return true
		}})
		if err != nil || !done {
			return err
		}
	}
	return nil
}

// add adds a range and reports whether there is room for more.
func (l *LostInfo) add(r LostRange) bool {
	if k := len(l.Ranges); k > 0 {
		last := &l.Ranges[k-1]
		if last.Volume == r.Volume && last.Snapshot == r.Snapshot && last.End() == r.Off {
			last.Len += r.Len
			return true
		}
	}
	if l.More = len(l.Ranges) == maxLostRanges; l.More {
		return false
	}
	l.Ranges = append(l.Ranges, r)
	return true
}
