package synth

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

const (
	// maxChunk is the most raw bytes that one chunk of a warm frame has here.
	maxChunk = 64 << 10
	// frameExtra is about what a frame has beside the bytes of its chunk, and its entry in the directory.
	frameExtra = 192
)

// chunks are chunks that exist as rows only. Number i of count has id firstID+i.
//
// Hint rows are written in the order of hashes, chunk rows in that of ids, and neither order may be sorted in memory: so the rank of a chunk among all hashes is a
// permutation of its number that can be computed both ways.
type chunks struct {
	spec       Spec
	count      uint64
	firstID    uint64
	firstSeg   uint64
	stored     uint32 // bytes of a frame, which holds one chunk: half of the chunk's, as guests' data compresses
	perSegment uint64
	mul, unmul uint64 // rank = number × mul mod count, and back
	store      [16]byte
	step       uint64 // of the first 64 bits of hashes, from rank to rank
}

func newChunks(spec Spec, counters []byte) *chunks {
	c := &chunks{spec: spec, count: spec.extents(), firstID: field(counters, atNextChunk) + 1, firstSeg: field(counters, atNextSegment) + 1}
	copy(c.store[:], counters[atStoreID:])
	c.stored = spec.ChunkBytes/2 + frameExtra
	c.perSegment = (segment.SegmentSize - 1<<20) / uint64(c.stored)
	for c.mul = c.count*5/8 | 1; ; c.mul += 2 { // about the golden section: neighbours are far apart
		if inverse, ok := invert(c.mul%c.count, c.count); ok {
			c.mul, c.unmul = c.mul%c.count, inverse
			break
		}
	}
	c.step, _ = bits.Div64(1, 0, c.count+1)
	return c
}

// invert returns the inverse of a modulo n, if there is one.
func invert(a, n uint64) (uint64, bool) {
	if n == 1 {
		return 0, true
	}
	x, y, r, s := int64(1), int64(0), int64(a), int64(n)
	for s != 0 {
		q := r / s
		x, y, r, s = y, x-q*y, s, r-q*s
	}
	if r != 1 {
		return 0, false
	}
	return uint64((x%int64(n) + int64(n)) % int64(n)), true
}

// hash returns the first half of the hash of chunk i.
func (c *chunks) hash(i uint64) (h [16]byte) {
	a, b := mix(c.spec.Seed^i*2), mix(c.spec.Seed^(i*2+1))
	rank := i * c.mul % c.count
	binary.BigEndian.PutUint64(h[:], rank*c.step+a%c.step)
	binary.LittleEndian.PutUint64(h[8:], b)
	return h
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

func (c *chunks) extent(i uint64) extentmap.Extent {
	h := c.hash(i)
	return extentmap.Extent{Len: c.spec.ChunkBytes, Kind: extentmap.KindChunk, Chunk: block.ChunkID(c.firstID + i), Hash8: [8]byte(h[:8])}
}

// chunkRows writes where each chunk would lie.
func (c *chunks) chunkRows(out *table) error {
	row := make([]byte, 48)
	le := binary.LittleEndian
	for i := range c.count {
		le.PutUint64(row, c.firstSeg+i/c.perSegment)
		le.PutUint32(row[8:], segment.HeaderSize+uint32(i%c.perSegment)*c.stored)
		le.PutUint32(row[12:], c.stored)
		le.PutUint32(row[20:], c.spec.ChunkBytes)
		h := c.hash(i)
		copy(row[24:], h[:])
		if err := out.set(key('C', c.firstID+i), row); err != nil {
			return err
		}
	}
	return nil
}

// hintRows writes the way from hashes to chunks.
func (c *chunks) hintRows(out *table) error {
	for rank := range c.count {
		i := rank * c.unmul % c.count
		h := c.hash(i)
		if err := out.set(append([]byte{'H'}, h[:]...), binary.LittleEndian.AppendUint64(nil, c.firstID+i)); err != nil {
			return err
		}
	}
	return nil
}

func (c *chunks) segments() uint64 { return (c.count + c.perSegment - 1) / c.perSegment }

// segmentRows writes a sealed segment for each run of chunks.
func (c *chunks) segmentRows(out *table) error {
	le := binary.LittleEndian
	for n := range c.segments() {
		id, chunks := block.SegmentID(c.firstSeg+n), min(c.perSegment, c.count-n*c.perSegment)
		raw := chunks * uint64(c.spec.ChunkBytes)
		row := append(make([]byte, 0, 128), 1, byte(segment.Warm), 2, 0)
		row = le.AppendUint32(row, 1)
		for _, v := range []uint64{uint64(id), segment.HeaderSize + chunks*uint64(c.stored), raw, raw} {
			row = le.AppendUint64(row, v)
		}
		row = le.AppendUint32(le.AppendUint32(row, uint32(chunks)), uint32(chunks))
		row = append(row, make([]byte, 16)...)
		row, err := tiers.AppendPlacement(row, tiers.PlacementList{{Tier: "local", Key: fmt.Sprintf("%016x.%08x.seg", uint64(id), 1), Generation: 1, State: tiers.Live}})
		if err == nil {
			err = out.set(key('G', uint64(id)), row)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// countIn books the chunks in the row of counters.
func (c *chunks) countIn(counters []byte) {
	setField(counters, atNextChunk, c.firstID+c.count-1)
	setField(counters, atNextSegment, c.firstSeg+c.segments()-1)
	setField(counters, atUnique, field(counters, atUnique)+c.count*uint64(c.spec.ChunkBytes))
	setField(counters, atSegments, field(counters, atSegments)+c.segments())
}
