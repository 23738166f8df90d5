package extentmap

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Ranger reads rows in the order of their keys. A *pebble.DB, a *pebble.Snapshot and an indexed *pebble.Batch fit.
type Ranger interface {
	NewIter(o *pebble.IterOptions) (*pebble.Iterator, error)
}

// DeadKind says what a dead thing is. These constants are part of the disk format and should not be changed.
type DeadKind uint8

const (
	// DeadPage is one page; the extents that it lists are not meant.
	DeadPage DeadKind = 1
	// DeadNode is one node without what is under it.
	DeadNode DeadKind = 2
	// DeadChunk is one reference to a chunk.
	DeadChunk DeadKind = 3
	// DeadSubtree is a page or node with all that is under it, extents too.
	DeadSubtree DeadKind = 4
)

// Dead is something that a head no longer needs, but a snapshot still does.
type Dead struct {
	Kind   DeadKind
	ID     uint64 // of the page, node or chunk
	Level  uint8  // of DeadSubtree; else 0
	Region uint64 // of DeadSubtree, its first region; else 0
}

// DeadKey names a deadlist row. Rows of one snapshot are in the order of births.
type DeadKey struct {
	Volume   block.VolumeID
	Snapshot block.Epoch // the newest snapshot that needs the row's entries
	Birth    block.Epoch // of all entries of the row
	N        uint64      // makes the key unique
}

// Bytes returns the row's key in the store.
func (k DeadKey) Bytes() []byte {
	return key(prefixDead, uint64(k.Volume), uint64(k.Snapshot), uint64(k.Birth), k.N)
}

func parseDeadKey(b []byte) (DeadKey, error) {
	if len(b) != 33 || b[0] != prefixDead {
		return DeadKey{}, &block.CorruptError{Source: "deadlist", Want: "a key of 33 B", Got: fmt.Sprintf("%x", b)}
	}
	f := func(i int) uint64 { return binary.BigEndian.Uint64(b[1+8*i:]) }
	return DeadKey{Volume: block.VolumeID(f(0)), Snapshot: block.Epoch(f(1)), Birth: block.Epoch(f(2)), N: f(3)}, nil
}

// Deadlist gathers the dead of one batch and writes them in rows of at most DeadPerRow.
type Deadlist struct {
	alloc func() uint64
	rows  map[DeadKey][]Dead // N is 0
}

// NewDeadlist returns an empty Deadlist. alloc gives numbers that make keys unique in the whole store, also after a restart.
func NewDeadlist(alloc func() uint64) *Deadlist {
	return &Deadlist{alloc: alloc, rows: make(map[DeadKey][]Dead)}
}

// Add puts something that was born at birth on the deadlist of a snapshot.
func (l *Deadlist) Add(volume block.VolumeID, snapshot, birth block.Epoch, d Dead) {
	k := DeadKey{Volume: volume, Snapshot: snapshot, Birth: birth}
	l.rows[k] = append(l.rows[k], d)
}

// Flush writes the rows in the order of their keys and empties the list.
func (l *Deadlist) Flush(w Writer) error {
	for _, k := range slices.SortedFunc(maps.Keys(l.rows), compareDeadKeys) {
		for part := range slices.Chunk(l.rows[k], DeadPerRow) {
			k.N = l.alloc()
			if err := w.Set(k.Bytes(), EncodeDead(part), nil); err != nil {
				return fmt.Errorf("write deadlist of volume %d: %w", k.Volume, err)
			}
		}
	}
	clear(l.rows)
	return nil
}

func compareDeadKeys(a, b DeadKey) int {
	return cmp.Or(cmp.Compare(a.Volume, b.Volume), cmp.Compare(a.Snapshot, b.Snapshot), cmp.Compare(a.Birth, b.Birth))
}

// ScanDead calls visit with each row of a snapshot's deadlist whose entries were born after minBirth and at or before maxBirth, in the order of births, until visit
// returns false or an error. A visit that frees a row deletes its key in the caller's batch; the next scan then starts behind it.
func ScanDead(r Ranger, volume block.VolumeID, snapshot, minBirth, maxBirth block.Epoch, visit func(k DeadKey, dead []Dead) (more bool, err error)) error {
	return scanDead(r, volume, snapshot, minBirth, maxBirth, func(k DeadKey, value []byte) (bool, error) {
		dead, err := DecodeDead(k, value)
		if err != nil {
			return false, err
		}
		return visit(k, dead)
	})
}

// MoveDead puts the rows of a snapshot's deadlist that were born at or before maxBirth on the list of another snapshot, at most limit rows. It reports how many it
// moved; less than limit means that none is left.
func MoveDead(r Ranger, w Writer, volume block.VolumeID, from, to, maxBirth block.Epoch, limit int) (moved int, err error) {
	err = scanDead(r, volume, from, 0, maxBirth, func(k DeadKey, value []byte) (bool, error) {
		if moved == limit {
			return false, nil
		}
		if err := w.Delete(k.Bytes(), nil); err != nil {
			return false, err
		}
		k.Snapshot = to
		moved++
		return true, w.Set(k.Bytes(), value, nil)
	})
	return moved, err
}

// scanDead visits rows with births in (minBirth, maxBirth]; their values are borrowed.
func scanDead(r Ranger, volume block.VolumeID, snapshot, minBirth, maxBirth block.Epoch, visit func(k DeadKey, value []byte) (bool, error)) error {
	if minBirth >= maxBirth {
		return nil
	}
	lower := DeadKey{Volume: volume, Snapshot: snapshot, Birth: minBirth + 1}.Bytes()
	upper := append(DeadKey{Volume: volume, Snapshot: snapshot, Birth: maxBirth, N: ^uint64(0)}.Bytes(), 0)
	return scan(r, lower, upper, func(key, value []byte) (bool, error) {
		k, err := parseDeadKey(key)
		if err != nil {
			return false, err
		}
		return visit(k, value)
	})
}

// scan visits the rows in [lower, upper); keys and values are borrowed.
func scan(r Ranger, lower, upper []byte, visit func(key, value []byte) (bool, error)) (err error) {
	it, err := r.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return fmt.Errorf("scan %x: %w", lower, err)
	}
	defer func() {
		if e := it.Close(); err == nil && e != nil {
			err = fmt.Errorf("scan %x: %w", lower, e)
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err != nil {
			return fmt.Errorf("scan %x: %w", it.Key(), err)
		}
		if more, err := visit(it.Key(), value); err != nil || !more {
			return err
		}
	}
	return nil
}
