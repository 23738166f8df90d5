package history

import (
	"errors"
	"math"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	// maxCovered bounds the words of a thinner's set of blocks: about 64 MiB. What does not go into it is kept, superseded or not.
	maxCovered = 1 << 20
	// wideTrim is above what trims and zeroes are not looked at block by block, in bytes; they are kept.
	wideTrim = 1 << 30
	// voidsMost is how many changes without payload may follow one another before a write between them is kept only so that their positions go on.
	voidsMost = maxVoid - 96
)

// thinner goes over files from the newest to the oldest and decides what is left. A record is left if what a volume was at some point that is left depends on it: if it lies before a point, with no root between, and no later record before the same point
// has written all its blocks.
type thinner struct {
	st *Stream
	t  *Thinning

	stretch int               // of the record before which the state below is
	open    bool              // there is a point in the stretch that needs what comes before it
	covered map[uint64]uint64 // blocks that were written between here and that point: a bit each, of 64 blocks a word

	laterFlush, laterAny int64 // times of the nearest later flush, and of the nearest later record or point; -1: none
}

func newThinner(st *Stream, t *Thinning) *thinner {
	return &thinner{st: st, t: t, stretch: -1, covered: map[uint64]uint64{}, laterFlush: -1, laterAny: -1}
}

// thinPlan is what is left of a file.
type thinPlan struct {
	level  Level
	index  index           // of the file
	starts []int           // of the records of each sheet, in the metas
	keep   []uint32        // of each record: not 0 if it is left; of a write a bit for each block; nil: all are left
	kept   map[uint32]bool // records behind which a point is set
	first  uint64          // points
	last   uint64
}

var errEnough = errors.New("enough")

// glance is what a decision needs of a record.
type glance struct {
	kind     Kind
	seq      uint64
	time     int64
	off, len uint64
}

// lookAhead finds the nearest later flush and record, as far as they may fall into the last stretch of time of a file. Where one cannot be read, which is returned, those of it are not known: more is left then.
func (w *thinner) lookAhead(later []*file, f *file) (bad *file, err error) {
	limit := f.lastTime + Hours.width()
	for _, g := range later {
		err := g.each(func(r *Record) error {
			switch {
			case r.Time > limit && !r.Kind.Point():
				return errEnough
			case r.Thinned && !r.Kind.Point():
				return nil // no moment
			}
			if w.laterAny < 0 {
				w.laterAny = r.Time
			}
			if r.Kind == Barrier {
				w.laterFlush = r.Time
				return errEnough
			}
			return nil
		})
		if errors.Is(err, errEnough) {
			return nil, nil
		}
		if err != nil {
			return g, err
		}
	}
	return nil, nil
}

// enter takes note of the stretch that a record lies in.
func (w *thinner) enter(stretch int) {
	if stretch != w.stretch {
		w.stretch, w.open = stretch, false
		clear(w.covered)
	}
}

// point begins what is before a point that is left.
func (w *thinner) point() {
	w.open = true
	clear(w.covered)
}

// blind goes over a file that cannot be read: all that comes before it is needed, and no point of it stands for an earlier one.
func (w *thinner) blind(f *file) {
	w.enter(w.t.stretch(f.header.After))
	w.point()
	w.laterFlush, w.laterAny = -1, -1
}

// pass goes over a file that stays as it is.
func (w *thinner) pass(f *file) error {
	if f.header.Level == Whole { // each of its records is a moment
		err := f.each(func(r *Record) error {
			w.enter(w.t.stretch(r.Seq))
			w.point()
			return errEnough
		})
		if errors.Is(err, errEnough) {
			err = nil
		}
		return err
	}
	_, err := w.plan(f, f.header.Level)
	return err
}

// plan decides what is left of a file at a level; of one that is there already, everything.
func (w *thinner) plan(f *file, level Level) (*thinPlan, error) {
	p := &thinPlan{level: level, kept: map[uint32]bool{}}
	var err error
	if p.index, err = f.index(); err != nil {
		return nil, err
	}
	if err := w.t.Pace(len(p.index.metas)); err != nil {
		return nil, err
	}
	d := &decision{w: w, f: f, p: p, width: level.width(), all: level == f.header.Level, flushed: map[int64]bool{}}
	p.begin()
	sheets := p.index.sheets
	counts, n := make([]int, len(sheets)), 0
	var scratch []glance
	for i := range sheets { // flushes that come before a record count for it as well
		if scratch, err = p.glance(f, i, scratch[:0]); err != nil {
			return nil, err
		}
		for _, g := range scratch {
			if g.kind == Barrier {
				d.flushed[g.time/d.width] = true
			}
		}
		counts[i] = n
		n += len(scratch)
	}
	p.keep = make([]uint32, n)
	for i := len(sheets) - 1; i >= 0; i-- {
		if scratch, err = p.glance(f, i, scratch[:0]); err != nil {
			return nil, err
		}
		for j := len(scratch) - 1; j >= 0; j-- {
			d.record(uint32(counts[i]+j), &scratch[j])
		}
	}
	return p, p.spaceVoids(f, scratch)
}

// begin finds where the records of each sheet begin.
func (p *thinPlan) begin() {
	at := 0
	p.starts = make([]int, len(p.index.sheets))
	for i := range p.starts {
		p.starts[i] = at
		at += int(p.index.sheets[i].meta)
	}
}

