package blockstore

import (
	"encoding/binary"

	"github.com/cockroachdb/pebble/v2"
)

// hintFilter says in a few nanoseconds, without a lookup in the metadata, that a hash is surely not known: most chunks that destage decides on are new. It is a blocked
// Bloom filter (Putze, Sanders, Singler 2007) in parts by the first bits of the hash. A part is built of its hint rows when it is first asked for, so that no start scans
// anything; it may answer "perhaps" for hints that are gone, never "no" for one that is there. It is used only by the holder of Store.meta.
type hintFilter struct {
	db     *pebble.DB
	parts  [hintParts]*hintPart
	used   int64 // bytes
	budget int64 // bytes; beyond it further parts answer "perhaps"
	full   bool  // a part was beyond it

	perBlock int // hashes that a block of a part takes
	probes   int // bits that a hash sets
}

// hintPart is the filter of the hashes that begin with the same hintPartBits bits.
type hintPart struct {
	blocks []hintBlock
	count  int // hashes that were added
	room   int // hashes that it takes at its rate of false answers
}

// hintBlock is what one hash sets bits in: a cache line.
type hintBlock [8]uint64

const (
	hintPartBits  = 12
	hintParts     = 1 << hintPartBits
	hintPartSpare = 256 // hashes that a part takes beside those it is built with and an eighth more

	// A block takes so many hashes: with 12.8 bits for each, 1 in 200 answers is false; with 6.4, 1 in 20; with 4, 1 in 6.
	leastABlock = 40
	mostABlock  = 128
)

// newHintFilter makes a filter for so many hashes, as dense as its budget asks for.
func newHintFilter(db *pebble.DB, budget int64, hashes uint64) *hintFilter {
	f := &hintFilter{db: db, budget: budget}
	f.perBlock = int(min(mostABlock, max(leastABlock, hintRoom(hashes)*64/uint64(max(64, budget))+1)))
	switch { // as many as pay at that density
	case f.perBlock <= 56:
		f.probes = 6
	case f.perBlock <= 88:
		f.probes = 4
	default:
		f.probes = 3
	}
	return f
}

// tighter returns a filter for so many hashes, when this one cannot take them all and a denser one can take more; else it returns this one. The parts are built anew when
// they are asked for, so it is made for a third more than there are.
func (f *hintFilter) tighter(budget int64, hashes func() uint64) *hintFilter {
	if !f.full || f.perBlock >= mostABlock || f.db == nil {
		return f
	}
	f.full = false
	if next := newHintFilter(f.db, budget, hashes()*4/3); next.perBlock > f.perBlock {
		return next
	}
	return f
}

// hintRoom is how many hashes the parts of a filter take together that is built of so many.
func hintRoom(hashes uint64) uint64 { return hashes*9/8 + hintParts*hintPartSpare }

func hintPartOf(hash *[16]byte) int {
	return int(binary.BigEndian.Uint16(hash[:2]) >> (16 - hintPartBits))
}

// place returns the block of a hash, and the bits that it sets there: at most six times nine bits of a number.
func (p *hintPart) place(hash *[16]byte) (*hintBlock, uint64) {
	n := uint64(binary.LittleEndian.Uint32(hash[2:6])) * uint64(len(p.blocks)) >> 32
	return &p.blocks[n], binary.LittleEndian.Uint64(hash[6:14])
}

func (p *hintPart) add(hash *[16]byte, probes int) {
	b, bits := p.place(hash)
	for range probes {
		b[bits>>6&7] |= 1 << (bits & 63)
		bits >>= 9
	}
	p.count++
}

func (p *hintPart) has(hash *[16]byte, probes int) bool {
	b, bits := p.place(hash)
	for range probes {
		if b[bits>>6&7]&(1<<(bits&63)) == 0 {
			return false
		}
		bits >>= 9
	}
	return true
}

func (p *hintPart) bytes() int64 { return int64(len(p.blocks)) * 64 }

// perhaps reports whether there may be a hint for the hash.
func (f *hintFilter) perhaps(hash *[16]byte) bool {
	n := hintPartOf(hash)
	if f.parts[n] == nil {
		p := f.build(n)
		if p == nil {
			return true
		}
		f.parts[n] = p
		f.used += p.bytes()
	}
	return f.parts[n].has(hash, f.probes)
}

// knows reports whether perhaps could tell of this hash: when its part is beyond the budget, it could not.
func (f *hintFilter) knows(hash *[16]byte) bool { return f.parts[hintPartOf(hash)] != nil }

// added is told of every hint of a committed batch.
func (f *hintFilter) added(hash *[16]byte) {
	n := hintPartOf(hash)
	p := f.parts[n]
	if p == nil {
		return
	}
	if p.count >= p.room {
		f.used -= p.bytes()
		f.parts[n] = nil // built anew, larger and without hints that are gone, when it is next asked for
		return
	}
	p.add(hash, f.probes)
}

// build makes a part of its rows. It returns nil when that goes beyond the budget or the rows cannot be read: whoever looks then for a hint meets the error.
func (f *hintFilter) build(n int) *hintPart {
	if f.used >= f.budget || f.db == nil {
		f.full = true
		return nil
	}
	lower := binary.BigEndian.AppendUint16([]byte{keyHint}, uint16(n<<(16-hintPartBits)))
	upper := []byte{keyHint + 1}
	if n+1 < hintParts {
		upper = binary.BigEndian.AppendUint16([]byte{keyHint}, uint16((n+1)<<(16-hintPartBits)))
	}
	it, err := f.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return nil
	}
	var hashes [][16]byte
	for ok := it.First(); ok; ok = it.Next() {
		if k := it.Key(); len(k) == 17 {
			hashes = append(hashes, [16]byte(k[1:]))
		}
	}
	if it.Close() != nil {
		return nil
	}
	room := len(hashes)*9/8 + hintPartSpare
	blocks := (room + f.perBlock - 1) / f.perBlock
	if f.used+int64(blocks)*64 > f.budget {
		f.budget, f.full = f.used, true // or every further question would read the rows of a part, only to find that it does not fit
		return nil
	}
	p := &hintPart{blocks: make([]hintBlock, blocks), room: blocks * f.perBlock}
	for i := range hashes {
		p.add(&hashes[i], f.probes)
	}
	return p
}
