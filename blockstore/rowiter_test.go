package blockstore

import (
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// TestRowIterAfterMiss: behind a chunk that was not found, chunk 1 was taken for the next one, and what lay there for its row: reclaim never moved it and began again for ever.
func TestRowIterAfterMiss(t *testing.T) {
	r := newQuiet(t)
	for _, id := range []uint64{1, 7} {
		row := chunkRow{Segment: 3, FrameOff: 4096, FrameLen: 200, RawLen: uint32(id)}
		r.check(r.s.db.Set(key64(keyChunk, id), row.encode(nil), nil))
	}
	it := rowIter{}
	defer func() { r.check(it.close()) }()
	if _, err := it.row(r.s.db, 5); !errors.Is(err, block.ErrNotFound) {
		t.Fatalf("chunk 5: %v", err)
	}
	row, err := it.row(r.s.db, 1)
	r.check(err)
	if row.RawLen != 1 {
		t.Fatalf("the row of chunk 1 is that of %d", row.RawLen)
	}
}
