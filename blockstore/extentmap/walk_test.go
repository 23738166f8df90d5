package extentmap

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// walkTree has pages at regions 0, 1, 256 and 70000, of which 1 and 70000 were written last.
func walkTree(t *testing.T) (*Map, Root) {
	db := openMem(t)
	m, ids := NewMap(db, nil), &counter{}
	put := func(regions ...uint64) func(u *Update) error {
		return func(u *Update) error {
			for _, r := range regions {
				if err := u.Replace(r<<regionBits, 10, []Extent{chunkAt(r<<regionBits, 10, 1)}); err != nil {
					return err
				}
			}
			return nil
		}
	}
	root := edit(t, db, m, Root{}, 5, ids.next, nopSink{}, put(0, 1, 256))
	return m, edit(t, db, m, root, 9, ids.next, nopSink{}, put(1, 70000))
}

// steps records a walk, and stops it after each limit steps.
func steps(t *testing.T, m *Map, r Root, minBirth uint64, from Cursor, limit int) (seen []string, parts int) {
	n := 0
	note := func(kind string, region uint64, level uint8) bool {
		seen = append(seen, fmt.Sprintf("%s%d@%d", kind, level, region))
		n++
		return n%limit != 0
	}
	v := Visitor{
		Page:  func(p Page) bool { return note("page", p.Region(), 0) },
		Node:  func(s Subtree) bool { return note("node", s.Region, s.Level) },
		Older: func(s Subtree) bool { return note("older", s.Region, s.Level) },
	}
	for {
		next, done, err := m.Walk(t.Context(), r.Subtree(), block.Epoch(minBirth), from, v)
		if err != nil {
			t.Fatal(err)
		}
		if parts++; done {
			return seen, parts
		}
		from = next
	}
}

func TestWalkVisitsInOrder(t *testing.T) {
	m, root := walkTree(t)
	all := []string{"page0@0", "page0@1", "node1@0", "page0@256", "node1@256", "node2@0", "page0@70000", "node1@69888", "node2@65536", "node3@0"}
	for _, tc := range []struct {
		minBirth uint64
		from     Cursor
		want     []string
	}{
		{0, 0, all},
		{4, 0, all},
		{5, 0, []string{"older0@0", "page0@1", "node1@0", "older1@256", "node2@0", "page0@70000", "node1@69888", "node2@65536", "node3@0"}},
		{8, 0, []string{"older0@0", "page0@1", "node1@0", "older1@256", "node2@0", "page0@70000", "node1@69888", "node2@65536", "node3@0"}},
		{9, 0, []string{"older3@0"}},
		{0, CursorAt(0), all},
		{0, CursorAt(1<<regionBits + 5), all[1:]},
		{0, CursorAt(2 << regionBits), all[2:]},
		{0, CursorAt(256 << regionBits), all[3:]},
		{0, CursorAt(257 << regionBits), all[4:]},
		{0, CursorAt(70001 << regionBits), all[7:]},
	} {
		for limit := 1; limit <= len(all)+1; limit++ {
			got, parts := steps(t, m, root, tc.minBirth, tc.from, limit)
			if !slices.Equal(got, tc.want) {
				t.Errorf("walk above %d from %d by %d: %v, want %v", tc.minBirth, tc.from, limit, got, tc.want)
			}
			if want := 1 + len(tc.want)/limit; parts != want {
				t.Errorf("walk by %d took %d parts, want %d", limit, parts, want)
			}
		}
	}
}

func TestWalkStopsWithItsContext(t *testing.T) {
	m, root := walkTree(t)
	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	next, done, err := m.Walk(ctx, root.Subtree(), 0, 0, Visitor{Page: func(Page) bool { seen++; cancel(); return true }})
	if !errors.Is(err, context.Canceled) || done || seen != 1 {
		t.Fatalf("%d pages, %v, %v", seen, done, err)
	}
	if got, _ := steps(t, m, root, 0, next, 100); len(got) != 9 {
		t.Errorf("the rest is %v", got)
	}
	if err := m.Diff(ctx, root, Root{}, block.Range{Len: block.MaxVolumeSize}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("diff: %v", err)
	}
}

// Diff reads nothing of what is shared.
func TestDiffSkipsWhatIsShared(t *testing.T) {
	db := openMem(t)
	ids := &counter{}
	root := edit(t, db, NewMap(db, nil), Root{}, 5, ids.next, nopSink{}, func(u *Update) error {
		for r := range uint64(512) {
			if err := u.Replace(r<<regionBits, 10, []Extent{chunkAt(r<<regionBits, 10, 1)}); err != nil {
				return err
			}
		}
		return nil
	})
	at := uint64(300) << regionBits
	root2 := edit(t, db, NewMap(db, nil), root, 9, ids.next, nopSink{}, func(u *Update) error {
		return u.Replace(at+3, 9, []Extent{chunkAt(at+5, 2, 2)})
	})
	g := &gets{Reader: db}
	var got [][2]uint64
	if err := NewMap(g, nil).Diff(t.Context(), root, root2, block.Range{Len: block.MaxVolumeSize}, func(off, n uint64) bool {
		got = append(got, [2]uint64{off, n})
		return true
	}); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, [][2]uint64{{at + 3, 7}}) || g.n != 6 {
		t.Errorf("differ in %v, by %d reads", got, g.n)
	}
}
