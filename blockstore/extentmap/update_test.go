package extentmap

import (
	"errors"
	"reflect"
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

type nopSink struct{}

func (nopSink) Born(block.ChunkID)             {}
func (nopSink) Killed(Extent)                  {}
func (nopSink) KilledPage(uint64, block.Epoch) {}
func (nopSink) KilledNode(uint64, block.Epoch) {}
func (nopSink) Subtree(Subtree)                {}

// A straddled extent is killed once and both remnants are born, with the chunk offsets that they had.
func TestReplaceCutsRemnants(t *testing.T) {
	db := openMem(t)
	m, ids := NewMap(db, nil), &counter{}
	root := edit(t, db, m, Root{}, 5, ids.next, nopSink{}, func(u *Update) error { return u.Replace(0, 100, []Extent{chunkAt(10, 80, 1)}) })
	var heard tape
	root2 := edit(t, db, m, root, 9, ids.next, &heard, func(u *Update) error { return u.Replace(40, 20, []Extent{chunkAt(45, 5, 2)}) })
	old := chunkAt(10, 80, 1)
	old.Birth = 5
	if want := (tape{born: []block.ChunkID{1, 2, 1}, killed: []Extent{old}, pages: []uint64{1}}); !reflect.DeepEqual(heard, want) {
		t.Errorf("heard %+v, want %+v", heard, want)
	}
	head, middle, tail := chunkAt(10, 30, 1), chunkAt(45, 5, 2), chunkAt(60, 30, 1)
	tail.ChunkOff = 50
	head.Birth, middle.Birth, tail.Birth = 9, 9, 9
	if got := lookup(t, m, root2, 0, 1000); !slices.Equal(got, []Extent{head, middle, tail}) {
		t.Errorf("new root reads %+v", got)
	}
	if got := lookup(t, m, root, 0, 1000); !slices.Equal(got, []Extent{old}) {
		t.Errorf("old root reads %+v", got)
	}
	if root2 != (Root{ID: 2, Birth: 9}) {
		t.Errorf("root %+v", root2)
	}
}

// What changes nothing writes nothing, takes no id and says nothing.
func TestNoChangeIsSilent(t *testing.T) {
	db := openMem(t)
	m, ids := NewMap(db, nil), &counter{}
	at := uint64(300) << regionBits
	root := edit(t, db, m, Root{}, 5, ids.next, nopSink{}, func(u *Update) error { return u.Replace(at+100, 10, []Extent{chunkAt(at+100, 10, 1)}) })
	var heard tape
	taken := ids.n
	for _, r := range []Root{root, {}} {
		if got := edit(t, db, m, r, 9, ids.next, &heard, func(u *Update) error {
			return errors.Join(u.Replace(at, 100, nil), u.Replace(at+110, 100, nil), u.Replace(0, 100, nil), u.Replace(1<<50, 100, nil),
				u.Detach(0, at), u.Detach(at, 100), u.Detach(at+110, 1<<50), u.Detach(at+105, 0), u.Detach(1<<60, 1<<60))
		}); got != r {
			t.Errorf("root %+v became %+v", r, got)
		}
	}
	if !heard.silent() || ids.n != taken {
		t.Errorf("heard %+v, took %d ids", heard, ids.n-taken)
	}
}

func TestEmptyPagesAndNodesVanish(t *testing.T) {
	db := openMem(t)
	m, ids := NewMap(db, nil), &counter{}
	at := uint64(65536) << regionBits
	root := edit(t, db, m, Root{}, 5, ids.next, nopSink{}, func(u *Update) error { return u.Replace(at, 10, []Extent{chunkAt(at, 10, 1)}) })
	if root.Level != 3 {
		t.Fatalf("root %+v", root)
	}
	var heard tape
	got := edit(t, db, m, root, 9, ids.next, &heard, func(u *Update) error { return u.Replace(at, 4096, nil) })
	if got != (Root{}) || len(heard.killed) != 1 || len(heard.pages) != 1 || len(heard.nodes) != 3 {
		t.Errorf("root %+v, heard %+v", got, heard)
	}
}

// A detach of everything but two edges reads the two paths and reports what lies between as whole subtrees.
func TestDetachReadsTheEdgesOnly(t *testing.T) {
	db := openMem(t)
	ids := &counter{}
	const regions = 3 * 256
	root := edit(t, db, NewMap(db, nil), Root{}, 5, ids.next, nopSink{}, func(u *Update) error {
		for r := range uint64(regions) {
			if err := u.Replace(r<<regionBits, 100, []Extent{chunkAt(r<<regionBits, 50, 1), chunkAt(r<<regionBits+50, 50, 2)}); err != nil {
				return err
			}
		}
		return nil
	})
	g := &gets{Reader: db}
	var heard tape
	off, end := uint64(254<<regionBits+70), uint64(513<<regionBits+20)
	got := edit(t, db, NewMap(g, nil), root, 9, ids.next, &heard, func(u *Update) error { return u.Detach(off, end-off) })
	if g.n != 5 || len(heard.pages) != 2 || len(heard.nodes) != 3 || len(heard.killed) != 2 || len(heard.born) != 2 {
		t.Errorf("%d reads, heard %+v", g.n, heard)
	}
	var cut []Subtree
	for _, s := range heard.subtrees {
		cut = append(cut, Subtree{Level: s.Level, Region: s.Region})
	}
	if want := []Subtree{{Region: 255}, {Level: 1, Region: 256}, {Region: 512}}; !slices.Equal(cut, want) {
		t.Errorf("cut %+v, want %+v", cut, want)
	}
	if n := len(lookup(t, NewMap(db, nil), got, off, end-off)); n != 0 {
		t.Errorf("%d extents are left", n)
	}
	heard = tape{}
	if got := edit(t, db, NewMap(db, nil), got, 10, ids.next, &heard, func(u *Update) error { return u.Detach(0, block.MaxVolumeSize) }); got != (Root{}) || len(heard.subtrees) != 1 {
		t.Errorf("root %+v, heard %+v", got, heard)
	}
}

func TestUpdateRefusesBadInput(t *testing.T) {
	m := NewMap(openMem(t), nil)
	good := chunkAt(100, 10, 1)
	for name, do := range map[string]func(u *Update) error{
		"empty range": func(u *Update) error { return u.Replace(0, 0, nil) },
		"two regions": func(u *Update) error { return u.Replace(block.RegionSize-1, 2, nil) },
		"beyond any volume": func(u *Update) error {
			return u.Replace(block.MaxVolumeSize, 1, []Extent{chunkAt(block.MaxVolumeSize, 1, 1)})
		},
		"overflow":           func(u *Update) error { return u.Replace(1<<64-1, 2, nil) },
		"before the range":   func(u *Update) error { return u.Replace(101, 20, []Extent{good}) },
		"behind the range":   func(u *Update) error { return u.Replace(100, 9, []Extent{good}) },
		"overlap":            func(u *Update) error { return u.Replace(0, 1000, []Extent{good, chunkAt(109, 1, 2)}) },
		"order":              func(u *Update) error { return u.Replace(0, 1000, []Extent{good, chunkAt(50, 1, 2)}) },
		"no length":          func(u *Update) error { return u.Replace(0, 1000, []Extent{chunkAt(100, 0, 1)}) },
		"no chunk":           func(u *Update) error { return u.Replace(0, 1000, []Extent{chunkAt(100, 1, 0)}) },
		"no kind":            func(u *Update) error { return u.Replace(0, 1000, []Extent{{Off: 1, Len: 1}}) },
		"detach beyond":      func(u *Update) error { return u.Detach(1, block.MaxVolumeSize) },
		"detach overflowing": func(u *Update) error { return u.Detach(1<<63, 1<<63) },
	} {
		u := NewUpdate(m, nil, Root{}, 1, nil, nopSink{})
		err := do(u)
		if !errors.Is(err, block.ErrInvalid) && !errors.Is(err, block.ErrOutOfRange) {
			t.Errorf("%s: %v", name, err)
		}
		if _, again := u.Finish(); again == nil || again.Error() != err.Error() {
			t.Errorf("%s: Finish after it: %v", name, again)
		}
	}
	for _, tc := range []struct {
		root  Root
		birth block.Epoch
	}{{Root{}, 0}, {Root{ID: 1, Birth: 6}, 5}, {Root{ID: 1, Level: 6, Birth: 1}, 5}} {
		if _, err := NewUpdate(m, nil, tc.root, tc.birth, nil, nopSink{}).Finish(); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%+v: %v", tc, err)
		}
	}
}

func TestPageIsBounded(t *testing.T) {
	db := openMem(t)
	u := NewUpdate(NewMap(db, nil), db.NewBatch(), Root{}, 1, (&counter{}).next, nopSink{})
	full := make([]Extent, MaxExtents)
	for i := range full {
		full[i] = chunkAt(uint64(i)*10, 5, 1)
	}
	if err := u.Replace(0, block.RegionSize, full); err != nil {
		t.Fatal(err)
	}
	if err := u.Replace(8, 1, []Extent{chunkAt(8, 1, 1)}); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("one extent more: %v", err)
	}
}

func TestFinishIsFinal(t *testing.T) {
	u := NewUpdate(NewMap(openMem(t), nil), nil, Root{}, 1, nil, nopSink{})
	if _, err := u.Finish(); err != nil {
		t.Fatal(err)
	}
	if _, err := u.Finish(); !errors.Is(err, block.ErrClosed) {
		t.Errorf("second Finish: %v", err)
	}
	if err := u.Replace(0, 1, nil); !errors.Is(err, block.ErrClosed) {
		t.Errorf("Replace after Finish: %v", err)
	}
}
