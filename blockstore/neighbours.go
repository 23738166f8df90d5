package blockstore

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// neighbours makes what was stored together known together: who writes a chunk that is there already mostly goes on with those that were stored after it, as in a second copy
// of an image. Chunk ids are dense and given in the order of segments, so the rows behind a row are the directory of what lies beside it, and one seek reads them all: the
// locality-preserved cache of Zhu, Li, Patterson (FAST 2008). It is used only by the holder of Store.meta.
type neighbours struct {
	last  block.ChunkID // that was found in the index
	reads uint64        // how often some were read
}

const (
	// nearIDs is how far two finds may lie apart to be of one stream.
	nearIDs = 256
	// neighbourRows is how many rows are read at once: 4 MiB of data.
	neighbourRows = 256
)

// hit is told of a chunk that was found in the index. When the one before was near, those behind it are put where they are found without it. Errors are left to whoever needs
// the rows.
func (n *neighbours) hit(s *Store, id block.ChunkID) {
	near := id > n.last && id-n.last <= nearIDs
	n.last = id
	if !near {
		return
	}
	n.reads++
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: key64(keyChunk, uint64(id)+1), UpperBound: key64(keyChunk, uint64(id)+1+neighbourRows)})
	if err != nil {
		return
	}
	for ok := it.First(); ok; ok = it.Next() {
		next := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		v, err := it.ValueAndErr()
		if err != nil {
			break
		}
		row, err := decodeChunkRow(next, v)
		if err != nil || row.Flags&chunkDamaged != 0 {
			continue
		}
		s.recentHints.put(&row.Hash, next)
		_, known, gen := s.chunks.rows.get(next)
		if !known {
			s.chunks.rows.put(next, row, gen)
		}
		n.last = next
	}
	_ = it.Close()
}
