package extentmap

import (
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// splice replaces [lo, hi), bytes of a region, in a page's entries, which are edited in encoded form. It reports whether that changed anything.
func (u *Update) splice(p *openPage, lo, hi uint32, with []Extent) bool {
	e, base := p.entries, p.region<<regionBits
	first := e.search(lo)
	last := first
	for last < e.len() && e.off(last) < hi {
		last++
	}
	if first == last && len(with) == 0 {
		return false
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
	u.soilPage(p, len(fresh))
	p.entries = slices.Replace(p.entries, first*entrySize, last*entrySize, fresh...)
	u.scratch = fresh
	return true
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

// soilPage marks a page as changed. The first time, the page that was written is killed and its entries are copied, with room for more bytes.
func (u *Update) soilPage(p *openPage, more int) {
	if p.dirty {
		return
	}
	p.dirty = true
	if p.base.id != 0 {
		u.sink.KilledPage(p.base.id, p.base.birth)
	}
	p.entries = append(make(entries, 0, len(p.entries)+more), p.entries...)
}
