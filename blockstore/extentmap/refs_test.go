package extentmap

import (
	"errors"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// resolve commits refs and returns the chunks that fell to 0.
func resolve(t *testing.T, db *pebble.DB, r *Refs) (zero []block.ChunkID, err error) {
	t.Helper()
	b := db.NewBatch()
	if err := r.Resolve(db, b, func(c block.ChunkID, _, after uint64) error {
		if after == 0 {
			zero = append(zero, c)
		}
		return nil
	}); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return zero, b.Commit(pebble.NoSync)
}

func TestRefsCount(t *testing.T) {
	db := openMem(t)
	var r Refs
	for step, tc := range []struct {
		fresh  bool
		delta  int64
		zero   bool
		rowSet bool
		count  uint64
	}{
		{fresh: true, delta: 1, count: 1},
		{delta: 0, count: 1},
		{delta: 2, count: 3, rowSet: true},
		{delta: -1, count: 2, rowSet: true},
		{delta: -1, count: 1},
		{delta: 4, count: 5, rowSet: true},
		{delta: -5, zero: true, count: 1},
		{fresh: true, delta: 0, zero: true, count: 1},
		{fresh: true, delta: 3, count: 3, rowSet: true},
	} {
		if tc.fresh {
			r.New(7)
		}
		r.Add(7, tc.delta+1)
		r.Add(7, -1)
		r.Add(1<<40, 0)
		zero, err := resolve(t, db, &r)
		if err != nil || slices.Equal(zero, []block.ChunkID{7}) != tc.zero || r.Len() != 0 {
			t.Errorf("step %d: %v fell to 0, %v", step, zero, err)
		}
		_, row, err := readRef(db, 7)
		count, err2 := ReadRef(db, 7)
		if err != nil || err2 != nil || row != tc.rowSet || count != tc.count {
			t.Errorf("step %d: count %d, row %v, %v", step, count, row, errors.Join(err, err2))
		}
	}
}

func TestRefsBelowZeroIsCorruption(t *testing.T) {
	db := openMem(t)
	var r Refs
	r.Add(7, -2)
	if _, err := resolve(t, db, &r); !errors.Is(err, block.ErrCorrupt) {
		t.Errorf("1-2: %v", err)
	}
}

func TestRefRowIsChecked(t *testing.T) {
	db := openMem(t)
	for _, value := range [][]byte{{}, {2, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0}, {1, 0, 0, 0, 0, 0, 0, 0}, {2, 0, 0, 0, 0, 0, 0, 0x80}, {2, 0, 0, 0, 0, 0, 0, 0, 0}} {
		if err := db.Set(RefKey(7), value, pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if n, err := ReadRef(db, 7); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%x reads as %d, %v", value, n, err)
		}
	}
}
