package history

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/crc32"
	"math"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// gatherSectors is how many sectors are gathered at a time, 32 MiB: what they come from is read once for each time.
const gatherSectors = 32 << 20 / sectorSize

// left is a sector that is left of a file.
type left struct {
	block uint64 // of the volume
	part  uint32 // of which old file
	from  uint32 // where that has it, in sectors of the payload of its frames
	at    uint32 // which one it is of those that the records of the new file wrote
	sum   uint32
	same  uint32 // the first one, by blocks, of that sum
}

// thinWriter writes what is left of files: first, in memory, what the records did; then their payload, versions of a block beside one another, the newest first, so that the codec finds in the one what the other has, and what is equal lies there once.
type thinWriter struct {
	st    *Stream
	t     *Thinning
	f     *file // new
	parts []part

	meta  metaWriter
	voids int // changes without payload since the last sector
	most  int // the most of them
	left  []left
	raw   uint32 // what the records before the sheet wrote, bytes
	last  uint64 // number of the last record
	turns []uint32

	// Of the frame that is being filled.
	payload []byte
	place   uint32 // of the next sector, in the payload of all frames
	newest  []byte // the sector before
	block   uint64 // of that
	alike   bool   // two are versions of one block
	packed  []byte
}

// writeThinned writes what is left, and makes it durable.
func (st *Stream) writeThinned(t *Thinning, f *file, parts []part) error {
	w := &thinWriter{st: st, t: t, f: f, parts: parts}
	for i := range parts {
		if err := w.records(uint32(i)); err != nil {
			return err
		}
	}
	w.arrange()
	if err := w.write(); err != nil {
		return err
	}
	last := parts[len(parts)-1].file
	if f.indexSize() > maxIndex || w.last > last.lastSeq {
		return fmt.Errorf("thin %s: %d B of index, records up to %d of %d", parts[0].file.source(), f.indexSize(), w.last, last.lastSeq)
	}
	f.lastSeq, f.lastTime = last.lastSeq, last.lastTime
	return f.seal()
}

// records copies what the records did that are left of an old file.
func (w *thinWriter) records(of uint32) error {
	n, old, p := uint32(0), w.parts[of].file, w.parts[of].plan
	for i := range p.index.sheets {
		if w.st.gone.Load() {
			return errStopped
		}
		m := p.reader(old, i)
		for at := m.raw; len(m.rest) > 0; at, n = m.raw, n+1 {
			if !m.next() {
				return old.name(damaged("records in bounds", p.index.sheets[i].at))
			}
			r, keep := &m.rec, uint32(math.MaxUint32)
			if p.keep != nil {
				keep = p.keep[n]
			}
			switch {
			case keep == 0:
			case r.Kind != Write:
				w.record(r, nil)
			default:
				w.writes(r, keep, of, at/sectorSize)
			}
			if p.kept[n] {
				w.record(&Record{Kind: Kept, Seq: r.Seq, Time: r.Time}, nil)
			}
		}
		if m.raw != m.end {
			return old.name(damaged("records that fill their frames", p.index.sheets[i].at))
		}
		if w.most >= maxVoid || len(w.left) > maxFileSectors {
			return errApart
		}
	}
	w.endSheet()
	return nil
}

// writes copies the blocks of a write that are left; first is which sector its own first is of those that the old file's records wrote.
func (w *thinWriter) writes(r *Record, keep, of, first uint32) {
	for _, run := range blocks(keep, len(r.Sums)) {
		part := Record{Kind: Write, Seq: r.Seq, Time: r.Time, MapEpoch: r.MapEpoch, Off: r.Off + uint64(run[0])*sectorSize, Len: uint64(run[1]) * sectorSize}
		sums := r.Sums[run[0] : run[0]+run[1]]
		for i, sum := range sums {
			s := left{block: part.Off/sectorSize + uint64(i), part: of, from: first + uint32(run[0]+i), at: uint32(len(w.left)), sum: sum}
			if l := &w.parts[of].plan.index.layout; l.placed {
				s.from = l.order[s.from]
			}
			w.left = append(w.left, s)
		}
		w.record(&part, sums)
	}
}

// record copies what a record did.
func (w *thinWriter) record(r *Record, sums []uint32) {
	if len(w.meta.b) > maxFrameMeta-4096 {
		w.endSheet()
	}
	w.meta.add(r, sums)
	w.last = r.Seq
	switch {
	case r.Kind == Write:
		w.voids = 0
	case !r.Kind.Point():
		w.voids++
		w.most = max(w.most, w.voids)
	}
}

