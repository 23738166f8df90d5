package extentmap

import (
	"encoding/binary"
	"fmt"
	"sort"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format (docs/format/page.md) and should not be changed.
const (
	directoryMagic = "HvPd"
	partMagic      = "HvPp"
	partsVersion   = 1
	partSize       = 24
)

// Part is a run of the extents of a page that is kept in parts: a row of its own, under the key of a page.
type Part struct {
	ID    uint64
	Birth block.Epoch
	Start uint32 // offset of the first extent in the region, bytes
	Count uint32 // extents
}

// Directory is the verified row of a page that is kept in parts, in its encoded form: it lists them in the order of their extents. It is immutable.
type Directory struct{ data []byte }

// Len returns the number of parts.
func (d Directory) Len() int {
	if d.data == nil {
		return 0
	}
	return (len(d.data) - headerSize) / partSize
}

// Part returns part i of Len.
func (d Directory) Part(i int) Part {
	b := d.data[headerSize+i*partSize:]
	return Part{
		ID:    binary.LittleEndian.Uint64(b),
		Birth: block.Epoch(binary.LittleEndian.Uint64(b[8:])),
		Start: binary.LittleEndian.Uint32(b[16:]),
		Count: binary.LittleEndian.Uint32(b[20:]),
	}
}

func (d Directory) start(i int) uint32 {
	return binary.LittleEndian.Uint32(d.data[headerSize+i*partSize+16:])
}

// extents counts those of all parts.
func (d Directory) extents() (n int) {
	for i := range d.Len() {
		n += int(d.Part(i).Count)
	}
	return n
}

// region is the index of the page's region.
func (d Directory) region() uint64 { return binary.LittleEndian.Uint64(d.data[24:]) }

// search returns the part in which an extent that covers lo, or the first behind it, may lie: the last that begins at or before lo, or the first of all.
func (d Directory) search(lo uint32) int {
	return max(0, sort.Search(d.Len(), func(i int) bool { return d.start(i) > lo })-1)
}

// has reports whether the same part is listed.
func (d Directory) has(p Part) bool {
	i := d.search(p.Start)
	return i < d.Len() && d.Part(i) == p
}

// IsDirectory reports whether the bytes of a row are those of a page that is kept in parts, and IsPart whether they are those of a part.
func IsDirectory(data []byte) bool { return len(data) >= 4 && string(data[:4]) == directoryMagic }

// IsPart reports whether the bytes of a row are those of a part.
func IsPart(data []byte) bool { return len(data) >= 4 && string(data[:4]) == partMagic }

// DecodeDirectory verifies the bytes of the page in parts that is expected under id at region, and returns them as a Directory, which keeps data. Damage is a
// *block.CorruptError.
func DecodeDirectory(id, region uint64, data []byte) (Directory, error) {
	c := checker{kind: "region page", id: id, data: data}
	h, err := c.listHeader(directoryMagic, partsVersion, region, partSize)
	if err != nil {
		return Directory{}, err
	}
	d := Directory{data}
	extents, next := uint64(0), uint64(0)
	for i := range d.Len() {
		p, at := d.Part(i), headerSize+i*partSize
		switch {
		case p.ID == 0 || p.ID == id:
			return Directory{}, c.fail(at, "the id of a part", fmt.Sprint(p.ID))
		case p.Birth == 0 || p.Birth > h.birth:
			return Directory{}, c.fail(at+8, fmt.Sprint("a birth from 1 to ", h.birth), fmt.Sprint(p.Birth))
		case uint64(p.Start) < next || p.Start >= block.RegionSize:
			return Directory{}, c.fail(at+16, fmt.Sprint("an offset in the region of at least ", next), fmt.Sprint(p.Start))
		case p.Count == 0 || extents+uint64(p.Count) > MaxExtents:
			return Directory{}, c.fail(at+20, "1 to 65536 extents in all", fmt.Sprintf("%d behind %d", p.Count, extents))
		}
		extents, next = extents+uint64(p.Count), uint64(p.Start)+1
	}
	return d, nil
}

// EncodeDirectory returns the bytes of a page that is kept in parts. DecodeDirectory is the judge of whether they are valid.
func EncodeDirectory(id, region uint64, birth block.Epoch, parts []Part) []byte {
	data := make([]byte, headerSize, headerSize+len(parts)*partSize)
	for _, p := range parts {
		data = binary.LittleEndian.AppendUint64(data, p.ID)
		data = binary.LittleEndian.AppendUint64(data, uint64(p.Birth))
		data = binary.LittleEndian.AppendUint32(data, p.Start)
		data = binary.LittleEndian.AppendUint32(data, p.Count)
	}
	return sealList(data, directoryMagic, partsVersion, id, region, birth, len(parts))
}

// DecodePart verifies the bytes of the part that is expected under id at region, and returns its extents as a Page, which keeps data. Damage is a *block.CorruptError.
func DecodePart(id, region uint64, data []byte) (Page, error) {
	c := checker{kind: "part of a region page", id: id, data: data}
	if _, err := c.listHeader(partMagic, partsVersion, region, entrySize); err != nil {
		return Page{}, err
	}
	p := Page{data: data}
	return p, p.checkEntries(c)
}

// EncodePart returns the bytes of a part with the given extents, which must be valid, in order and inside the region.
func EncodePart(id, region uint64, birth block.Epoch, extents []Extent) []byte {
	var e entries
	for _, x := range extents {
		e = e.append(x)
	}
	return encodePart(id, region, birth, e)
}

func encodePart(id, region uint64, birth block.Epoch, e entries) []byte {
	data := make([]byte, headerSize+len(e))
	copy(data[headerSize:], e)
	return sealList(data, partMagic, partsVersion, id, region, birth, e.len())
}

// Parts calls visit with each row that a page has beside its own: the parts that it is kept in, if it is.
func (p Page) Parts(visit func(id uint64, birth block.Epoch)) {
	for i := range p.parts.Len() {
		part := p.parts.Part(i)
		visit(part.ID, part.Birth)
	}
}

// assemble returns the page that a directory and its parts make, but for the parts that are left out; nil leaves none out. It has the layout of an encoded one, but no checksum.
func (m *Map) assemble(s Subtree, d Directory, leave func(p Part) bool, fill bool) (Page, error) {
	n := 0
	for i := range d.Len() {
		if p := d.Part(i); leave == nil || !leave(p) {
			n += int(p.Count)
		}
	}
	data := make([]byte, headerSize, headerSize+n*entrySize)
	for i := range d.Len() {
		if leave != nil && leave(d.Part(i)) {
			continue
		}
		e, err := m.part(d, i, fill)
		if err != nil {
			return Page{}, err
		}
		data = append(data, e...)
	}
	putListHeader(data, pageMagic, pageVersion, s.ID, s.Region, s.Birth, n)
	return Page{data: data, parts: d}, nil
}

// apart returns two pages of one region, each a hole if its id is 0, without the parts that both are kept in: these are not read, and hold the same. It does not fill the cache.
func (m *Map) apart(sa, sb Subtree) (a, b Page, err error) {
	a, da, err := m.pageRowOrHole(sa)
	if err != nil {
		return Page{}, Page{}, err
	}
	b, db, err := m.pageRowOrHole(sb)
	if err == nil && da.data != nil {
		a, err = m.assemble(sa, da, db.has, false)
	}
	if err == nil && db.data != nil {
		b, err = m.assemble(sb, db, da.has, false)
	}
	if err != nil {
		return Page{}, Page{}, err
	}
	return a, b, nil
}

// beyond returns a page without the parts that it has in common with a base, which is a hole if its id is 0. It does not fill the cache.
func (m *Map) beyond(base, s Subtree) (Page, error) {
	p, d, err := m.pageRow(s, false)
	if err != nil || d.data == nil {
		return p, err
	}
	_, known, err := m.pageRowOrHole(base)
	if err != nil {
		return Page{}, err
	}
	return m.assemble(s, d, known.has, false)
}

func (m *Map) pageRowOrHole(s Subtree) (Page, Directory, error) {
	if s.ID == 0 {
		return Page{}, Directory{}, nil
	}
	return m.pageRow(s, false)
}

// part returns the entries of part i of a page, which must not be changed.
func (m *Map) part(d Directory, i int, fill bool) (entries, error) {
	p, region := d.Part(i), d.region()
	data, cached := m.cache.get(p.ID)
	if !cached {
		var err error
		if data, err = m.fetch(PageKey(p.ID)); err != nil {
			return nil, fmt.Errorf("read part %d of region page %d: %w", p.ID, Page{data: d.data}.ID(), err)
		}
	}
	part := Page{data: data}
	if !cached || !IsPart(data) || part.Region() != region {
		var err error
		if part, err = DecodePart(p.ID, region, data); err != nil {
			return nil, err
		}
	}
	e, end := part.entries(), uint32(block.RegionSize)
	if i+1 < d.Len() {
		end = d.start(i + 1)
	}
	c := checker{kind: "part of a region page", id: p.ID}
	switch {
	case part.Birth() != p.Birth:
		return nil, c.fail(16, fmt.Sprint("birth ", p.Birth), fmt.Sprint("birth ", part.Birth()))
	case e.len() != int(p.Count):
		return nil, c.fail(32, fmt.Sprint(p.Count, " extents"), fmt.Sprint(e.len()))
	case e.off(0) != p.Start || e.end(e.len()-1) > end:
		return nil, c.fail(headerSize, fmt.Sprintf("extents from %d, up to %d", p.Start, end), fmt.Sprintf("from %d to %d", e.off(0), e.end(e.len()-1)))
	}
	if !cached && fill {
		m.cache.add(p.ID, data)
	}
	return e, nil
}

// lookupParts visits what a page in parts has in [off, end), bytes of the volume. It reads the parts that it needs, and reports whether visit wants more.
func (m *Map) lookupParts(d Directory, off, end uint64, visit func(Extent) bool) (more bool, err error) {
	base := d.region() << regionBits
	lo, hi := clip(base, off, end)
	for i := d.search(lo); i < d.Len() && d.start(i) < hi; i++ {
		e, err := m.part(d, i, true)
		if err != nil {
			return false, err
		}
		if !e.lookup(base, lo, hi, visit) {
			return false, nil
		}
	}
	return true, nil
}
