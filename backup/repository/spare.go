package repository

import (
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A chunk may lie in several packs: two writers stored it at once, a prune has copied it, or somebody claims it. One place is used, the others are spare: they are read when that one
// turns out to be bad.
const (
	maxSpares      = 1 << 20 // in all; some 80 B each
	maxChunkSpares = 8       // of one chunk
)

// spareLocked notes another place of a chunk.
func (x *Index) spareLocked(short shortID, p place) {
	p.raw = p.length()
	if x.mu.places[short].pack == p.pack {
		return
	}
	old := x.mu.spares[short]
	if slices.ContainsFunc(old, func(q place) bool { return q.pack == p.pack }) {
		return
	}
	if len(old) >= maxChunkSpares || x.mu.spare >= maxSpares {
		x.mu.lost = true
		return
	}
	x.mu.spares[short] = append(old, p)
	x.mu.spare++
}

// allPlaces returns the places of a chunk whose packs were not found missing, the one that is used first.
func (x *Index) allPlaces(id block.Hash) (places []place) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	short := shortID(id[:16])
	first, ok := x.mu.places[short]
	if !ok {
		return nil
	}
	first.raw = first.length()
	for _, p := range append([]place{first}, x.mu.spares[short]...) {
		if !x.mu.packs[p.pack].gone {
			places = append(places, p)
		}
	}
	return places
}

// prefer uses a spare place from now on, as the one before is bad. While a prune is under way, which has counted what lies where, it does not.
func (x *Index) prefer(id block.Hash, p place) {
	x.mu.Lock()
	defer x.mu.Unlock()
	short := shortID(id[:16])
	old := x.mu.places[short]
	n := slices.Index(x.mu.spares[short], p)
	if n < 0 || old.raw&reached != 0 {
		return
	}
	x.mu.spares[short][n], x.mu.places[short] = old, p
}

// putLocked sets the place that a chunk has in a pack, and reports whether it was another or none.
func (x *Index) putLocked(short shortID, p place) bool {
	old, there := x.mu.places[short]
	if there && old.pack == p.pack {
		same := old.frame == p.frame && old.off == p.off && old.length() == p.raw
		p.raw |= old.raw & reached
		x.mu.places[short] = p
		return !same
	}
	if !there {
		x.mu.places[short] = p
		x.mu.raw += uint64(p.raw)
		return true
	}
	if n := slices.IndexFunc(x.mu.spares[short], func(q place) bool { return q.pack == p.pack }); n >= 0 {
		same := x.mu.spares[short][n] == p
		x.mu.spares[short][n] = p
		return !same
	}
	x.spareLocked(short, p)
	return true
}

// move makes a place the one of a chunk that a backup needs.
func (x *Index) move(id block.Hash, p place) {
	x.mu.Lock()
	defer x.mu.Unlock()
	short := shortID(id[:16])
	old := x.mu.places[short]
	x.mu.spares[short] = slices.DeleteFunc(x.mu.spares[short], func(q place) bool { return q.pack == p.pack })
	p.raw = p.length() | old.raw&reached
	x.mu.places[short] = p
	x.spareLocked(short, old)
}

// needed returns the place of a chunk if a backup needs it.
func (x *Index) needed(id block.Hash) (p place, ok bool) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	p, ok = x.mu.places[shortID(id[:16])]
	ok = ok && p.raw&reached != 0
	p.raw = p.length()
	return p, ok
}
