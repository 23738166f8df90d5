package blockstore

import (
	"errors"
	"hash/crc64"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Rows of volumes, nodes and segments have no checksum of their own. The counters carry one over all of them: a start reads them anyway, and a row that is stale, swapped or
// gone, in a table of Pebble that is sound by itself, is noticed there. What else such a row could lead to is another state of a volume, without a word.

// rowKey is the key of such a row.
type rowKey [9]byte

var rowSumTable = crc64.MakeTable(crc64.ECMA)

// sumRow is what one row adds, modulo 2^64, to the checksum (docs/format/meta.md).
func sumRow(key, value []byte) uint64 {
	return crc64.Update(crc64.Update(0, rowSumTable, key), rowSumTable, value)
}

// setRow sets a row of volumes, nodes or segments.
func (m *metaBatch) setRow(key, value []byte) error {
	m.sumRow(key, sumRow(key, value))
	return m.b.Set(key, value, nil)
}

// deleteRow deletes a row of volumes, nodes or segments.
func (m *metaBatch) deleteRow(key []byte) error {
	m.sumRow(key, 0)
	return m.b.Delete(key, nil)
}

// sumRow puts the part of one row in the place of what it was, in the counters of this batch.
func (m *metaBatch) sumRow(key []byte, sum uint64) {
	k := rowKey(key)
	was, changed := m.sums[k]
	if !changed {
		was = m.s.sums[k]
	}
	m.c.RowSum += sum - was
	m.sums[k] = sum
}

// keepSums makes the sums of a committed batch those of the store.
func (m *metaBatch) keepSums() {
	for k, sum := range m.sums {
		if sum == 0 {
			delete(m.s.sums, k)
		} else {
			m.s.sums[k] = sum
		}
	}
}

// errRowSum says that the rows are not those that were written together.
func (s *Store) errRowSum() error {
	return &block.CorruptError{Source: s.path(metaDir), Want: "rows of volumes, nodes and segments that belong together", Got: "some of another time, or of nobody"}
}

// sumLoaded gives the store the sums of the rows that it loads, and compares them with the counters.
func (s *Store) sumLoaded() error {
	total := uint64(0)
	var err error
	for _, table := range []byte{keyVolume, keySnapshot, keySegment} {
		err = errors.Join(err, s.scanRows(table, func(key, value []byte) error {
			if len(key) != len(rowKey{}) {
				return &block.CorruptError{Source: s.path(metaDir), Want: "keys of 9 bytes", Got: string(key)}
			}
			sum := sumRow(key, value)
			s.sums[rowKey(key)] = sum
			total += sum
			return nil
		}))
	}
	if err == nil && s.c.summed && s.c.RowSum != total {
		err = s.errRowSum()
	}
	s.c.RowSum, s.c.summed = total, true
	return err
}