func (w *thinWriter) endSheet() {
	if w.meta.n == 0 {
		return
	}
	s := sheet{raw: w.raw, rawLen: w.meta.sectors * sectorSize, meta: uint32(len(w.meta.b))}
	w.f.sheets, w.f.metas = append(w.f.sheets, s), append(w.f.metas, w.meta.b...)
	w.raw += s.rawLen
	w.meta.reset()
}

// arrange puts versions of a block beside one another, the newest first, and what is presumably equal, wherever it was written, right behind the first of it.
func (w *thinWriter) arrange() {
	slices.SortFunc(w.left, func(a, b left) int { return cmp.Or(cmp.Compare(a.block, b.block), cmp.Compare(b.at, a.at)) })
	first := make(map[uint32]uint32, len(w.left))
	for i := range w.left {
		s := &w.left[i]
		at, ok := first[s.sum]
		if !ok {
			at = uint32(i)
			first[s.sum] = at
		}
		s.same = at
	}
	slices.SortStableFunc(w.left, func(a, b left) int { return cmp.Compare(a.same, b.same) })
}

// write writes the payload.
func (w *thinWriter) write() error {
	w.f.order = make([]uint32, len(w.left))
	most := w.st.s.gather
	buf := make([]byte, min(len(w.left), most)*sectorSize)
	for rest := w.left; len(rest) > 0; {
		part := rest[:min(len(rest), most)]
		rest = rest[len(part):]
		if err := w.gather(part, buf); err != nil {
			return err
		}
		for i := range part {
			if err := w.put(&part[i], buf[i*sectorSize:][:sectorSize]); err != nil {
				return err
			}
		}
	}
	return w.flush()
}

// gather reads sectors into buf, in their order, each frame that has any of them once.
func (w *thinWriter) gather(part []left, buf []byte) error {
	w.turns = w.turns[:0]
	for i := range part {
		w.turns = append(w.turns, uint32(i))
	}
	slices.SortFunc(w.turns, func(a, b uint32) int {
		return cmp.Or(cmp.Compare(part[a].part, part[b].part), cmp.Compare(part[a].from, part[b].from))
	})
	var of *file
	var ref frameRef
	var payload []byte
	for _, i := range w.turns {
		s := &part[i]
		old := w.parts[s.part].file
		frames := layout{frames: w.parts[s.part].plan.index.frames} // by their place
		r, off, ok := frames.find(s.from * sectorSize)
		if !ok {
			return old.name(damaged("a frame for each write", int64(s.from)*sectorSize))
		}
		if old != of || r.off != ref.off {
			if w.st.gone.Load() {
				return errStopped
			}
			if err := w.t.Pace(int(r.stored)); err != nil {
				return err
			}
			var err error
			if payload, err = old.payload(&r); err != nil {
				return old.name(err)
			}
			of, ref = old, r
		}
		sector := payload[off:][:sectorSize]
		if crc32.Checksum(sector, castagnoli) != s.sum { // damage must not get a checksum that fits
			return old.name(damaged("sectors that match their checksums", r.payloadAt()))
		}
		copy(buf[int(i)*sectorSize:], sector)
	}
	return nil
}

// put gives a sector its place: that of the one before, if they are equal, else the next one.
func (w *thinWriter) put(s *left, sector []byte) error {
	if w.newest != nil && bytes.Equal(w.newest, sector) {
		w.f.order[s.at] = w.place - 1
		return nil
	}
	if len(w.payload) == FrameRaw {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.alike = w.alike || len(w.payload) > 0 && w.block == s.block
	w.payload = append(w.payload, sector...)
	w.newest, w.block = w.payload[len(w.payload)-sectorSize:], s.block // it is there until the last of the next frame comes
	w.f.order[s.at] = w.place
	w.place++
	return nil
}

// flush writes the frame that is being filled.
func (w *thinWriter) flush() error {
	if len(w.payload) == 0 {
		return nil
	}
	h := frameHeader{PayloadRaw: uint32(len(w.payload))}
	body := w.payload
	if w.alike || !dedup.Incompressible(body) { // of what is random each version may be like the one before
		if w.packed = w.st.s.handles.pack.pack(w.packed[:0], body); len(w.packed) > 0 && len(w.packed) < len(body)-len(body)/20 {
			body, h.Codec = w.packed, codecZstd
		}
	}
	if err := w.t.Pace(len(body)); err != nil {
		return err
	}
	if err := w.f.put(&h, nil, body); err != nil {
		return err
	}
	w.payload, w.alike = w.payload[:0], false
	return nil
}
