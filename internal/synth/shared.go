package synth

import (
	"encoding/binary"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// shared are the chunks of the store, each with its count of references before the map is written.
type shared struct {
	spec        Spec
	chunks      []sharedChunk
	sharedBytes uint64 // raw bytes of the chunks that have more than one reference with the map
}

type sharedChunk struct {
	id   block.ChunkID
	len  uint32 // bytes
	hash [8]byte
	refs uint64
}

// readChunks reads all chunk rows and counts, which are few in a store that a test has written.
func readChunks(db *pebble.DB, spec Spec) (*shared, error) {
	s := &shared{spec: spec}
	at := map[block.ChunkID]int{}
	err := scan(db, 'C', func(k, row []byte) error {
		c := sharedChunk{id: block.ChunkID(binary.BigEndian.Uint64(k[1:])), len: binary.LittleEndian.Uint32(row[20:]) & 0xffffff, hash: [8]byte(row[24:]), refs: 1}
		at[c.id] = len(s.chunks)
		s.chunks = append(s.chunks, c)
		return nil
	})
	if err == nil {
		err = scan(db, 'R', func(k, value []byte) error {
			s.chunks[at[block.ChunkID(binary.BigEndian.Uint64(k[1:]))]].refs = binary.LittleEndian.Uint64(value)
			return nil
		})
	}
	if err != nil {
		return nil, err
	}
	if len(s.chunks) == 0 {
		return nil, fmt.Errorf("chunks to share: %w", block.ErrNotFound)
	}
	for i := range spec.extents() {
		s.chunks[s.index(i)].refs++
	}
	for _, c := range s.chunks {
		if c.refs > 1 {
			s.sharedBytes += uint64(c.len)
		}
	}
	return s, nil
}

// index returns which chunk extent i refers to.
func (s *shared) index(i uint64) uint64 {
	n := uint64(s.spec.ExtentsPerRegion)
	region, k := i/n, i%n
	return (region/s.spec.RegionsAlike*n + k) % uint64(len(s.chunks))
}

func (s *shared) extent(i uint64) extentmap.Extent {
	c := s.chunks[s.index(i)]
	return extentmap.Extent{Len: min(c.len, uint32(s.spec.slot())), Kind: extentmap.KindChunk, Chunk: c.id, Hash8: c.hash}
}

// counted returns the keys of all count rows.
func (s *shared) counted() (keys [][]byte) {
	for _, c := range s.chunks {
		if c.refs >= 2 {
			keys = append(keys, extentmap.RefKey(c.id))
		}
	}
	return keys
}

// countRows writes how many references each chunk has now.
func (s *shared) countRows(out *table) error {
	for _, c := range s.chunks {
		if c.refs < 2 {
			continue
		}
		if err := out.set(extentmap.RefKey(c.id), binary.LittleEndian.AppendUint64(nil, c.refs)); err != nil {
			return err
		}
	}
	return nil
}
