package extentmap

import (
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// gets counts reads of rows.
type gets struct {
	Reader
	n int
}

func (g *gets) Get(key []byte) ([]byte, io.Closer, error) {
	g.n++
	return g.Reader.Get(key)
}

func TestLookupClips(t *testing.T) {
	db := openMem(t)
	m, ids := NewMap(db, nil), &counter{}
	base := uint64(70000) << regionBits
	with := []Extent{chunkAt(base+100, 100, 3), External(base+200, 50, 4, 1000), {Off: base + 300, Len: 1, Kind: KindZero}}
	with[0].ChunkOff = 7
	root := edit(t, db, m, Root{}, 5, ids.next, nopSink{}, func(u *Update) error { return u.Replace(base, 1000, with) })

	head := chunkAt(base+150, 50, 3)
	head.ChunkOff, head.Birth = 57, 5
	tail := External(base+200, 10, 4, 1000)
	tail.Birth = 5
	if got := lookup(t, m, root, base+150, 60); !slices.Equal(got, []Extent{head, tail}) {
		t.Errorf("clipped to %+v", got)
	}
	middle := External(base+210, 10, 4, 1010)
	middle.Birth = 5
	if got := lookup(t, m, root, base+210, 10); !slices.Equal(got, []Extent{middle}) {
		t.Errorf("clipped to %+v", got)
	}
	for _, hole := range []block.Range{{Off: base, Len: 100}, {Off: base + 250, Len: 50}, {Off: base + 301, Len: 1 << 40}, {Off: 0, Len: base + 100}, {Off: base + 150, Len: 0}} {
		if got := lookup(t, m, root, hole.Off, hole.Len); got != nil {
			t.Errorf("hole %+v reads %+v", hole, got)
		}
	}
	seen := 0
	if err := m.Lookup(root, 0, 1<<50, func(Extent) bool { seen++; return false }); err != nil || seen != 1 {
		t.Errorf("a stopped lookup saw %d extents, %v", seen, err)
	}
	if err := m.Lookup(root, 1<<63, 1<<63, nil); !errors.Is(err, block.ErrOutOfRange) {
		t.Errorf("overflow: %v", err)
	}
	p, err := m.Region(root, 70000)
	if f := p.Fragments(); err != nil || f != (Fragments{Extents: 3, Chunks: 1, Bytes: 151}) {
		t.Errorf("fragments %+v, %v", f, err)
	}
	for _, region := range []uint64{0, 69999, 70001, 1 << 30} {
		if p, err := m.Region(root, region); err != nil || p.ID() != 0 || p.Len() != 0 || p.Birth() != 0 {
			t.Errorf("region %d: %v, %v", region, p, err)
		}
	}
}

// A lookup up to a region's last byte reads one path and nothing beside it.
func TestLookupReadsOnePath(t *testing.T) {
	db := openMem(t)
	ids := &counter{}
	root := edit(t, db, NewMap(db, nil), Root{}, 1, ids.next, nopSink{}, func(u *Update) error {
		return errors.Join(u.Replace(255<<regionBits, 10, []Extent{chunkAt(255<<regionBits, 10, 1)}), u.Replace(256<<regionBits, 10, []Extent{chunkAt(256<<regionBits, 10, 1)}))
	})
	g := &gets{Reader: db}
	if got := lookup(t, NewMap(g, nil), root, 255<<regionBits, block.RegionSize); len(got) != 1 || g.n != 3 {
		t.Errorf("%d extents by %d reads, want 1 by 3", len(got), g.n)
	}
}

// A page or node that its parent does not mean is never served, from the store or from the cache.
func TestWrongPageIsDamage(t *testing.T) {
	db := openMem(t)
	ids := &counter{}
	root := edit(t, db, NewMap(db, nil), Root{}, 2, ids.next, nopSink{}, func(u *Update) error {
		return errors.Join(u.Replace(0, 10, []Extent{chunkAt(0, 10, 1)}), u.Replace(1<<regionBits, 10, []Extent{chunkAt(1<<regionBits, 10, 1)}))
	})
	node := func(c0, c1 ref) {
		s := root.Subtree()
		data := EncodeNode(s, func(i int) (uint64, block.Epoch) { r := [Fanout]ref{c0, c1}[i]; return r.id, r.birth })
		if err := db.Set(NodeKey(root.ID), data, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	read := func(m *Map) error { return m.Lookup(root, 0, 2<<regionBits, func(Extent) bool { return true }) }
	for name, tc := range map[string]struct {
		c0, c1 ref
		want   error
	}{
		"right":   {ref{1, 2}, ref{2, 2}, nil},
		"swapped": {ref{2, 2}, ref{1, 2}, block.ErrCorrupt},
		"doubled": {ref{1, 2}, ref{1, 2}, block.ErrCorrupt},
		"birth":   {ref{1, 1}, ref{2, 2}, block.ErrCorrupt},
	} {
		node(tc.c0, tc.c1)
		warm := NewCache(1 << 20)
		for region, id := range []uint64{1, 2} {
			if _, err := NewMap(db, warm).page(Subtree{ID: id, Region: uint64(region), Birth: 2}, true); err != nil {
				t.Fatal(err)
			}
		}
		for _, c := range []*Cache{nil, NewCache(1 << 20), warm} {
			if err := read(NewMap(db, c)); !errors.Is(err, tc.want) {
				t.Errorf("%s: %v, want %v", name, err, tc.want)
			}
		}
	}
	// A node's bytes in the cache are no page.
	c := NewCache(1 << 20)
	c.add(9, EncodeNode(Subtree{ID: 9, Level: 1, Birth: 2}, func(i int) (uint64, block.Epoch) { return 1, 1 }))
	if _, err := NewMap(db, c).page(Subtree{ID: 9, Birth: 2}, true); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("node as page: %v", err)
	}
	c.add(10, EncodePage(10, 0, 2, []Extent{{Len: 1, Kind: KindZero, Birth: 1}}))
	if _, err := NewMap(db, c).node(Subtree{ID: 10, Level: 1, Birth: 2}, true); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("page as node: %v", err)
	}
}

func TestMissingRowsAreNotFound(t *testing.T) {
	m := NewMap(openMem(t), nil)
	for level := range uint8(3) {
		root := Root{ID: 5, Level: level, Birth: 1}
		if err := m.Lookup(root, 0, 10, nil); !errors.Is(err, block.ErrNotFound) {
			t.Errorf("level %d: %v", level, err)
		}
	}
}

func TestCachedLookupDoesNotAllocate(t *testing.T) {
	db := openMem(t)
	ids, m := &counter{}, NewMap(db, NewCache(1<<20))
	root := edit(t, db, m, Root{}, 1, ids.next, nopSink{}, func(u *Update) error {
		return u.Replace(300<<regionBits, 100, []Extent{chunkAt(300<<regionBits, 100, 1)})
	})
	n := 0
	if a := testing.AllocsPerRun(100, func() {
		if err := m.Lookup(root, 300<<regionBits, 4096, func(Extent) bool { n++; return true }); err != nil {
			t.Error(err)
		}
	}); a != 0 || n == 0 {
		t.Errorf("%v allocations for a lookup", a)
	}
}

// Readers of old roots see them whole while new roots are made and the cache turns over.
func TestLookupDuringUpdates(t *testing.T) {
	db := openMem(t)
	ids, m := &counter{}, NewMap(db, NewCache(8<<10))
	const regions, rounds = 40, 60
	roots := make(chan Root, rounds)
	var readers sync.WaitGroup
	for range 3 {
		readers.Go(func() {
			for root := range roots {
				var first block.ChunkID
				n := 0
				err := m.Lookup(root, 0, regions<<regionBits, func(e Extent) bool {
					if n++; first == 0 {
						first = e.Chunk
					}
					return e.Chunk == first
				})
				if err != nil || n != regions {
					t.Errorf("root %+v: %d extents of chunk %d, %v", root, n, first, err)
				}
			}
		})
	}
	root := Root{}
	for round := range rounds {
		root = edit(t, db, m, root, block.Epoch(round+1), ids.next, nopSink{}, func(u *Update) error {
			for r := range uint64(regions) {
				if err := u.Replace(r<<regionBits, 4096, []Extent{chunkAt(r<<regionBits, 4096, block.ChunkID(round+1))}); err != nil {
					return err
				}
			}
			return nil
		})
		roots <- root
	}
	close(roots)
	readers.Wait()
}
