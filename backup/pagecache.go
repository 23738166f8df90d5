package backup

import (
	"context"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// treeCache finds the pages of regions, and keeps those that were used last, decoded.
type treeCache struct {
	reader *repository.Reader
	m      *repository.Manifest
	total  uint64 // regions

	mu struct {
		sync.Mutex
		directories map[int][]block.Hash
		pages       map[uint64]*page
		extents     int // of all pages
	}
}

// Bounds of what a treeCache keeps: 16 directories have half a MiB, and extents 48 B each.
const (
	maxCachedDirectories = 16
	maxCachedExtents     = 512 << 10
)

// page is a decoded page.
type page struct {
	extents []extent
	starts  []uint32 // of the extents, in the region
}

func newPage(extents []extent) *page {
	g := &page{extents: extents, starts: make([]uint32, len(extents))}
	start := uint32(0)
	for i := range extents {
		g.starts[i] = start
		start += extents[i].length
	}
	return g
}

// at returns the extent at an offset of the region, and where it begins.
func (g *page) at(in int) (e *extent, begin int) {
	i := g.index(in)
	return &g.extents[i], int(g.starts[i])
}

// index returns which extent is at an offset of the region.
func (g *page) index(in int) int {
	low, high := 0, len(g.starts) // starts[low] <= in < starts[high]
	for high-low > 1 {
		if middle := (low + high) / 2; int(g.starts[middle]) <= in {
			low = middle
		} else {
			high = middle
		}
	}
	return low
}

func newTreeCache(reader *repository.Reader, m *repository.Manifest) *treeCache {
	t := &treeCache{reader: reader, m: m, total: regions(m.SizeBytes)}
	t.mu.directories, t.mu.pages = make(map[int][]block.Hash), make(map[uint64]*page)
	return t
}

// cached returns the page of region n if it is in memory, else nil.
func (t *treeCache) cached(n uint64) *page {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.pages[n]
}

// page returns the page of region n.
func (t *treeCache) page(ctx context.Context, n uint64) (*page, error) {
	if g := t.cached(n); g != nil {
		return g, nil
	}
	id, err := t.id(ctx, n)
	if err != nil {
		return nil, err
	}
	extents := []extent{zeroes(uint32(regionLength(t.m.SizeBytes, n)))}
	if id != (block.Hash{}) {
		if extents, err = readPage(ctx, t.reader, t.m.SizeBytes, n, id); err != nil {
			return nil, err
		}
	}
	g := newPage(extents)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.pages[n] == nil {
		t.mu.extents += len(extents)
	}
	t.mu.pages[n] = g
	for old, g := range t.mu.pages { // any one: who reads on reads each page once
		if t.mu.extents <= maxCachedExtents {
			break
		}
		if old != n {
			t.mu.extents -= len(g.extents)
			delete(t.mu.pages, old)
		}
	}
	return g, nil
}

// id returns the id of the page of region n, zero if it is all zero.
func (t *treeCache) id(ctx context.Context, n uint64) (id block.Hash, err error) {
	i := int(n / pagesPerDirectory)
	if t.m.Root[i] == (block.Hash{}) {
		return id, nil
	}
	t.mu.Lock()
	pages, ok := t.mu.directories[i]
	t.mu.Unlock()
	if !ok {
		if pages, err = readDirectory(ctx, t.reader, i, t.m.Root[i], t.total); err != nil {
			return id, err
		}
		t.mu.Lock()
		if len(t.mu.directories) >= maxCachedDirectories {
			clear(t.mu.directories)
		}
		t.mu.directories[i] = pages
		t.mu.Unlock()
	}
	return pages[n%pagesPerDirectory], nil
}
