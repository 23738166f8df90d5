package extentmap

import (
	"slices"
	"sort"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// shape says when a page is kept in parts. One of more than whole extents of which an update changed at most one in share is, from then on: what a later state changes costs
// it the parts that it touched and the directory, not the page. One of whose extents half or more must be written anyway is one row again, which is what reads of all of it
// like best.
//
// A part has at most most extents; where more come together, parts of about fill are made. One with fewer than least is joined with a neighbour that has room.
type shape struct{ whole, share, most, fill, least int }

// usualShape balances a part against the directory: of a page of 4,096 extents, as random writes leave it, either is about 2 KiB.
func usualShape() shape { return shape{whole: 128, share: 8, most: 64, fill: 48, least: 16} }

// SmallParts makes the update keep pages of a few extents in parts of fewer, so that tests meet many of them.
func (u *Update) SmallParts() { u.shape = shape{whole: 3, share: 1, most: 4, fill: 3, least: 2} }

// openPage is a page in memory. Its entries lie in one part if the page is, or was not yet, one row.
type openPage struct {
	base    ref
	dir     Directory // of a page that was in parts
	dirty   bool
	region  uint64
	parts   []openPart
	count   int // extents
	changed int // extents that came or went
}

// openPart is a run of a page's entries. It holds what begins at start or later, and before the start of the next; the first also what begins before.
type openPart struct {
	row     ref // what it was read from or is to be read from; zero when it has no row, or no more
	at      int // which part of the directory it is
	start   uint32
	count   int     // of one that was not read: entries is nil
	entries entries // borrowed from the cache until own
	own     bool
}

func (p *openPart) len() int {
	if p.entries == nil {
		return p.count
	}
	return p.entries.len()
}

// openPage reads the row of a page, but no part.
func (u *Update) openPage(s *slot, region uint64) (*openPage, error) {
	if s.page != nil {
		return s.page, nil
	}
	open := &openPage{base: s.ref, region: region}
	if s.ref.id != 0 {
		p, d, err := u.m.pageRow(Subtree{ID: s.ref.id, Region: region, Birth: s.ref.birth}, true)
		if err != nil {
			return nil, err
		}
		open.dir = d
		if d.data == nil {
			open.parts = []openPart{{entries: p.entries()}}
		}
		for i := range d.Len() {
			part := d.Part(i)
			open.parts = append(open.parts, openPart{row: ref{part.ID, part.Birth}, at: i, start: part.Start, count: int(part.Count)})
		}
		for i := range open.parts {
			open.count += open.parts[i].len()
		}
	}
	*s = slot{page: open}
	return open, nil
}

// load reads the entries of a part.
func (u *Update) load(p *openPage, part *openPart) (err error) {
	if part.entries == nil && part.row.id != 0 {
		part.entries, err = u.m.part(p.dir, part.at, true)
	}
	return err
}

// covering returns the parts [i, j) that [lo, hi), which is not empty, may lie in; none if there are none.
func (p *openPage) covering(lo, hi uint32) (i, j int) {
	begins := func(at uint32) int {
		return sort.Search(len(p.parts), func(k int) bool { return p.parts[k].start >= at })
	}
	i, j = begins(lo+1)-1, begins(hi)
	i = max(i, 0)
	return i, min(max(i+1, j), len(p.parts))
}

// splice replaces [lo, hi), bytes of a region, in a page's entries, which are edited in encoded form. It reports whether that changed anything.
func (u *Update) splice(p *openPage, lo, hi uint32, with []Extent) (bool, error) {
	base := p.region << regionBits
	i, j := p.covering(lo, hi)
	hit := false
	for k := i; k < j; k++ {
		if err := u.load(p, &p.parts[k]); err != nil {
			return false, err
		}
		e := p.parts[k].entries
		first := e.search(lo)
		hit = hit || first < e.len() && e.off(first) < hi
	}
	if !hit && len(with) == 0 {
		return false, nil
	}
	part := u.own(p, i, j, len(with)+2)
	e := part.entries
	first := e.search(lo)
	last := first
	for last < e.len() && e.off(last) < hi {
		last++
	}
	fresh := u.scratch[:0]
	if first < last && e.off(first) < lo {
		fresh = u.insert(fresh, e.extent(first, base).Slice(0, base+uint64(lo)))
	}
	for _, x := range with {
		fresh = u.insert(fresh, x)
	}
	if first < last && e.end(last-1) > hi {
		fresh = u.insert(fresh, e.extent(last-1, base).Slice(base+uint64(hi), base+block.RegionSize))
	}
	u.kill(e[first*entrySize:last*entrySize], base)
	part.entries = slices.Replace(e, first*entrySize, last*entrySize, fresh...)
	p.count += fresh.len() - (last - first)
	p.changed += fresh.len() + (last - first)
	u.scratch = fresh
	return true, nil
}

// insert appends an extent that is born now.
func (u *Update) insert(e entries, x Extent) entries {
	x.Birth = u.birth
	if x.Kind == KindChunk {
		u.sink.Born(x.Chunk)
	}
	return e.append(x)
}

// kill reports the entries of a region at byte base that hold references.
func (u *Update) kill(e entries, base uint64) {
	for i := range e.len() {
		if e.kind(i) == KindChunk {
			u.sink.Killed(e.extent(i, base))
		}
	}
}

// own makes one part, whose entries may be changed, of the parts [i, j), which have been read, or an empty one if there are none. more is how many entries are to come. The
// first time, the page that was written is killed.
func (u *Update) own(p *openPage, i, j, more int) *openPart {
	if !p.dirty && p.base.id != 0 {
		u.sink.KilledPage(p.base.id, p.base.birth)
	}
	p.dirty = true
	if j == i+1 && p.parts[i].own {
		return &p.parts[i]
	}
	u.join(p, i, j, more)
	return &p.parts[i]
}

// join puts one part of the joined entries in the place of the parts [i, j), which have been read, and kills their rows.
func (u *Update) join(p *openPage, i, j, more int) {
	n, whole := more*entrySize, openPart{own: true}
	for _, part := range p.parts[i:j] {
		n += len(part.entries)
	}
	whole.entries = make(entries, 0, n)
	if i < j {
		whole.start = p.parts[i].start
	}
	for _, part := range p.parts[i:j] {
		whole.entries = append(whole.entries, part.entries...)
		if part.row.id != 0 {
			u.sink.KilledPage(part.row.id, part.row.birth)
		}
	}
	p.parts = slices.Replace(p.parts, i, j, whole)
}

// finishPage writes a page that was changed, in one row or in parts.
func (u *Update) finishPage(p *openPage) (ref, error) {
	switch {
	case !p.dirty:
		return p.base, nil
	case p.count == 0:
		return ref{}, nil
	case u.inParts(p):
		return u.finishParts(p)
	}
	for i := range p.parts {
		if err := u.load(p, &p.parts[i]); err != nil {
			return ref{}, err
		}
	}
	if len(p.parts) > 1 {
		u.join(p, 0, len(p.parts), 0)
	}
	r := ref{id: u.alloc(), birth: u.birth}
	return r, u.write(r.id, PageKey(r.id), encodePage(r.id, p.region, r.birth, p.parts[0].entries))
}

// inParts reports whether a changed page is to be kept in parts.
func (u *Update) inParts(p *openPage) bool {
	if p.count <= u.shape.whole {
		return false
	}
	if p.dir.data == nil {
		return p.changed <= p.count/u.shape.share
	}
	kept := 0
	for i := range p.parts {
		if p.parts[i].row.id != 0 {
			kept += p.parts[i].len()
		}
	}
	return kept > p.count/2
}

// finishParts writes the parts that have changed, and the directory.
func (u *Update) finishParts(p *openPage) (ref, error) {
	if err := u.balance(p); err != nil {
		return ref{}, err
	}
	var list []Part
	for i := range p.parts {
		part := &p.parts[i]
		if part.row.id != 0 {
			list = append(list, Part{ID: part.row.id, Birth: part.row.birth, Start: part.start, Count: uint32(part.len())})
			continue
		}
		n := part.entries.len()
		pieces := 1
		if n > u.shape.most {
			pieces = (n + u.shape.fill - 1) / u.shape.fill
		}
		for k := range pieces {
			e := part.entries[k*n/pieces*entrySize : (k+1)*n/pieces*entrySize]
			row := Part{ID: u.alloc(), Birth: u.birth, Start: e.off(0), Count: uint32(e.len())}
			if err := u.write(row.ID, PageKey(row.ID), encodePart(row.ID, p.region, row.Birth, e)); err != nil {
				return ref{}, err
			}
			list = append(list, row)
		}
	}
	r := ref{id: u.alloc(), birth: u.birth}
	u.parted = true
	return r, u.write(r.id, PageKey(r.id), EncodeDirectory(r.id, p.region, r.birth, list))
}

// balance drops changed parts that are empty, and joins those that have become short with a neighbour.
func (u *Update) balance(p *openPage) error {
	p.parts = slices.DeleteFunc(p.parts, func(part openPart) bool { return part.len() == 0 })
	for i := 0; i < len(p.parts); i++ {
		if n := p.parts[i].len(); p.parts[i].row.id != 0 || n >= u.shape.least {
			continue
		}
		from := -1
		if i+1 < len(p.parts) && p.parts[i].len()+p.parts[i+1].len() <= u.shape.most {
			from = i
		} else if i > 0 && p.parts[i-1].len()+p.parts[i].len() <= u.shape.most {
			from = i - 1
		}
		if from < 0 {
			continue
		}
		for k := from; k <= from+1; k++ {
			if err := u.load(p, &p.parts[k]); err != nil {
				return err
			}
		}
		u.join(p, from, from+2, 0)
		i = from - 1 // what it has become may be short still
	}
	return nil
}

// cutPage empties a page that was changed: what it holds was written as a part, or never.
func (u *Update) cutPage(p *openPage) error {
	for i := range p.parts {
		part := &p.parts[i]
		if err := u.load(p, part); err != nil {
			return err
		}
		u.kill(part.entries, p.region<<regionBits)
		if part.row.id != 0 {
			u.sink.KilledPage(part.row.id, part.row.birth)
		}
	}
	return nil
}
