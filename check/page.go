package check

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/page.md
const (
	pageHeader    = 48
	extentSize    = 40
	maxExtents    = 1 << 16
	crcAt         = 44
	fanout        = 256
	maxLevel      = 5
	radixHeader   = 80
	childSize     = 16
	regionBits    = 24
	regionCount   = (block.MaxVolumeSize + 1) >> regionBits
	kindZero      = 1
	kindChunk     = 2
	kindExternal  = 3
	kindDamagedEx = 4
)

// ref names a page (level 0) or radix node by what its parent says of it. ID 0 is a hole.
type ref struct {
	ID    uint64 `json:"id"`
	Level uint8  `json:"level"`
	Birth uint64 `json:"birth"`
}

// span is how many regions a subtree of a level covers.
func span(level uint8) uint64 { return 1 << (8 * uint(level)) }

// extent is one entry of a page. Off is in the region.
type extent struct {
	Off      uint32 `json:"offset"`
	Len      uint32 `json:"length"`
	Kind     uint8  `json:"kind"`
	ChunkOff uint32 `json:"chunkOffset"`
	Chunk    uint64 `json:"chunk"`
	Birth    uint64 `json:"birth"`
	Hash     uint64 `json:"-"`
}

// page is a decoded region page, or a part of one.
type page struct {
	ID      uint64     `json:"id"`
	Birth   uint64     `json:"birth"`
	Region  uint64     `json:"region"`
	Parts   []pagePart `json:"parts,omitempty"` // of a page that is kept in parts
	Extents []extent   `json:"extents,omitempty"`
}

func parsePage(id uint64, b []byte) (*page, error) { return parseExtents("HvPg", id, b) }

// parseExtents decodes the row of a page that is not kept in parts, or of a part.
func parseExtents(magic string, id uint64, b []byte) (*page, error) {
	f := &fields{b: b}
	p, count := f.pageHead(magic, id, extentSize)
	if f.err != nil {
		return nil, f.err
	}
	p.Extents = make([]extent, count)
	end := uint64(0)
	for i := range p.Extents {
		end = f.extent(&p.Extents[i], p.Birth, end)
	}
	return p, f.end()
}

// pageHead reads the header of a page, a directory or a part, whose elements have a size, and returns how many there are.
func (f *fields) pageHead(magic string, id uint64, size int) (p *page, count int) {
	b := f.b
	f.rule(len(b) >= pageHeader, 0, "at least 48 B", "%d B", len(b))
	f.magic(magic)
	if f.err == nil {
		f.err = sumWithout(b, crcAt)
	}
	f.version(2)
	f.reserved(2)
	p = &page{ID: f.u64(), Birth: f.u64(), Region: f.u64()}
	count = int(f.u32())
	f.reserved(8)
	f.take(4)
	f.rule(p.ID == id && id > 0, 8, fmt.Sprint("id ", id), "%d", p.ID)
	f.rule(p.Birth > 0, 16, "a birth", "0")
	f.rule(p.Region < regionCount, 24, "a region", "%d", p.Region)
	f.rule(1 <= count && count <= maxExtents && len(b) == pageHeader+count*size, 32, fmt.Sprintf("1 to 65536 elements of %d B that fill the row", size), "%d in %d B", count, len(b))
	return p, count
}

// extent reads one entry, which begins at or behind end and is not younger than birth, and returns its end.
func (f *fields) extent(x *extent, birth, end uint64) uint64 {
	at := f.at
	x.Off, x.Len, x.Kind = f.u32(), f.u32(), f.u8()
	f.reserved(3)
	x.ChunkOff, x.Chunk, x.Birth, x.Hash = f.u32(), f.u64(), f.u64(), f.u64()
	next := uint64(x.Off) + uint64(x.Len)
	f.rule(uint64(x.Off) >= end, at, fmt.Sprint("an offset from ", end), "%d", x.Off)
	f.rule(x.Len > 0 && next <= block.RegionSize, at+4, "a length inside the region", "%d+%d", x.Off, x.Len)
	f.rule(kindZero <= x.Kind && x.Kind <= kindDamagedEx, at+8, "a known kind", "%d", x.Kind)
	f.rule(1 <= x.Birth && x.Birth <= birth, at+24, fmt.Sprint("a birth from 1 to ", birth), "%d", x.Birth)
	switch x.Kind {
	case kindChunk:
		f.rule(x.Chunk > 0 && uint64(x.ChunkOff)+uint64(x.Len) < 1<<32, at+12, "a place in a chunk", "chunk %d, %d+%d", x.Chunk, x.ChunkOff, x.Len)
	case kindExternal:
		f.rule(x.Chunk > 0 && x.ChunkOff == 0 && x.Hash < 1<<63, at+12, "a place in a source", "source %d, %d, %d", x.Chunk, x.ChunkOff, x.Hash)
	default:
		f.rule(x.Chunk == 0 && x.ChunkOff == 0 && x.Hash == 0, at+12, "no chunk", "chunk %d, %d, %x", x.Chunk, x.ChunkOff, x.Hash)
	}
	return next
}

// radix is a decoded radix node. Children that do not exist have id 0.
type radix struct {
	ID       uint64
	Level    uint8
	Birth    uint64
	Region   uint64
	Children [fanout]ref
}

func parseRadix(id uint64, b []byte) (*radix, error) {
	f := &fields{b: b}
	f.rule(len(b) >= radixHeader, 0, "at least 80 B", "%d B", len(b))
	f.magic("HvNd")
	if f.err == nil {
		f.err = sumWithout(b, crcAt)
	}
	f.version(2)
	n := &radix{Level: f.u8()}
	f.reserved(1)
	n.ID, n.Birth, n.Region = f.u64(), f.u64(), f.u64()
	count := int(f.u16())
	f.reserved(10)
	f.take(4)
	present := f.take(fanout / 8)
	f.rule(n.ID == id && id > 0, 8, fmt.Sprint("id ", id), "%d", n.ID)
	f.rule(1 <= n.Level && n.Level <= maxLevel, 6, "a level from 1 to 5", "%d", n.Level)
	f.rule(n.Birth > 0, 16, "a birth", "0")
	f.rule(n.Level > maxLevel || n.Region < regionCount && n.Region%span(n.Level) == 0, 24, "a region that its level covers from", "%d", n.Region)
	set := 0
	for i := range n.Children {
		if f.err != nil || present[i/8]&(1<<(i%8)) == 0 {
			continue
		}
		set++
		at := f.at
		c := ref{ID: f.u64(), Level: n.Level - 1, Birth: f.u64()}
		f.rule(c.ID > 0 && 1 <= c.Birth && c.Birth <= n.Birth, at, fmt.Sprint("a child with a birth from 1 to ", n.Birth), "child %d, birth %d", c.ID, c.Birth)
		n.Children[i] = c
	}
	f.rule(set == count && count > 0, 32, fmt.Sprint(set, " children"), "%d", count)
	return n, f.end()
}