// glance appends the records of a sheet.
func (p *thinPlan) glance(f *file, i int, all []glance) ([]glance, error) {
	m := p.reader(f, i)
	for len(m.rest) > 0 {
		if !m.next() {
			return nil, f.name(damaged("records in bounds", p.index.sheets[i].at))
		}
		all = append(all, glance{m.rec.Kind, m.rec.Seq, m.rec.Time, m.rec.Off, m.rec.Len})
	}
	if m.raw != m.end {
		return nil, f.name(damaged("records that fill their frames", p.index.sheets[i].at))
	}
	return all, nil
}

// reader reads the records of a sheet.
func (p *thinPlan) reader(f *file, i int) *metaReader {
	s, at := &p.index.sheets[i], p.starts[i]
	return &metaReader{file: f.header.ID, thinned: f.header.Level != Whole, raw: s.raw, end: s.raw + s.rawLen, rest: p.index.metas[at : at+int(s.meta)]}
}

// decision is what is decided of one file.
type decision struct {
	w       *thinner
	f       *file
	p       *thinPlan
	width   int64 // of a stretch of time, ns
	all     bool  // all that is there is left
	flushed map[int64]bool
}

// record decides on one record; those behind it are decided.
func (d *decision) record(i uint32, r *glance) {
	w := d.w
	if r.seq > d.f.lastSeq && !r.kind.Point() {
		return // not whole: it comes again in the next file
	}
	w.enter(w.t.stretch(r.seq))
	if r.kind.Point() {
		d.point(i, r)
		return
	}
	if d.f.header.Level == Whole && !d.all {
		if later := w.later(r.time, d.width); !later && !d.flushed[r.time/d.width] {
			d.p.kept[i] = true
			d.p.add(r.seq)
			w.point()
		}
		w.laterAny = r.time
	}
	if w.open || d.all {
		d.p.keep[i] = w.cover(r)
		if d.all {
			d.p.keep[i] = math.MaxUint32
		}
	}
}

// later reports whether there is a point later in the same stretch of time, or will be one.
func (w *thinner) later(at, width int64) bool {
	return w.laterFlush >= 0 && w.laterFlush/width == at/width || w.laterAny >= 0 && w.laterAny/width == at/width
}

// point decides on a point.
func (d *decision) point(i uint32, r *glance) {
	w, left := d.w, d.all
	switch r.kind {
	case Mark, Snapshot:
		left = true
	case Barrier:
		left = left || d.p.level == Flushes || w.laterFlush < 0 || w.laterFlush/d.width != r.time/d.width
		w.laterFlush = r.time
	case Kept:
		left = left || !w.later(r.time, d.width) && !d.flushed[r.time/d.width]
	}
	if !left {
		return
	}
	w.laterAny = r.time
	d.p.keep[i] = 1
	d.p.add(r.seq)
	w.point()
}

// add takes note of a point that is left.
func (p *thinPlan) add(seq uint64) {
	if p.first == 0 {
		p.first, p.last = seq, seq
	}
	p.first, p.last = min(p.first, seq), max(p.last, seq)
}

// cover returns which blocks of a change nothing later covers, and covers them; not 0 for a trim of which any is left.
func (w *thinner) cover(r *glance) (left uint32) {
	switch {
	case r.kind == Rollback:
		clear(w.covered) // what follows is of another map
		return 1
	case r.kind == Resize, r.kind != Write && r.len > wideTrim:
		return 1
	}
	first, count := r.off/block.Size, r.len/block.Size
	for at := first; at < first+count; {
		n := min(64-at%64, first+count-at)
		mask := ^uint64(0) >> (64 - n) << (at % 64)
		was := w.covered[at/64]
		if fresh := mask &^ was; fresh != 0 {
			if r.kind == Write {
				left |= uint32(fresh >> (at % 64) << (at - first))
			} else {
				left = 1
			}
			if was != 0 || len(w.covered) < maxCovered {
				w.covered[at/64] = was | mask
			}
		}
		at += n
	}
	return left
}

// spaceVoids keeps writes between changes without payload of which too many would follow one another: their positions lie between two sectors.
func (p *thinPlan) spaceVoids(f *file, scratch []glance) (err error) {
	at, voids, since, dropped := 0, 0, 0, -1
	for i := range p.index.sheets {
		if scratch, err = p.glance(f, i, scratch[:0]); err != nil {
			return err
		}
		for j := range scratch {
			switch r := &scratch[j]; {
			case r.kind.Point():
			case r.kind == Write && p.keep[at] != 0:
				voids, since, dropped = 0, 0, -1
			case r.kind == Write:
				since, dropped = 0, at
			case p.keep[at] != 0:
				voids++
				since++
				if voids > voidsMost && dropped >= 0 {
					p.keep[dropped] = math.MaxUint32
					voids, dropped = since, -1
				}
			}
			at++
		}
	}
	return nil
}

// blocks lists the runs of blocks of a write that are left: first and count.
func blocks(keep uint32, n int) (runs [][2]int) {
	if n < 32 {
		keep &= 1<<n - 1
	}
	for at := 0; keep != 0; {
		skip := bits.TrailingZeros32(keep)
		keep >>= skip
		run := bits.TrailingZeros32(^keep)
		runs = append(runs, [2]int{at + skip, run})
		at += skip + run
		if run == 32 {
			break
		}
		keep >>= run
	}
	return runs
}
