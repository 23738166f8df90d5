package blockstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// What changed in a volume that has bitmaps is remembered by granules of 64 KiB, each with its epoch: that of the newest bitmap which a change of it is in. A change is in a bitmap when it was written to the node that the bitmap began with, or to
// a later one. So a granule has changed, to a bitmap, when its epoch is the bitmap's or higher, and one row serves all bitmaps of the volume; to add, clear or remove one touches no row.
//
// The rows tell of what is in maps: the metadata batch that brings the page of a region also brings them, so neither is ever durable without the other. What is still in layers tells of itself by its node.
//
// Rows are of levels, as the nodes of a map are. Each has 256 bits; a bit of level 0 is a granule, and one of level l > 0 as much as a row of level l−1: a trim of terabytes changes a few rows. Only what is written into layers counts. What destage,
// reclaim, cooling and the like store anew without changing it never comes here.

// keyTouched begins the rows of granules: T, volume u64, level u64, index u64 (docs/format/bitmap.md).
const keyTouched = 'T'

const (
	touchedKeySize  = 25
	touchedHead     = 8
	touchedEntry    = 40
	touchedVersion  = 1
	touchedRowBits  = 256
	touchedTopLevel = 5 // one row of it is more than the largest volume
)

// granules are the 256 bits of a row.
type granules [touchedRowBits / 64]uint64

func (g *granules) set(i uint64) { g[i/64] |= 1 << (i % 64) }

func (g *granules) has(i uint64) bool { return g[i/64]>>(i%64)&1 != 0 }

// allGranules are all bits of a row.
var allGranules = granules{^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}

// touchedKey names a row.
type touchedKey struct {
	volume block.VolumeID
	level  uint64
	index  uint64
}

func (k touchedKey) bytes() []byte {
	b := binary.BigEndian.AppendUint64(append(make([]byte, 0, touchedKeySize), keyTouched), uint64(k.volume))
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(b, k.level), k.index)
}

func parseTouchedKey(b []byte) (k touchedKey, err error) {
	if len(b) != touchedKeySize || b[0] != keyTouched {
		return k, &block.CorruptError{Source: "row of changed granules", Want: "a key of 25 B", Got: fmt.Sprintf("%x", b)}
	}
	return touchedKey{block.VolumeID(binary.BigEndian.Uint64(b[1:])), binary.BigEndian.Uint64(b[9:]), binary.BigEndian.Uint64(b[17:])}, nil
}

// touch is which bits of a row have an epoch.
type touch struct {
	epoch nodeID
	bits  granules
}

// touched is the content of a row, by descending epoch. No bit is in two of it.
type touched []touch

// encode is the value of the row under a key. The key is in the checksum, so a row in another's place is no row.
func (t touched) encode(key []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, touchedHead, touchedHead+touchedEntry*len(t))
	b[0], b[1] = touchedVersion, byte(len(t))
	for i := range t {
		b = le.AppendUint64(b, uint64(t[i].epoch))
		for _, word := range t[i].bits {
			b = le.AppendUint64(b, word)
		}
	}
	le.PutUint32(b[4:], sumTouched(key, b))
	return b
}

func sumTouched(key, value []byte) uint32 {
	sum := crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value[:4])
	return crc32.Update(sum, castagnoli, value[touchedHead:])
}

func decodeTouched(key, b []byte) (touched, error) {
	bad := func(at int, want string, got any) (touched, error) {
		return nil, &block.CorruptError{Source: fmt.Sprintf("row of changed granules %x", key), Offset: int64(at), Want: want, Got: fmt.Sprint(got)}
	}
	if len(b) < touchedHead || len(b) != touchedHead+touchedEntry*int(b[1]) || b[1] > MaxBitmaps {
		return bad(0, "a length that fits the number of epochs", fmt.Sprintf("%d B", len(b)))
	}
	if sum := binary.LittleEndian.Uint32(b[4:]); sum != sumTouched(key, b) {
		return bad(4, fmt.Sprintf("crc %08x", sumTouched(key, b)), fmt.Sprintf("%08x", sum))
	}
	if b[0] != touchedVersion || b[2]|b[3] != 0 {
		return nil, fmt.Errorf("row of changed granules %x, version %d: %w", key, b[0], block.ErrVersion)
	}
	t := make(touched, b[1])
	for i := range t {
		e := b[touchedHead+touchedEntry*i:]
		t[i].epoch = nodeID(binary.LittleEndian.Uint64(e))
		for k := range t[i].bits {
			t[i].bits[k] = binary.LittleEndian.Uint64(e[8+8*k:])
		}
		if i > 0 && t[i].epoch >= t[i-1].epoch {
			return bad(touchedHead+touchedEntry*i, "epochs in descending order", t[i].epoch)
		}
	}
	return t, nil
}

// with returns a row to which changes were added, for bitmaps of these epochs, which ascend: each bit gets the newest epoch that it has, lowered to the newest bitmap's that it is not older than. What is in no bitmap goes.
func (t touched) with(fresh touched, epochs []nodeID) touched {
	all := append(slices.Clone(t), fresh...)
	for i := range all {
		all[i].epoch = newestBefore(epochs, all[i].epoch)
	}
	slices.SortFunc(all, func(a, b touch) int { return cmp.Compare(b.epoch, a.epoch) })
	var out touched
	var seen granules
	for _, e := range all {
		if e.epoch == 0 {
			break
		}
		for k := range seen {
			e.bits[k] &^= seen[k]
			seen[k] |= e.bits[k]
		}
		if k := len(out); k > 0 && out[k-1].epoch == e.epoch {
			for i := range e.bits {
				out[k-1].bits[i] |= e.bits[i]
			}
		} else if e.bits != (granules{}) {
			out = append(out, e)
		}
	}
	return out
}

