package extentmap

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Refs gathers the changes of reference counts of one batch. A count of 1, the usual one, has no row; so a chunk that is stored by this batch must be named by New, or it
// would be taken for one with a count of 1. The zero Refs is ready for use.
type Refs struct {
	changes map[block.ChunkID]refChange
}

type refChange struct {
	delta int64
	fresh bool // the chunk is stored by this batch: its count was 0
}

// New says that the chunk is stored by this batch and had no reference before.
func (r *Refs) New(chunk block.ChunkID) {
	c := r.changes[chunk]
	c.fresh = true
	r.put(chunk, c)
}

// Add changes the count of a chunk.
func (r *Refs) Add(chunk block.ChunkID, delta int64) {
	c := r.changes[chunk]
	c.delta += delta
	r.put(chunk, c)
}

func (r *Refs) put(chunk block.ChunkID, c refChange) {
	if r.changes == nil {
		r.changes = make(map[block.ChunkID]refChange)
	}
	r.changes[chunk] = c
}

// Len returns the number of chunks that were named.
func (r *Refs) Len() int { return len(r.changes) }

// Resolve reads the counts from reader, which must not hold rows of this batch's own Resolve yet, writes the new ones in the order of chunk ids and calls changed
// for each chunk whose count is now another, and for fresh ones even when it is 0 still. A count below 0 is a *block.CorruptError. Then Refs is empty again.
func (r *Refs) Resolve(reader Reader, w Writer, changed func(chunk block.ChunkID, before, after uint64) error) error {
	for _, chunk := range slices.Sorted(maps.Keys(r.changes)) {
		c := r.changes[chunk]
		if c.delta == 0 && !c.fresh {
			continue
		}
		if err := c.resolve(chunk, reader, w, changed); err != nil {
			return err
		}
	}
	clear(r.changes)
	return nil
}

func (c refChange) resolve(chunk block.ChunkID, reader Reader, w Writer, changed func(chunk block.ChunkID, before, after uint64) error) error {
	before, row := uint64(0), false
	if !c.fresh {
		var err error
		if before, row, err = readRef(reader, chunk); err != nil {
			return err
		}
	}
	after := int64(before) + c.delta
	var err error
	switch {
	case after < 0:
		return &block.CorruptError{Source: fmt.Sprintf("reference count of chunk %d", chunk), Want: "at least 0",
			Got: fmt.Sprintf("%d%+d", before, c.delta)}
	case after > 1:
		err = w.Set(RefKey(chunk), binary.LittleEndian.AppendUint64(nil, uint64(after)), nil)
	case row:
		err = w.Delete(RefKey(chunk), nil)
	}
	if err != nil {
		return fmt.Errorf("write reference count of chunk %d: %w", chunk, err)
	}
	return changed(chunk, before, uint64(after))
}

// ReadRef returns the reference count of a chunk that exists.
func ReadRef(reader Reader, chunk block.ChunkID) (uint64, error) {
	n, _, err := readRef(reader, chunk)
	return n, err
}

func readRef(reader Reader, chunk block.ChunkID) (n uint64, row bool, err error) {
	value, closer, err := getBorrowed(reader, RefKey(chunk))
	if errors.Is(err, block.ErrNotFound) {
		return 1, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("read reference count of chunk %d: %w", chunk, err)
	}
	if n, err = DecodeRef(chunk, value); err != nil {
		return 0, false, errors.Join(err, closer.Close())
	}
	return n, true, closer.Close()
}

// DecodeRef decodes the value of the row of a chunk's reference count, which is at least 2.
func DecodeRef(chunk block.ChunkID, value []byte) (uint64, error) {
	c := checker{kind: "reference count of chunk", id: uint64(chunk)}
	if len(value) != 8 {
		return 0, c.fail(0, "8 B", fmt.Sprintf("%d B", len(value)))
	}
	n := binary.LittleEndian.Uint64(value)
	if n < 2 || n > 1<<62 {
		return 0, c.fail(0, "a count from 2 to 2^62", fmt.Sprint(n))
	}
	return n, nil
}
