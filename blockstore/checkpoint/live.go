package checkpoint

import (
	"encoding/binary"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Chunk rows are not kept: where a chunk lies is told by the segments themselves. Which chunks exist is, in rows of table L: a bit for each id. These constants are part of
// the disk format and should not be changed.
const (
	// LivePerRow is how many chunk ids one row is about.
	LivePerRow = 512
	liveBytes  = LivePerRow / 8
	LiveTable  = 'L'
)

// LiveRow gathers the bits of one row.
type LiveRow struct {
	block uint64 // id / LivePerRow
	bits  [liveBytes]byte
	any   bool
}

// Add adds a chunk. It reports false, and adds nothing, when the chunk belongs to another row: flush this one first.
func (r *LiveRow) Add(id block.ChunkID) bool {
	n, i := uint64(id)/LivePerRow, uint64(id)%LivePerRow
	if r.any && n != r.block {
		return false
	}
	r.block, r.any = n, true
	r.bits[i/8] |= 1 << (i % 8)
	return true
}

// LiveKey is the key of the row that says whether there is a chunk.
func LiveKey(dst []byte, id block.ChunkID) []byte {
	return binary.BigEndian.AppendUint64(append(dst, LiveTable), uint64(id)/LivePerRow)
}

// Begin makes the row that of a key of table L, without chunks, which Take then returns all the same. It returns the first chunk that the row is about.
func (r *LiveRow) Begin(key []byte) block.ChunkID {
	*r = LiveRow{block: binary.BigEndian.Uint64(key[1:]), any: true}
	return block.ChunkID(r.block * LivePerRow)
}

// Take returns key and value of the row and empties it. ok is false when it was neither begun nor given a chunk.
func (r *LiveRow) Take() (key, value []byte, ok bool) {
	if !r.any {
		return nil, nil, false
	}
	key = binary.BigEndian.AppendUint64([]byte{LiveTable}, r.block)
	value = append([]byte(nil), r.bits[:]...)
	*r = LiveRow{}
	return key, value, true
}

// LiveSet is a set of chunk ids: a bitmap in blocks of 4 KiB that are made when they are needed, 8 MiB for a TiB of chunks.
type LiveSet struct {
	blocks map[uint64]*[liveBlock / 64]uint64
	n      uint64
}

const liveBlock = 1 << 15 // ids in a block

// Len returns how many ids are in the set.
func (s *LiveSet) Len() uint64 { return s.n }

// Has reports whether an id is in the set.
func (s *LiveSet) Has(id block.ChunkID) bool {
	b := s.blocks[uint64(id)/liveBlock]
	return b != nil && b[uint64(id)%liveBlock/64]&(1<<(uint64(id)%64)) != 0
}

// Add adds an id and reports whether it was not there.
func (s *LiveSet) Add(id block.ChunkID) bool {
	if s.Has(id) {
		return false
	}
	s.block(uint64(id) / liveBlock)[uint64(id)%liveBlock/64] |= 1 << (uint64(id) % 64)
	s.n++
	return true
}

func (s *LiveSet) block(n uint64) *[liveBlock / 64]uint64 {
	if s.blocks == nil {
		s.blocks = map[uint64]*[liveBlock / 64]uint64{}
	}
	b := s.blocks[n]
	if b == nil {
		b = new([liveBlock / 64]uint64)
		s.blocks[n] = b
	}
	return b
}

// SetRow makes the set hold, of the chunks that a row of table L is about, those that it names. Decode has accepted the row.
func (s *LiveSet) SetRow(key, value []byte) {
	first := binary.BigEndian.Uint64(key[1:]) * LivePerRow
	words := s.block(first / liveBlock)[first%liveBlock/64:][:LivePerRow/64]
	for i := range words {
		next := binary.LittleEndian.Uint64(value[8*i:])
		s.n += uint64(bits.OnesCount64(next)) - uint64(bits.OnesCount64(words[i]))
		words[i] = next
	}
}

// FirstMissing returns the lowest id of s that is not in other.
func (s *LiveSet) FirstMissing(other *LiveSet) (first block.ChunkID, found bool) {
	for n, b := range s.blocks {
		for w, word := range b {
			if o := other.blocks[n]; o != nil {
				word &^= o[w]
			}
			if word == 0 {
				continue
			}
			id := block.ChunkID(n*liveBlock + uint64(w)*64 + uint64(bits.TrailingZeros64(word)))
			if !found || id < first {
				first, found = id, true
			}
			break
		}
	}
	return first, found
}
