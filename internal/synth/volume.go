package synth

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc64"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Offsets in rows that exist already (docs/format/meta.md).
const (
	volumeName = 120 // u16 length, then the name
	volumeSize = 32
	volumeHead = 40

	nodeFlagsAt   = 1 // started is bit 1
	nodeRootLevel = 2
	nodeParent    = 24
	nodeRoot      = 32
	nodeRootBirth = 40
	nodeMapped    = 80
	nodeSize      = 90 // without a name, as heads are

	countersSize  = 136
	atNextChunk   = 24
	atNextPage    = 32
	atStoreID     = 80
	atNextSegment = 40
	atUnique      = 64
	atShared      = 72
	atSegments    = 96
	atRowSum      = 120
)

// volume is the one that gets the map.
type volume struct {
	size    uint64 // bytes
	head    block.Epoch
	headRow []byte
}

func (v *volume) headKey() []byte { return key('S', uint64(v.head)) }

// key is a row's key with one number.
func key(prefix byte, n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{prefix}, n) }

// sumRows puts the sum of the rows of volumes, nodes and segments into the counters, with the head's row as it will be.
func (v *volume) sumRows(db *pebble.DB, counters []byte) error {
	table := crc64.MakeTable(crc64.ECMA)
	total := uint64(0)
	add := func(k, value []byte) { total += crc64.Update(crc64.Update(0, table, k), table, value) }
	var err error
	for _, prefix := range []byte("VSG") {
		err = errors.Join(err, scan(db, prefix, func(k, value []byte) error {
			if !bytes.Equal(k, v.headKey()) {
				add(k, value)
			}
			return nil
		}))
	}
	add(v.headKey(), v.headRow)
	setField(counters, atRowSum, total)
	return err
}

// readRow returns a copy of a row of a known size.
func readRow(db *pebble.DB, k []byte, size int) ([]byte, error) {
	b, closer, err := db.Get(k)
	if err != nil {
		return nil, fmt.Errorf("row %q: %w", k, err)
	}
	row := append([]byte(nil), b...)
	if err := closer.Close(); err != nil {
		return nil, err
	}
	if len(row) != size {
		return nil, &block.CorruptError{Source: fmt.Sprintf("row %q", k), Want: fmt.Sprintf("%d B", size), Got: fmt.Sprintf("%d B", len(row))}
	}
	return row, nil
}

// scan calls visit with the rows of a prefix, lent until it returns.
func scan(db *pebble.DB, prefix byte, visit func(key, value []byte) error) error {
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err == nil {
			err = visit(it.Key(), value)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return it.Close()
}

// findVolume looks a volume up by its name and refuses one that has a map or a past.
func findVolume(db *pebble.DB, name string) (*volume, error) {
	var v *volume
	err := scan(db, 'V', func(_, row []byte) error {
		if string(row[volumeName+2:]) == name {
			v = &volume{size: field(row, volumeSize), head: block.Epoch(field(row, volumeHead))}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if v == nil {
		return nil, fmt.Errorf("volume %q: %w", name, block.ErrNotFound)
	}
	if v.headRow, err = readRow(db, v.headKey(), nodeSize); err != nil {
		return nil, err
	}
	if field(v.headRow, nodeRoot) != 0 || field(v.headRow, nodeParent) != 0 {
		return nil, fmt.Errorf("volume %q has a map or a snapshot: %w", name, block.ErrInUse)
	}
	return v, nil
}

// setRoot makes t the map of the volume.
func (v *volume) setRoot(t *tree) {
	root := t.root()
	v.headRow[nodeFlagsAt] |= 1 << 1
	v.headRow[nodeRootLevel] = root.Level
	setField(v.headRow, nodeRoot, root.ID)
	setField(v.headRow, nodeRootBirth, uint64(root.Birth))
	setField(v.headRow, nodeMapped, t.mapped())
}
