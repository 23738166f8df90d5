package extentmap

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// blocksOf makes n extents of 4 KiB each from off on.
func blocksOf(off uint64, n int, chunk block.ChunkID) (all []Extent) {
	for i := range n {
		all = append(all, chunkAt(off+uint64(i)*block.Size, block.Size, chunk+block.ChunkID(i)))
	}
	return all
}

// rowBytes counts the bytes of all pages and parts.
func rowBytes(t *testing.T, db *pebble.DB) (n int) {
	t.Helper()
	if err := scan(db, []byte{prefixPage}, []byte{prefixPage + 1}, func(_, value []byte) (bool, error) {
		n += len(value)
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	return n
}

// What a state changes in a large page costs it about a part and a directory, not the page.
func TestSmallChangeOfALargePageIsSmall(t *testing.T) {
	db := openMem(t)
	m, ids := NewMap(db, NewCache(1<<20)), &counter{}
	const blocks = block.RegionSize / block.Size
	root := edit(t, db, m, Root{}, 1, ids.next, nopSink{}, func(u *Update) error {
		return u.Replace(0, block.RegionSize, blocksOf(0, blocks, 1))
	})
	was := rowBytes(t, db)
	if was != headerSize+blocks*entrySize {
		t.Fatalf("a page that was written at once takes %d B", was)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	want := lookup(t, m, root, 0, block.RegionSize)
	const states = 200
	for n := range states {
		i := rng.IntN(blocks)
		off, birth := uint64(i)*block.Size, block.Epoch(n+2)
		x := chunkAt(off, block.Size, block.ChunkID(10_000+n))
		root = edit(t, db, m, root, birth, ids.next, nopSink{}, func(u *Update) error { return u.Replace(off, block.Size, []Extent{x}) })
		x.Birth = birth
		want[i] = x
	}
	if each := (rowBytes(t, db) - 2*was) / states; each > 6<<10 {
		t.Errorf("a state that changed 4 KiB costs %d B", each)
	}
	if got := lookup(t, NewMap(db, nil), root, 0, block.RegionSize); !slices.Equal(got, want) {
		t.Error("the page reads as something else")
	}
	p, err := NewMap(db, nil).Region(root, 0)
	if err != nil || !slices.Equal(extentsOf(p), want) {
		t.Errorf("the whole page is something else, %v", err)
	}
	g := &gets{Reader: db}
	if n, err := NewMap(g, nil).Extents(root, 0); err != nil || n != len(want) || g.n != 1 {
		t.Errorf("%d extents instead of %d, by %d reads, %v", n, len(want), g.n, err)
	}
	g = &gets{Reader: db}
	if got := lookup(t, NewMap(g, nil), root, 100*block.Size, 1); len(got) != 1 || g.n != 2 {
		t.Errorf("%d extents, by %d reads", len(got), g.n)
	}
}

// A page is one row again when most of it is written anyway, or when little is left of it; no part stays behind.
func TestPageInPartsBecomesWhole(t *testing.T) {
	for name, change := range map[string]func(u *Update) error{
		"overwritten": func(u *Update) error { return u.Replace(0, 900*block.Size, blocksOf(0, 900, 5000)) },
		"emptied":     func(u *Update) error { return u.Replace(0, 900*block.Size, nil) },
		"cut off": func(u *Update) error {
			return errors.Join(u.Replace(0, block.Size, nil), u.Detach(0, block.RegionSize))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 1, openMem(t))
			v := w.volumes[0]
			update := func(from, n block.ChunkID, do func(u *Update) error) {
				w.begin(v)
				for c := from; c < from+n; c++ {
					w.live[c] = true
					w.refs.New(c)
				}
				u := NewUpdate(NewMap(w.batch, w.m.cache), w.batch, v.head.root, v.birth, w.ids.next, w)
				w.check(do(u))
				var err error
				v.head.root, err = u.Finish()
				w.check(err)
				w.commit()
			}
			update(1, 1000, func(u *Update) error { return u.Replace(0, 1000*block.Size, blocksOf(0, 1000, 1)) })
			update(4000, 1, func(u *Update) error { return u.Replace(500*block.Size, block.Size, blocksOf(500*block.Size, 1, 4000)) })
			parts := 0
			count := func() {
				p, err := w.m.Region(v.head.root, 0)
				w.check(err)
				parts = 0
				p.Parts(func(uint64, block.Epoch) { parts++ })
			}
			if count(); parts < 1000/64 {
				t.Fatalf("%d parts", parts)
			}
			update(5000, 900, change)
			if count(); parts != 0 {
				t.Errorf("%d parts", parts)
			}
			rows := 0
			w.check(scan(w.db, []byte{prefixPage}, []byte{prefixPage + 1}, func(_, _ []byte) (bool, error) { rows++; return true, nil }))
			if want := 1; rows != want && v.head.root.ID != 0 || rows != 0 && v.head.root.ID == 0 {
				t.Errorf("%d rows are left", rows)
			}
		})
	}
}

// A part that is gone is what a page is that is gone; one that is another than the directory says is damage.
func TestPartsAreChecked(t *testing.T) {
	db := openMem(t)
	ids := &counter{}
	root := edit(t, db, NewMap(db, nil), Root{}, 1, ids.next, nopSink{}, func(u *Update) error { return u.Replace(0, 1000*block.Size, blocksOf(0, 1000, 1)) })
	root = edit(t, db, NewMap(db, nil), root, 2, ids.next, nopSink{}, func(u *Update) error { return u.Replace(0, block.Size, blocksOf(0, 1, 5000)) })
	p, err := NewMap(db, nil).Region(root, 0)
	if err != nil {
		t.Fatal(err)
	}
	part := p.parts.Part(3)
	row, err := NewMap(db, nil).fetch(PageKey(part.ID))
	if err != nil {
		t.Fatal(err)
	}
	q, err := DecodePart(part.ID, 0, row)
	if err != nil {
		t.Fatal(err)
	}
	all := extentsOf(q)
	late := slices.Clone(all)
	late[len(late)-1].Len += block.Size
	for name, c := range map[string]struct {
		row  []byte
		want error
	}{
		"gone":             {nil, block.ErrNotFound},
		"of another birth": {EncodePart(part.ID, 0, 3, all), block.ErrCorrupt},
		"shorter":          {EncodePart(part.ID, 0, 2, all[:len(all)-1]), block.ErrCorrupt},
		"beginning later":  {EncodePart(part.ID, 0, 2, append([]Extent{all[0].Slice(all[0].Off+1, all[0].End())}, all[1:]...)), block.ErrCorrupt},
		"over the next":    {EncodePart(part.ID, 0, 2, late), block.ErrCorrupt},
		"a page":           {EncodePage(part.ID, 0, 2, all), block.ErrCorrupt},
	} {
		if c.row == nil {
			err = db.Delete(PageKey(part.ID), pebble.NoSync)
		} else {
			err = db.Set(PageKey(part.ID), c.row, pebble.NoSync)
		}
		if err != nil {
			t.Fatal(err)
		}
		m := NewMap(db, NewCache(1<<20))
		if _, err := m.Region(root, 0); !errors.Is(err, c.want) {
			t.Errorf("%s: the page: %v", name, err)
		}
		if err := m.Lookup(root, uint64(part.Start), 1, func(Extent) bool { return true }); !errors.Is(err, c.want) {
			t.Errorf("%s: a lookup: %v", name, err)
		}
		if err := m.Lookup(root, uint64(p.parts.Part(5).Start), 1, func(Extent) bool { return true }); err != nil {
			t.Errorf("%s: a lookup beside it: %v", name, err)
		}
	}
}

// What two states have in common of a large page is not read to find where they differ, nor by who looks for what is new.
func TestCommonPartsAreNotRead(t *testing.T) {
	db := openMem(t)
	m, ids := NewMap(db, nil), &counter{}
	const blocks = block.RegionSize / block.Size
	var roots [3]Root
	roots[0] = edit(t, db, m, Root{}, 1, ids.next, nopSink{}, func(u *Update) error { return u.Replace(0, block.RegionSize, blocksOf(0, blocks, 1)) })
	for i, at := range []uint64{70, 3000} {
		roots[i+1] = edit(t, db, m, roots[i], block.Epoch(i+2), ids.next, nopSink{}, func(u *Update) error {
			return u.Replace(at*block.Size, block.Size, blocksOf(at*block.Size, 1, block.ChunkID(9000+i)))
		})
	}
	g := &gets{Reader: db}
	var got []block.Range
	err := NewMap(g, nil).Diff(t.Context(), roots[1], roots[2], block.Range{Len: block.RegionSize}, func(off, n uint64) bool {
		got = append(got, block.Range{Off: off, Len: n})
		return true
	})
	if want := []block.Range{{Off: 3000 * block.Size, Len: block.Size}}; err != nil || !slices.Equal(got, want) || g.n > 4 {
		t.Errorf("differences %v instead of %v, by %d reads of rows, %v", got, want, g.n, err)
	}
	for _, whole := range []bool{false, true} {
		g.n = 0
		var found []Extent
		err := NewMap(g, nil).NewPages(t.Context(), roots[1], roots[2], whole, func(p Page) error {
			found = append(found, extentsOf(p)...)
			return nil
		})
		all := lookup(t, m, roots[2], 0, block.RegionSize)
		changed := slices.ContainsFunc(found, func(x Extent) bool { return x.Chunk == 9001 })
		if err != nil || whole && !slices.Equal(found, all) || !whole && (len(found) > 64 || g.n > 3) || !changed {
			t.Errorf("whole %v: %d extents by %d reads, the new one among them %v, %v", whole, len(found), g.n, changed, err)
		}
	}
	g.n = 0
	extents := 0
	if _, done, err := NewMap(g, nil).Walk(t.Context(), roots[2].Subtree(), 2, 0, Visitor{Recent: true, Page: func(p Page) bool { extents += p.Len(); return true }}); err != nil || !done || extents == 0 || extents > 64 || g.n > 2 {
		t.Errorf("a walk of what is new: %d extents by %d reads, done %v, %v", extents, g.n, done, err)
	}
	// A page that became one row, or came from one, is compared as a whole.
	for _, pair := range [][2]Root{{roots[0], roots[2]}, {roots[2], roots[0]}, {{}, roots[2]}, {roots[2], {}}} {
		n := uint64(0)
		if err := m.Diff(t.Context(), pair[0], pair[1], block.Range{Len: block.RegionSize}, func(_, bytes uint64) bool { n += bytes; return true }); err != nil {
			t.Fatal(err)
		}
		want := uint64(2 * block.Size)
		if pair[0].ID == 0 || pair[1].ID == 0 {
			want = block.RegionSize
		}
		if n != want {
			t.Errorf("%v and %v differ in %d B instead of %d", pair[0], pair[1], n, want)
		}
	}
}
