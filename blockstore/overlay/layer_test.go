package overlay

import (
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const tib = uint64(1<<40) / block.Size // blocks

// kindAt returns what a layer shows for one block.
func kindAt(l *Layer, b uint64) (k Kind, pos uint64) {
	l.Lookup(b, 1, func(r Run) { k, pos = r.Kind, r.Pos })
	return k, pos
}

// TestDropKeepsNewer drops a snapshot after newer records came in for each kind of thing that a snapshot holds.
func TestDropKeepsNewer(t *testing.T) {
	for _, c := range []struct {
		name  string
		newer func(l *Layer)
		want  Kind // of block 3 after the drop
	}{
		{"nothing newer", func(*Layer) {}, Absent},
		{"slot over slot", func(l *Layer) { l.PublishWrite(3, 900<<12, []uint32{9}) }, Data},
		{"zero slot over slot", func(l *Layer) { l.PublishZero(3, 1, 900<<12) }, Zero},
		{"leaf base over slot", func(l *Layer) { l.PublishZero(0, leafBlocks, 900<<12) }, Zero},
		{"region tombstone over slot", func(l *Layer) { l.PublishZero(0, block.BlocksPerRegion, 900<<12) }, Zero},
		{"range tombstone over slot", func(l *Layer) { l.PublishZero(0, GroupRegions*block.BlocksPerRegion, 900<<12) }, Zero},
	} {
		for _, first := range []string{"slots", "base", "region"} {
			l := NewLayer(NewBudget(1 << 20))
			switch first {
			case "slots":
				l.PublishWrite(0, 100<<12, []uint32{1, 2, 3, 4, 5})
			case "base":
				l.PublishZero(0, leafBlocks, 100<<12)
			case "region":
				l.PublishZero(0, block.BlocksPerRegion, 100<<12)
			}
			var snap RegionSnapshot
			l.SnapshotRegion(0, 800<<12, &snap)
			c.newer(l)
			if !l.DropRegion(&snap) {
				t.Errorf("%s after %s: drop refused", c.name, first)
			}
			if got, _ := kindAt(l, 3); got != c.want {
				t.Errorf("%s after %s: kind %d, want %d", c.name, first, got, c.want)
			}
			audit(t, l)
		}
	}
}

// TestDroppedTombstoneKeepsGraves lays a tombstone that is too large to be swept at once, and drops it: nothing below may come to life.
func TestDroppedTombstoneKeepsGraves(t *testing.T) {
	l := NewLayer(NewBudget(1 << 30))
	const regions = 40000
	for r := range uint64(regions) {
		l.PublishWrite(r*block.BlocksPerRegion+r%block.BlocksPerRegion, (10+r)<<12, []uint32{1})
		if r%10 == 0 {
			l.PublishZero(r*block.BlocksPerRegion+leafBlocks, leafBlocks, 9<<12)
		}
	}
	tomb := Tombstone{First: 0, N: 2 * tib / block.BlocksPerRegion, Pos: (10 + regions) << 12}
	l.PublishZero(0, 2*tib, tomb.Pos)
	if l.Blocks() == 0 {
		t.Fatal("the tombstone was swept at once: this test shows nothing")
	}
	l.Lookup(0, 2*tib, func(r Run) {
		if r.Kind != Zero || r.N != 2*tib {
			t.Fatalf("%+v shows through the tombstone", r)
		}
	})
	var snap RegionSnapshot
	for r := range uint64(regions) {
		if l.SnapshotRegion(r, NoPos-1, &snap); !snap.Empty() || snap.CoveredBy != tomb.Pos {
			t.Fatalf("region %d: %d slots below the tombstone would be destaged", r, len(snap.Slots))
		}
	}
	l.PublishWrite(5, 9<<12, []uint32{1}) // late, and older than the tombstone
	if k, _ := kindAt(l, 5); k != Zero {
		t.Fatalf("a late write below a tombstone shows: kind %d", k)
	}
	const fresh = 4000 // new regions while the sweep is under way: its walk gets longer
	for r := range uint64(fresh) {
		l.PublishWrite((regions+r)*block.BlocksPerRegion, tomb.Pos+(1+r)*block.Size, []uint32{7})
	}
	if got := l.Tombstones(nil); !slices.Equal(got, []Tombstone{tomb}) {
		t.Fatalf("tombstones %v", got)
	}
	l.DropTombstone(Tombstone{First: 0, N: tomb.N, Pos: tomb.Pos - 1})
	if got := l.Tombstones(nil); len(got) != 1 {
		t.Fatal("a tombstone at another position was dropped")
	}
	l.DropTombstone(tomb)
	l.Lookup(0, 2*tib, func(r Run) {
		if r.Kind != Absent && r.Block < regions*block.BlocksPerRegion {
			t.Fatalf("%+v came to life", r)
		}
	})
	if l.Blocks() != fresh || l.OldestPos() != tomb.Pos+block.Size {
		t.Fatalf("%d blocks, oldest %d", l.Blocks(), l.OldestPos())
	}
	audit(t, l)
}

// TestLateTombstone lays a range tombstone late, between a region's older tombstone and its newer slot: the older one must go.
func TestLateTombstone(t *testing.T) {
	l := NewLayer(NewBudget(1 << 20))
	l.PublishZero(0, block.BlocksPerRegion, 1<<12)
	l.PublishWrite(5, 3<<12, []uint32{5})
	l.PublishZero(0, GroupRegions*block.BlocksPerRegion, 2<<12)
	l.DropTombstone(l.Tombstones(nil)[0])
	if k, _ := kindAt(l, 4); k != Absent {
		t.Fatalf("kind %d of a block whose zeroes are all destaged", k)
	}
	if k, pos := kindAt(l, 5); k != Data || pos != 3<<12 {
		t.Fatalf("kind %d at %d of a newer slot", k, pos)
	}
	audit(t, l)
}

// TestTombstonesOverlap lays a newer range over parts of older ones and an older one late.
func TestTombstonesOverlap(t *testing.T) {
	const g, blocks = uint64(GroupRegions), uint64(GroupRegions * block.BlocksPerRegion)
	l := NewLayer(NewBudget(1 << 20))
	l.PublishZero(0, 8*blocks, 100)
	l.PublishZero(2*blocks, 2*blocks, 300)
	l.PublishZero(blocks, 6*blocks, 200) // below 300, over 100
	want := []Tombstone{{0, g, 100}, {g, g, 200}, {2 * g, 2 * g, 300}, {4 * g, 3 * g, 200}, {7 * g, g, 100}}
	if got := l.Tombstones(nil); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	l.DropTombstone(Tombstone{First: g, N: 6 * g, Pos: 200})
	want = []Tombstone{{0, g, 100}, {2 * g, 2 * g, 300}, {7 * g, g, 100}}
	if got := l.Tombstones(nil); !slices.Equal(got, want) {
		t.Fatalf("got %v, want %v", got, want)
	}
	if got := l.OldestPos(); got != 100 {
		t.Fatalf("oldest %d: a range tombstone holds the log", got)
	}
}

// TestCoveredRegion checks that a region below a range tombstone says so, and is not dropped before it.
func TestCoveredRegion(t *testing.T) {
	l := NewLayer(NewBudget(1 << 20))
	l.PublishZero(0, GroupRegions*block.BlocksPerRegion, 100<<12)
	l.PublishWrite(5, 200<<12, []uint32{5})
	var snap RegionSnapshot
	if l.SnapshotRegion(0, 50<<12, &snap); snap.Void() || !snap.Empty() {
		t.Fatalf("below the tombstone: %+v", snap)
	}
	l.SnapshotRegion(0, 300<<12, &snap)
	if snap.CoveredBy != 100<<12 || snap.Zeroed != 0 || len(snap.Slots) != 1 {
		t.Fatalf("snapshot %+v", snap)
	}
	if l.DropRegion(&snap) {
		t.Fatal("dropped below a tombstone: the block would read as zero instead of from its page")
	}
	l.DropTombstone(l.Tombstones(nil)[0])
	if !l.DropRegion(&snap) || !l.Empty() {
		t.Fatal("not dropped after the tombstone")
	}
}

// TestOldestRegions compares the order with a sort of everything, after overwrites made bounds stale.
func TestOldestRegions(t *testing.T) {
	l := NewLayer(NewBudget(1 << 20))
	pos := uint64(1)
	write := func(region uint64) {
		l.PublishWrite(region*block.BlocksPerRegion, pos<<12, []uint32{1})
		pos++
	}
	for region := range uint64(500) {
		write(region)
	}
	for region := range uint64(500) {
		if region%3 != 0 {
			write(region) // replaces the only slot: the oldest position of these regions moves
		}
	}
	all := l.OldestRegions(1000, nil)
	if len(all) != 500 || !slices.IsSortedFunc(all, func(a, b RegionInfo) int { return int(a.OldestPos) - int(b.OldestPos) }) {
		t.Fatalf("%d regions, or not in order", len(all))
	}
	if all[1].Region != 3 || all[1].OldestPos != 4<<12 || all[1].Blocks != 1 {
		t.Fatalf("second oldest is %+v", all[1])
	}
	keep := []RegionInfo{{Region: 12345}}
	if got := l.OldestRegions(7, keep); !slices.Equal(got[1:], all[:7]) || got[0] != keep[0] {
		t.Fatalf("got %v, want %v", got, all[:7])
	}
}

// TestOldestPosAdvances drops regions oldest first: the release watermark must follow each drop.
func TestOldestPosAdvances(t *testing.T) {
	l := NewLayer(NewBudget(1 << 20))
	for region := range uint64(200) {
		l.PublishWrite(region*block.BlocksPerRegion, (1+region)<<12, []uint32{1})
	}
	var snap RegionSnapshot
	for region := range uint64(200) {
		if got := l.OldestPos(); got != (1+region)<<12 {
			t.Fatalf("oldest %d, want %d", got, (1+region)<<12)
		}
		l.SnapshotRegion(region, NoPos-1, &snap)
		l.DropRegion(&snap)
	}
	if l.OldestPos() != NoPos || !l.Empty() {
		t.Fatal("not empty")
	}
}

// TestLastRegions uses the highest blocks of the largest volume, and zeroes all of it.
func TestLastRegions(t *testing.T) {
	l := NewLayer(NewBudget(1 << 20))
	const blocks = uint64(block.MaxVolumeSize+1) / block.Size
	l.PublishZero(0, blocks, 1<<12)
	l.PublishWrite(blocks-2, 2<<12, []uint32{1, 2})
	var runs []Run
	runs, _ = l.LookupInto(runs, nil, blocks-3, 3)
	if len(runs) != 2 || runs[0].Kind != Zero || runs[1].Kind != Data || !slices.Equal(runs[1].Sums, []uint32{1, 2}) {
		t.Fatalf("runs %+v", runs)
	}
	if l.Bytes() > 64<<10 {
		t.Fatalf("%d bytes for an 8 EiB trim", l.Bytes())
	}
}

// TestFullBaseGoes fills the blocks of a zeroed leaf one by one: the base must go with the last, as 64 slots leave no room for it.
func TestFullBaseGoes(t *testing.T) {
	l := NewLayer(NewBudget(1 << 20))
	l.PublishZero(0, leafBlocks, 1<<12)
	for b := range uint64(leafBlocks) {
		l.PublishWrite(b, (2+b)<<12, []uint32{uint32(b)})
		audit(t, l)
	}
	l.PublishZero(0, leafBlocks, 1<<12) // late
	if got := l.OldestPos(); got != 2<<12 {
		t.Fatalf("oldest %d: the base is still there", got)
	}
}
