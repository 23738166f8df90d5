package blockstore

import (
	"cmp"
	"errors"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/dedup/similar"
)

// Chunks go cold region by region, and a stretch of a region after the other: of each first what the newest state has there, then what older ones have that is different, volumes
// that were made later before others. So what is read together lies together, and versions of one place come into one batch, whichever volume or snapshot they belong to.
//
// Within a batch, a chunk that is like a newer one is put right behind it, so that a frame holds both: all of the newer one is then in the window of the codec, and what they have
// in common is stored once. That is what a delta against the newer one would be, without anything that would have to be kept alive for it: frames stand alone. The
// chunk at the same place of a newer state is tried first, then any with a common super-feature.

// coolStretch is how many bytes of a region are taken of each state before the same ones of the next.
const coolStretch = 2 << 20

// coolPlace is where a chunk that goes cold was found first, and what tells which others are like it.
type coolPlace struct {
	block  uint64 // the first block of a volume that it is at
	blocks int
	rank   int // of the state: 0 is the newest
	hash   block.Hash
	sketch similar.Sketch
}

// coolChunk is a chunk that goes.
type coolChunk struct {
	wanted
	coolPlace
}

// newestFirst lists all states of all volumes, and tells how many regions the largest has.
func (s *Store) newestFirst() (states []*node, regions uint64) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, n := range s.nodes {
		if n.abandonedLocked() {
			continue
		}
		states = append(states, n)
		size := n.size
		if n.flags&nodeClosed == 0 {
			size = n.volume.size.Load()
		}
		regions = max(regions, (size+block.RegionSize-1)/block.RegionSize)
	}
	slices.SortFunc(states, func(a, b *node) int {
		return cmp.Or(cmp.Compare(b.volume.id, a.volume.id), cmp.Compare(b.id, a.id))
	})
	return states, regions
}

// candidates returns what of a region goes, in order.
func (c *cooling) candidates(states []*node, region uint64) (found []coolChunk, err error) {
	pages, ids := map[uint64]bool{}, map[block.ChunkID]bool{}
	for rank, n := range states {
		page, err := c.region(n, region)
		if err != nil {
			return nil, err
		}
		if page.ID() == 0 || pages[page.ID()] {
			continue
		}
		pages[page.ID()] = true
		for i := range page.Len() {
			x := page.Extent(i)
			if x.Kind != extentmap.KindChunk || ids[x.Chunk] || c.ids[x.Chunk] {
				continue
			}
			ids[x.Chunk] = true
			row, err := c.rows.row(c.s.db, x.Chunk)
			if errors.Is(err, block.ErrNotFound) {
				continue // it died meanwhile
			}
			if err != nil {
				return nil, err
			}
			if c.goes(x.Chunk, &row) {
				first, count := blocksOf(x.Off, uint64(x.Len))
				found = append(found, coolChunk{wanted{id: x.Chunk, row: row}, coolPlace{block: first, blocks: int(count), rank: rank}})
			}
		}
	}
	slices.SortFunc(found, func(a, b coolChunk) int {
		return cmp.Or(cmp.Compare(a.stretch(), b.stretch()), cmp.Compare(a.rank, b.rank), cmp.Compare(a.block, b.block))
	})
	return found, nil
}

func (c *coolChunk) stretch() uint64 { return c.block / (coolStretch / block.Size) }

// region returns the page of a region of a state, the zero Page if the state is gone.
func (c *cooling) region(n *node, region uint64) (page extentmap.Page, err error) {
	for range coolRetries {
		if page, err = c.s.maps.Region(n.effectiveRoot(), region); !errors.Is(err, block.ErrNotFound) {
			return page, err
		}
	}
	return extentmap.Page{}, nil
}

// take puts candidates into the batch, and flushes it when a stretch does not fit any more.
func (c *cooling) take(found []coolChunk) error {
	for len(found) > 0 {
		n, raw := 0, 0
		for ; n < len(found) && found[n].stretch() == found[0].stretch(); n++ {
			raw += int(found[n].row.RawLen)
		}
		if len(c.buf)+raw > cap(c.buf) {
			if err := c.flush(); err != nil {
				return err
			}
		}
		for i := range found[:n] {
			if err := c.add(&found[i]); err != nil {
				return err
			}
		}
		found = found[n:]
	}
	return nil
}

// add puts one chunk into the batch.
func (c *cooling) add(x *coolChunk) error {
	n := int(x.row.RawLen)
	if len(c.buf)+n > cap(c.buf) {
		if err := c.flush(); err != nil {
			return err
		}
		c.buf = slices.Grow(c.buf, n) // a chunk may be larger than a batch where there is little memory
	}
	at := len(c.buf)
	c.buf = c.buf[:at+n]
	x.p = c.buf[at:]
	c.ids[x.id] = true
	c.want, c.where = append(c.want, x.wanted), append(c.where, x.coolPlace)
	return nil
}

// coolOrder arranges the chunks of a batch.
type coolOrder struct {
	table  similar.Table
	at     map[uint64]int // which chunk is at a block, the newest that was seen
	first  []int          // of the chunks that are alike, the one that is the newest
	next   []int          // the chunk behind each that is like the same one; -1: none
	last   []int          // the end of the list that a first one begins
	result []int
}

// arrange returns the numbers of chunks in the order in which they are to be packed: as they come, but those that are like one before right behind it.
func (o *coolOrder) arrange(places []coolPlace, alike bool) []int {
	o.result = o.result[:0]
	if !alike {
		o.first = o.first[:0]
		for i := range places {
			o.result = append(o.result, i)
		}
		return o.result
	}
	o.group(places)
	for i := range places {
		if o.first[i] != i {
			continue
		}
		for k := i; k >= 0; k = o.next[k] {
			o.result = append(o.result, k)
		}
	}
	return o.result
}

// alike reports whether a chunk is packed behind one that it is like.
func (o *coolOrder) alike(i int) bool { return i < len(o.first) && o.first[i] != i }

// group finds for each chunk the newest one that it is like: itself, if there is none.
func (o *coolOrder) group(places []coolPlace) {
	if o.at == nil {
		o.at = map[uint64]int{}
	}
	clear(o.at)
	o.table.Reset()
	o.first, o.next, o.last = o.first[:0], o.next[:0], o.last[:0]
	for i := range places {
		p := &places[i]
		hint := -1
		for b := p.block; b < p.block+uint64(p.blocks) && hint < 0; b++ {
			if k, ok := o.at[b]; ok && places[k].rank != p.rank {
				hint = k
			}
		}
		o.first, o.next, o.last = append(o.first, i), append(o.next, -1), append(o.last, i)
		if k, ok := o.table.Find(&p.sketch, hint); ok {
			f := o.first[k]
			o.first[i], o.next[o.last[f]], o.last[f] = f, i, i
		}
		o.table.Add(&p.sketch)
		for b := p.block; b < p.block+uint64(p.blocks); b++ {
			if _, taken := o.at[b]; !taken {
				o.at[b] = i
			}
		}
	}
}