// newestBefore returns the highest of the ascending epochs that is not above id, or 0.
func newestBefore(epochs []nodeID, id nodeID) nodeID {
	i, found := slices.BinarySearch(epochs, id)
	switch {
	case found:
		return id
	case i == 0:
		return 0
	}
	return epochs[i-1]
}

// since returns the bits that have changed to a bitmap.
func (t touched) since(epoch nodeID) (g granules) {
	for i := range t {
		if t[i].epoch < epoch {
			break
		}
		for k := range g {
			g[k] |= t[i].bits[k]
		}
	}
	return g
}

// touchedRow reads a row; it is empty if there is none.
func (s *Store) touchedRow(key []byte) (touched, error) {
	b, closer, err := s.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read which granules changed: %w", err)
	}
	t, err := decodeTouched(key, b)
	return t, errors.Join(err, closer.Close())
}

// bitmapEpochs returns the epochs of a volume's bitmaps, ascending.
func (s *Store) bitmapEpochs(id block.VolumeID) (epochs []nodeID) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	v := s.volumes[id]
	if v == nil {
		return nil
	}
	for i := range v.bitmaps {
		epochs = append(epochs, v.bitmaps[i].Epoch)
	}
	slices.Sort(epochs)
	return slices.Compact(epochs)
}

// inBitmap reports whether a bitmap began with the node or before it.
func (s *Store) inBitmap(n *node) bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return slices.ContainsFunc(n.volume.bitmaps, func(b bitmap) bool { return b.Epoch <= n.id })
}

// touchSlots notes what of a region was written to a node: it goes into maps with this batch.
func (m *metaBatch) touchSlots(n *node, snap *overlay.RegionSnapshot) {
	if !m.s.inBitmap(n) {
		return
	}
	var g granules
	if snap.Zeroed != 0 {
		g = allGranules
	}
	for i := range snap.Slots {
		g.set(uint64(snap.Slots[i].Block) * block.Size / BitmapGranule)
	}
	switch g {
	case granules{}:
	case allGranules:
		m.touchRegions(n, snap.Region, 1) // one bit of a row that its neighbours share
	default:
		m.touch(touchedKey{n.volume.id, 0, snap.Region}, touch{n.id, g})
	}
}

// touchRegions is touchSlots for whole regions, however many.
func (m *metaBatch) touchRegions(n *node, first, count uint64) {
	if count == 0 || !m.s.inBitmap(n) {
		return
	}
	for at, end := first, first+count; at < end; {
		level, unit := uint64(1), uint64(1) // regions of a bit
		for level < touchedTopLevel && at%(unit*touchedRowBits) == 0 && end-at >= unit*touchedRowBits {
			level, unit = level+1, unit*touchedRowBits
		}
		var g granules
		row := at / unit / touchedRowBits
		for at/unit/touchedRowBits == row && end-at >= unit {
			g.set(at / unit % touchedRowBits)
			at += unit
		}
		m.touch(touchedKey{n.volume.id, level, row}, touch{n.id, g})
	}
}

func (m *metaBatch) touch(k touchedKey, t touch) {
	if m.touched == nil {
		m.touched = map[touchedKey]touched{}
	}
	m.touched[k] = append(m.touched[k], t)
}

// writeTouched writes the rows of what the batch noted. It reads which bitmaps there are before the batch captures the operations that it shows: what a removed one needed is forgotten only together with it.
func (m *metaBatch) writeTouched() error {
	var epochs []nodeID
	of := block.VolumeID(0)
	for k, fresh := range m.touched {
		if k.volume != of {
			of, epochs = k.volume, m.s.bitmapEpochs(k.volume)
		}
		if len(epochs) == 0 {
			continue
		}
		key := k.bytes()
		old, err := m.s.touchedRow(key)
		if errors.Is(err, block.ErrCorrupt) {
			// What it said is not known. To say too much costs a client time, and destage must not stop.
			m.s.report("read which granules changed", err)
			old, fresh, err = nil, touched{{epochs[len(epochs)-1], allGranules}}, nil
		}
		if err != nil {
			return err
		}
		switch row := old.with(fresh, epochs); {
		case slices.Equal(row, old):
		case len(row) == 0:
			m.delete(key)
		default:
			if err := m.b.Set(key, row.encode(key), nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// stepTouched removes some rows of volumes that have no bitmap any more, or are gone, and reports whether there were any.
func (s *Store) stepTouched(context.Context) (bool, error) {
	if !s.freeTouched.Swap(false) {
		return false, nil
	}
	m := s.beginMeta()
	n, err := m.dropTouched(rowsPerStep)
	if err != nil || n == 0 {
		m.abort()
		if err != nil {
			s.freeTouched.Store(true)
		}
		return false, err
	}
	s.freeTouched.Store(true) // there may be more
	return true, m.commit()
}

// dropTouched deletes at most limit rows that no bitmap needs. It looks at one row of each volume that has bitmaps.
func (m *metaBatch) dropTouched(limit int) (n int, err error) {
	it, err := m.s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{keyTouched}, UpperBound: []byte{keyTouched + 1}})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, it.Error(), it.Close()) }()
	for ok := it.First(); ok && n < limit; {
		k, err := parseTouchedKey(it.Key())
		if err != nil {
			return n, err
		}
		if len(m.s.bitmapEpochs(k.volume)) > 0 {
			ok = it.SeekGE(touchedKey{volume: k.volume + 1}.bytes())
			continue
		}
		m.delete(bytes.Clone(it.Key()))
		n++
		ok = it.Next()
	}
	return n, nil
}
