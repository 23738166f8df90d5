package blockstore

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// rowIter reads chunk rows in ascending order of ids, which costs a fifth of as many single lookups. It shows the rows as they were when it was first used.
type rowIter struct {
	it   *pebble.Iterator
	last block.ChunkID // that was asked for
	key  [9]byte
}

// row returns the row of a chunk, or ErrNotFound.
func (r *rowIter) row(db *pebble.DB, id block.ChunkID) (chunkRow, error) {
	if r.it == nil {
		it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyChunk}, UpperBound: []byte{keyChunk + 1}})
		if err != nil {
			return chunkRow{}, fmt.Errorf("read chunk rows: %w", err)
		}
		r.it = it
	}
	r.key[0] = keyChunk
	putBE64(r.key[1:], uint64(id))
	switch {
	case id == r.last && r.it.Valid():
	case id == r.last+1 && r.it.Valid():
		r.it.Next() // chunks that go together were often made together
	default:
		r.it.SeekGE(r.key[:])
	}
	r.last = id
	if !r.it.Valid() || !bytes.Equal(r.it.Key(), r.key[:]) {
		if err := r.it.Error(); err != nil {
			return chunkRow{}, fmt.Errorf("read chunk row %d: %w", id, err)
		}
		r.last = ^block.ChunkID(0) // where the iterator stands says nothing of the next id: not of the one after 0, either
		return chunkRow{}, fmt.Errorf("chunk %d: %w", id, block.ErrNotFound)
	}
	return decodeChunkRow(id, r.it.Value())
}

func (r *rowIter) close() error {
	if r.it == nil {
		return nil
	}
	err := r.it.Close()
	r.it = nil
	return err
}
