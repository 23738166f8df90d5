package blockstore

import (
	"encoding/binary"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// refFilter knows of which chunks there may be a row that counts references: of a chunk with one reference, the usual case, there is none. It holds a bit for each id, in
// blocks that are read when they are first asked for. A bit may be set for a row that is gone; it is never missing for one that is there. It is used only by the holder of
// Store.meta.
type refFilter struct {
	db     *pebble.DB
	blocks map[uint64]*refBlock
}

const (
	refBlockBits = 16
	// refBlocksMost bounds what is held: 8 KiB each, for 64 Ki chunks, which is about 1 GiB of data.
	refBlocksMost = 1024
)

type refBlock [1 << refBlockBits / 64]uint64

func newRefFilter(db *pebble.DB) *refFilter {
	return &refFilter{db: db, blocks: map[uint64]*refBlock{}}
}

// block returns the block of an id, reading it if need be.
func (f *refFilter) block(id uint64) (*refBlock, error) {
	n := id >> refBlockBits
	if b := f.blocks[n]; b != nil {
		return b, nil
	}
	lower, upper := extentmap.RefKey(block.ChunkID(n<<refBlockBits)), extentmap.RefKey(block.ChunkID((n+1)<<refBlockBits))
	it, err := f.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil, err
	}
	b := &refBlock{}
	for ok := it.First(); ok; ok = it.Next() {
		if k := it.Key(); len(k) == 9 {
			b.set(binary.BigEndian.Uint64(k[1:]))
		}
	}
	if err := it.Close(); err != nil {
		return nil, err
	}
	f.blocks[n] = b
	return b, nil
}

func (b *refBlock) set(id uint64) {
	at := id & (1<<refBlockBits - 1)
	b[at/64] |= 1 << (at % 64)
}

func (b *refBlock) has(id uint64) bool {
	at := id & (1<<refBlockBits - 1)
	return b[at/64]&(1<<(at%64)) != 0
}

// trim keeps the filter inside its bound. It must not be called while a batch is being made: bits of rows that are not committed could not be read back.
func (f *refFilter) trim() {
	if len(f.blocks) > refBlocksMost {
		clear(f.blocks)
	}
}

// Get implements extentmap.Reader for rows of reference counts.
func (f *refFilter) Get(key []byte) ([]byte, io.Closer, error) {
	id := binary.BigEndian.Uint64(key[1:])
	b, err := f.block(id)
	if err != nil {
		return nil, nil, err
	}
	if !b.has(id) {
		return nil, nil, pebble.ErrNotFound
	}
	return f.db.Get(key)
}

// refWriter notes the rows of reference counts that a batch sets.
type refWriter struct {
	*pebble.Batch
	f *refFilter
}

// Set implements extentmap.Writer for rows of reference counts.
func (w refWriter) Set(key, value []byte, o *pebble.WriteOptions) error {
	id := binary.BigEndian.Uint64(key[1:])
	b, err := w.f.block(id)
	if err != nil {
		return err
	}
	b.set(id)
	return w.Batch.Set(key, value, o)
}
