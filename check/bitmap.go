package check

import (
	"encoding/binary"
	"fmt"
)

// docs/format/bitmap.md
const (
	tableTouched    = 'T'
	touchedTopLevel = 5
	touchedRowBits  = 256
	maxBitmaps      = 64

	// superBitmaps is the ro-compat feature: volumes may have bitmaps, and the log records of them.
	superBitmaps = 1 << 1
)

// bitmapRow is a bitmap in the row of its volume.
type bitmapRow struct {
	ID      uint64 `json:"id"`
	Epoch   uint64 `json:"epoch"`
	SinceNs int64  `json:"sinceNs"`
	Size    uint64 `json:"size"`
	All     bool   `json:"all"` // rolled back since
	Name    string `json:"name"`
}

// bitmaps reads those of a volume row of version 2.
func (f *fields) bitmaps() (all []bitmapRow) {
	at := f.at
	n := f.u32()
	f.rule(0 < n && n <= maxBitmaps, at, "1 to 64 bitmaps", "%d", n)
	names := map[string]bool{}
	for range min(n, maxBitmaps) {
		at := f.at
		flags := f.u8()
		f.reserved(3)
		b := bitmapRow{ID: f.u64(), Epoch: f.u64(), SinceNs: int64(f.u64()), Size: f.u64(), All: flags == 1, Name: f.text()}
		if f.err != nil {
			return all
		}
		f.rule(flags <= 1, at, "known flags", "%02x", flags)
		f.rule(0 < b.ID && b.ID <= b.Epoch, at+4, "a bitmap that began when it was added or later", "%d, %d", b.ID, b.Epoch)
		f.rule(sizeOK(b.Size), at+28, "a size of whole sectors below 8 EiB", "%d", b.Size)
		f.rule(nameOK(b.Name) && !names[b.Name], at+36, "a name of 1 to 128 B of its own", "%q", b.Name)
		names[b.Name] = true
		all = append(all, b)
	}
	return all
}

// checkBitmaps checks what a volume says of its bitmaps.
func (r *run) checkBitmaps(v *volumeRow) {
	u := unit64(tableVolume, v.ID)
	r.expect(len(v.Bitmaps) == 0 || r.super.ROCompat&superBitmaps != 0, u, 0, "no bitmaps without the feature in the superblock", len(v.Bitmaps))
	for _, b := range v.Bitmaps {
		r.expect(b.Epoch <= r.tree.counters.AppliedSeq, u, 0, fmt.Sprintf("bitmaps that began by record %d", r.tree.counters.AppliedSeq), b.Epoch)
		r.expect(b.Size <= v.Size || b.All, u, 0, fmt.Sprintf("bitmaps of at most %d B", v.Size), b.Size)
		_, taken := r.tree.names[snapshotName{v.ID, b.Name}]
		r.expect(!taken, u, 0, "a name that no snapshot of the volume has", b.Name)
	}
}

// touch is which bits of a row of granules have an epoch.
type touch struct {
	Epoch uint64
	Bits  [4]uint64
}

func parseTouched(key, b []byte) ([]touch, error) {
	f := &fields{b: b}
	f.rule(len(b) >= 8, 0, "at least 8 B", "%d B", len(b))
	if f.err != nil {
		return nil, f.err
	}
	f.err = checkSum(4, crcMore(crcMore(crc(key), b[:4]), b[8:]), binary.LittleEndian.Uint32(b[4:]))
	f.rule(b[0] == 1, 0, "version 1", "%d", b[0])
	f.u8()
	n := f.u8()
	f.reserved(2)
	f.take(4)
	f.rule(0 < n && n <= maxBitmaps, 1, "1 to 64 epochs", "%d", n)
	var all []touch
	var seen [4]uint64
	for i := range int(min(n, maxBitmaps)) {
		at := f.at
		t := touch{Epoch: f.u64(), Bits: [4]uint64{f.u64(), f.u64(), f.u64(), f.u64()}}
		if f.err != nil {
			break
		}
		f.rule(t.Epoch > 0 && (i == 0 || t.Epoch < all[i-1].Epoch), at, "epochs in descending order", "%d", t.Epoch)
		f.rule(t.Bits != [4]uint64{}, at+8, "a bit", "none")
		for k := range seen {
			f.rule(seen[k]&t.Bits[k] == 0, at+8, "bits that no other epoch has", "%x", t.Bits)
			seen[k] |= t.Bits[k]
		}
		all = append(all, t)
	}
	return all, f.end()
}

// checkTouched checks the rows of granules: each by itself, and that no epoch is one that no node can have. Whether they say enough only what was there before could tell.
func (r *run) checkTouched() error {
	return r.meta.table(tableTouched, func(key, value []byte) error {
		volume, level, index := keyField(key, 0), keyField(key, 1), keyField(key, 2)
		u := unit(key)
		r.expect(0 < volume && volume < r.tree.counters.NextVolume, u, 1, fmt.Sprintf("a volume below %d", r.tree.counters.NextVolume), volume)
		r.expect(level <= touchedTopLevel && index < uint64(1)<<(39-min(8*level, 39)), u, 9, "a level up to 5, and a row below 8 EiB", fmt.Sprint(level, ", ", index))
		r.expect(r.super.ROCompat&superBitmaps != 0, u, 0, "no such row without the feature in the superblock", "a row")
		row, err := parseTouched(key, value)
		if err != nil {
			r.noteErr(u, err)
			return nil
		}
		r.rep.Totals.TouchedRows++
		r.expect(row[0].Epoch <= r.tree.counters.AppliedSeq, u, 8, fmt.Sprintf("epochs up to %d", r.tree.counters.AppliedSeq), row[0].Epoch)
		return nil
	})
}
