package extentmap

import (
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// deadIDs returns the births and ids on a list.
func deadIDs(t *testing.T, db *pebble.DB, volume block.VolumeID, snapshot, minBirth, maxBirth block.Epoch) (births, ids []uint64) {
	t.Helper()
	if err := ScanDead(db, volume, snapshot, minBirth, maxBirth, func(k DeadKey, dead []Dead) (bool, error) {
		for _, d := range dead {
			births, ids = append(births, uint64(k.Birth)), append(ids, d.ID)
		}
		return true, nil
	}); err != nil {
		t.Fatal(err)
	}
	return births, ids
}

func TestDeadlistRanges(t *testing.T) {
	db := openMem(t)
	ids := &counter{}
	l := NewDeadlist(ids.next)
	for birth := block.Epoch(1); birth <= 6; birth++ {
		l.Add(3, 10, birth, Dead{Kind: DeadChunk, ID: uint64(birth)})
	}
	l.Add(3, 9, 4, Dead{Kind: DeadPage, ID: 100})
	l.Add(3, 11, 4, Dead{Kind: DeadPage, ID: 101})
	l.Add(2, 10, 4, Dead{Kind: DeadPage, ID: 102})
	l.Add(4, 10, 4, Dead{Kind: DeadPage, ID: 103})
	for id := range uint64(600) {
		l.Add(5, 1<<63, 1<<63, Dead{Kind: DeadNode, ID: id + 1})
	}
	b := db.NewBatch()
	if err := errors.Join(l.Flush(b), l.Flush(b), b.Commit(pebble.NoSync)); err != nil {
		t.Fatal(err)
	}
	if b.Count() != 13 {
		t.Errorf("%d rows, want 13", b.Count())
	}
	check := func(snapshot, lo, hi block.Epoch, want ...uint64) {
		t.Helper()
		if _, got := deadIDs(t, db, 3, snapshot, lo, hi); !slices.Equal(got, want) {
			t.Errorf("births in (%d, %d] of %d: %v, want %v", lo, hi, snapshot, got, want)
		}
	}
	check(10, 0, 10, 1, 2, 3, 4, 5, 6)
	check(10, 3, 5, 4, 5)
	check(10, 5, 5)
	if _, got := deadIDs(t, db, 5, 1<<63, 1<<63-1, 1<<64-1); len(got) != 600 {
		t.Errorf("%d entries of a large list", len(got))
	}

	for i, want := range []int{2, 2, 0} {
		b := db.NewBatch()
		moved, err := MoveDead(db, b, 3, 10, 9, 4, 2)
		if err := errors.Join(err, b.Commit(pebble.NoSync)); err != nil || moved != want {
			t.Errorf("move %d: %d rows, %v", i, moved, err)
		}
	}
	check(10, 0, 10, 5, 6)
	check(9, 0, 10, 1, 2, 3, 100, 4)
	check(11, 0, 10, 101)
}

func TestScanDeadStopsAndReportsDamage(t *testing.T) {
	db := openMem(t)
	k := DeadKey{Volume: 1, Snapshot: 2, Birth: 1, N: 1}
	good := EncodeDead([]Dead{{Kind: DeadPage, ID: 1}})
	for n := range uint64(3) {
		k.N = n
		if err := db.Set(k.Bytes(), good, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
	}
	rows := 0
	if err := ScanDead(db, 1, 2, 0, 2, func(DeadKey, []Dead) (bool, error) { rows++; return rows < 2, nil }); err != nil || rows != 2 {
		t.Errorf("%d rows, %v", rows, err)
	}
	if err := db.Set(k.Bytes(), good[:20], pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := ScanDead(db, 1, 2, 0, 2, func(DeadKey, []Dead) (bool, error) { return true, nil }); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("damaged row: %v", err)
	}
}

func TestJobsInOrder(t *testing.T) {
	db := openMem(t)
	want := Job{Kind: JobSnapshot, Snapshot: 5, Previous: 2}
	for _, v := range []block.VolumeID{2, 1, 3} {
		for _, n := range []uint64{300, 2, ^uint64(0)} {
			if err := db.Set(JobKey(v, n), EncodeJob(want), pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
	}
	for volume, count := range map[block.VolumeID]int{0: 9, 1: 3, 2: 3, 3: 3, 4: 0} {
		var got []uint64
		if err := ScanJobs(db, volume, func(v block.VolumeID, n uint64, j Job) (bool, error) {
			if j != want || volume != 0 && v != volume {
				t.Errorf("job %d of volume %d: %+v", n, v, j)
			}
			got = append(got, n)
			return true, nil
		}); err != nil || len(got) != count || count == 3 && !slices.IsSorted(got) {
			t.Errorf("jobs of volume %d: %v, %v", volume, got, err)
		}
	}
}
