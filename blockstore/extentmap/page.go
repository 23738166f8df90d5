package extentmap

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"sort"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format (docs/format/page.md) and should not be changed.
const (
	pageMagic   = "HvPg"
	pageVersion = 1
	headerSize  = 48
	entrySize   = 40
	crcOffset   = 44

	// MaxExtents bounds the extents of one page: 256 bytes each on average, far below what the engine cuts.
	MaxExtents = 1 << 16
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum covers an encoded page, node or row but its own field, which lies at [at, at+4).
func checksum(data []byte, at int) uint32 {
	return crc32.Update(crc32.Checksum(data[:at], castagnoli), castagnoli, data[at+4:])
}

// Page is a verified region page in its encoded form. The zero Page is a hole. A Page is immutable and may outlive the rows it was read from.
type Page struct {
	data  []byte
	parts Directory // of a page that is kept in parts
}

// ID returns the page's id; 0 for a hole.
func (p Page) ID() uint64 {
	if p.data == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(p.data[8:])
}

// Birth returns the epoch of the layer that wrote the page.
func (p Page) Birth() block.Epoch {
	if p.data == nil {
		return 0
	}
	return block.Epoch(binary.LittleEndian.Uint64(p.data[16:]))
}

// Region returns the index of the page's region; 0 for a hole.
func (p Page) Region() uint64 {
	if p.data == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(p.data[24:])
}

// Len returns the number of extents.
func (p Page) Len() int { return len(p.entries()) / entrySize }

// Extent returns extent i of Len, in order of offsets.
func (p Page) Extent(i int) Extent {
	return p.entries().extent(i, p.Region()<<regionBits)
}

// Fragments says how broken a region is, for the decision to cut it again.
type Fragments struct {
	Extents int    // extents of any kind
	Chunks  int    // extents that refer to a chunk
	Bytes   uint64 // bytes that are not holes
}

// Fragments counts the page's extents.
func (p Page) Fragments() Fragments {
	f := Fragments{Extents: p.Len()}
	for i, e := 0, p.entries(); i < f.Extents; i++ {
		f.Bytes += uint64(e.length(i))
		if e.kind(i) == KindChunk {
			f.Chunks++
		}
	}
	return f
}

func (p Page) entries() entries {
	if p.data == nil {
		return nil
	}
	return p.data[headerSize:]
}

// lookup calls visit for the parts of extents in [off, end), bytes of the volume. It reports whether visit wants more.
func (p Page) lookup(off, end uint64, visit func(Extent) bool) bool {
	base := p.Region() << regionBits
	lo, hi := clip(base, off, end)
	return p.entries().lookup(base, lo, hi, visit)
}

// clip returns the part of [off, end) in the region that begins at byte base, as offsets in the region.
func clip(base, off, end uint64) (lo, hi uint32) {
	hi = block.RegionSize
	if off > base {
		lo = uint32(off - base)
	}
	if end < base+block.RegionSize {
		hi = uint32(end - base)
	}
	return lo, hi
}

// DecodePage verifies the bytes of the page that is expected under id at region, and returns them as a Page, which keeps data. Damage is a *block.CorruptError.
func DecodePage(id, region uint64, data []byte) (Page, error) {
	c := checker{kind: "region page", id: id, data: data}
	if _, err := c.listHeader(pageMagic, pageVersion, region, entrySize); err != nil {
		return Page{}, err
	}
	p := Page{data: data}
	return p, p.checkEntries(c)
}

// listHead is what the header says of a page, a directory or a part.
type listHead struct {
	id, region uint64
	birth      block.Epoch
	count      int
}

// listHeader verifies the header that pages, directories and parts have in common, and that count elements of a size fill the rest.
func (c checker) listHeader(magic string, version uint16, region uint64, size int) (h listHead, err error) {
	if err := c.header(magic, version, headerSize); err != nil {
		return h, err
	}
	le := binary.LittleEndian
	h = listHead{id: le.Uint64(c.data[8:]), birth: block.Epoch(le.Uint64(c.data[16:])), region: le.Uint64(c.data[24:]), count: int(le.Uint32(c.data[32:]))}
	switch {
	case h.id != c.id:
		return h, c.fail(8, fmt.Sprint("id ", c.id), fmt.Sprint("id ", h.id))
	case h.birth == 0:
		return h, c.fail(16, "a birth", "0")
	case h.region != region:
		return h, c.fail(24, fmt.Sprint("region ", region), fmt.Sprint("region ", h.region))
	case le.Uint16(c.data[6:]) != 0 || le.Uint64(c.data[36:]) != 0:
		return h, c.fail(6, "reserved fields of zero", "others")
	case h.count == 0 || h.count > MaxExtents || len(c.data) != headerSize+h.count*size:
		return h, c.fail(32, fmt.Sprintf("1 to 65536 elements of %d B that fill the row", size), fmt.Sprintf("%d in %d B", h.count, len(c.data)))
	}
	return h, nil
}

// checkEntries verifies that extents are well-formed, in order, inside the region and no younger than the page.
func (p Page) checkEntries(c checker) error {
	e, birth, next := p.entries(), p.Birth(), uint32(0)
	for i, n := 0, e.len(); i < n; i++ {
		at := headerSize + i*entrySize
		x := e.extent(i, 0)
		switch {
		case e.off(i) < next:
			return c.fail(at, fmt.Sprint("an offset of at least ", next), fmt.Sprint(e.off(i)))
		case x.End() > block.RegionSize:
			return c.fail(at, "an extent inside the region", fmt.Sprintf("%d+%d", e.off(i), x.Len))
		case e[i*entrySize+9] != 0 || e[i*entrySize+10] != 0 || e[i*entrySize+11] != 0:
			return c.fail(at+9, "reserved fields of zero", "others")
		case x.Birth == 0 || x.Birth > birth:
			return c.fail(at+24, fmt.Sprint("a birth from 1 to ", birth), fmt.Sprint(x.Birth))
		}
		if problem := x.problem(); problem != "" {
			return c.fail(at+8, "a valid extent", problem)
		}
		next = e.off(i) + x.Len
	}
	return nil
}

// EncodePage returns the bytes of a page. The extents must be valid, in order and inside the region; DecodePage is the judge of that.
func EncodePage(id, region uint64, birth block.Epoch, extents []Extent) []byte {
	var e entries
	for _, x := range extents {
		e = e.append(x)
	}
	return encodePage(id, region, birth, e)
}

func encodePage(id, region uint64, birth block.Epoch, e entries) []byte {
	data := make([]byte, headerSize+len(e))
	copy(data[headerSize:], e)
	return sealList(data, pageMagic, pageVersion, id, region, birth, e.len())
}

// sealList writes the header of a page, a directory or a part in front of its elements, with the checksum.
func sealList(data []byte, magic string, version uint16, id, region uint64, birth block.Epoch, count int) []byte {
	putListHeader(data, magic, version, id, region, birth, count)
	binary.LittleEndian.PutUint32(data[crcOffset:], checksum(data, crcOffset))
	return data
}

func putListHeader(data []byte, magic string, version uint16, id, region uint64, birth block.Epoch, count int) {
	copy(data, magic)
	binary.LittleEndian.PutUint16(data[4:], version)
	binary.LittleEndian.PutUint64(data[8:], id)
	binary.LittleEndian.PutUint64(data[16:], uint64(birth))
	binary.LittleEndian.PutUint64(data[24:], region)
	binary.LittleEndian.PutUint32(data[32:], uint32(count))
}

// entries are the encoded extents of a page, sorted by offset. Offsets are relative to the region, in bytes.
type entries []byte

func (e entries) len() int            { return len(e) / entrySize }
func (e entries) off(i int) uint32    { return binary.LittleEndian.Uint32(e[i*entrySize:]) }
func (e entries) length(i int) uint32 { return binary.LittleEndian.Uint32(e[i*entrySize+4:]) }
func (e entries) end(i int) uint32    { return e.off(i) + e.length(i) }
func (e entries) kind(i int) Kind     { return Kind(e[i*entrySize+8]) }

// extent decodes entry i of a region that starts at byte base.
func (e entries) extent(i int, base uint64) Extent {
	b := e[i*entrySize : (i+1)*entrySize : (i+1)*entrySize]
	return Extent{
		Off:      base + uint64(binary.LittleEndian.Uint32(b)),
		Len:      binary.LittleEndian.Uint32(b[4:]),
		Kind:     Kind(b[8]),
		ChunkOff: binary.LittleEndian.Uint32(b[12:]),
		Chunk:    block.ChunkID(binary.LittleEndian.Uint64(b[16:])),
		Birth:    block.Epoch(binary.LittleEndian.Uint64(b[24:])),
		Hash8:    [8]byte(b[32:40]),
	}
}

// append encodes an extent at the end.
func (e entries) append(x Extent) entries {
	e = binary.LittleEndian.AppendUint32(e, uint32(x.Off&(block.RegionSize-1)))
	e = binary.LittleEndian.AppendUint32(e, x.Len)
	e = append(e, byte(x.Kind), 0, 0, 0)
	e = binary.LittleEndian.AppendUint32(e, x.ChunkOff)
	e = binary.LittleEndian.AppendUint64(e, uint64(x.Chunk))
	e = binary.LittleEndian.AppendUint64(e, uint64(x.Birth))
	return append(e, x.Hash8[:]...)
}

// search returns the first entry that ends after lo.
func (e entries) search(lo uint32) int {
	return sort.Search(e.len(), func(i int) bool { return e.end(i) > lo })
}

// lookup calls visit for the parts of entries in [lo, hi), offsets in the region that begins at byte base. It reports whether visit wants more.
func (e entries) lookup(base uint64, lo, hi uint32, visit func(Extent) bool) bool {
	for i, n := e.search(lo), e.len(); i < n && e.off(i) < hi; i++ {
		x := e.extent(i, base)
		if e.off(i) < lo || e.end(i) > hi {
			x = x.Slice(base+uint64(lo), base+uint64(hi))
		}
		if !visit(x) {
			return false
		}
	}
	return true
}
