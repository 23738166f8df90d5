package check

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// rowKind is a table of which a test damages a row, field by field.
type rowKind struct {
	table  byte
	fields []field
	fix    func(b []byte)               // puts the row's own checksum right
	pick   func(key, value []byte) bool // which row; nil is the first
	// gone says whether a missing row is an error.
	gone bool
}

func rowKinds() []rowKind {
	short := func(b []byte) { fixRow(b, 12) }
	long := func(b []byte) { fixRow(b, 44) }
	node := []field{
		{"version", 0, 1}, {"flags", 1, 1}, {"level", 2, 1}, {"reserved", 3, 1}, {"map epoch", 4, 4}, {"id", 8, 8}, {"volume", 16, 8}, {"parent", 24, 8}, {"root", 32, 8}, {"birth", 40, 8}, {"size", 48, 8},
		{"closed", 56, 8}, {"bound", 72, 8}, {"mapped", 80, 8}, {"name length", 88, 2},
	}
	list := []field{
		{"magic", 0, 4}, {"version", 4, 2}, {"reserved 1", 6, 2}, {"id", 8, 8}, {"birth", 16, 8}, {"region", 24, 8}, {"count", 32, 4}, {"reserved 2", 36, 8}, {"crc", 44, 4},
	}
	extents := slices.Concat(list, []field{
		{"offset", 48, 4}, {"length", 52, 4}, {"kind", 56, 1}, {"flags", 57, 1}, {"reserved 3", 58, 2}, {"chunk offset", 60, 4}, {"chunk", 64, 8}, {"extent birth", 72, 8}, {"hash", 80, 8},
	})
	parts := slices.Concat(list, []field{{"part", 48, 8}, {"part birth", 56, 8}, {"start", 64, 4}, {"extents", 68, 4}})
	started := func(flags uint8) func(key, value []byte) bool {
		return func(key, value []byte) bool {
			n, err := parseNodeRow(keyField(key, 0), value)
			return err == nil && n.Flags == flags && (n.Parent != 0 || n.is(nodeClosed)) && n.Root.ID != 0
		}
	}
	var granules []byte
	return []rowKind{
		{table: tableTouched, gone: true, fields: []field{{"version", 0, 1}, {"count", 1, 1}, {"reserved", 2, 2}, {"crc", 4, 4}, {"epoch", 8, 8}, {"bits", 16, 32}},
			pick: func(key, _ []byte) bool { granules = slices.Clone(key); return true },
			fix:  func(b []byte) { fixTouched(granules, b) }},
		{table: tableVolume, gone: true, fields: []field{
			{"version", 0, 1}, {"mode", 1, 1}, {"reserved 1", 2, 2}, {"map epoch", 4, 4}, {"id", 8, 8}, {"uuid version", 22, 1}, {"size", 32, 8}, {"head", 40, 8}, {"cut kind", 56, 4}, {"cut min", 60, 4},
			{"cut avg", 64, 4}, {"cut max", 68, 4}, {"cut table", 72, 4}, {"reserved 2", 76, 44}, {"name length", 120, 2}, {"name", 122, 1}, {"bitmaps", 123, 4}, {"bitmap flags", 127, 1}, {"reserved 3", 128, 3}, {"bitmap id", 131, 8}, {"bitmap epoch", 139, 8}, {"bitmap size", 155, 8}, {"bitmap name length", 163, 2},
		}},
		{table: tableNode, gone: true, fields: node, pick: started(nodeStarted)},
		{table: tableNode, gone: true, fields: append(node, field{"name", 90, 1}), pick: started(nodeStarted | nodeClosed | nodeResolved)},
		{table: tableNode, gone: true, fields: slices.DeleteFunc(slices.Clone(node), func(f field) bool { return f.name == "mapped" }), pick: func(key, value []byte) bool { return value[1]&nodePurging != 0 }},
		{table: tableSegment, gone: true, fields: []field{
			{"version", 0, 1}, {"class", 1, 1}, {"state", 2, 1}, {"reserved 1", 3, 1}, {"generation", 4, 4}, {"id", 8, 8}, {"size", 16, 8}, {"total raw", 24, 8}, {"live raw", 32, 8}, {"total chunks", 40, 4},
			{"live chunks", 44, 4}, {"parity", 48, 8}, {"born", 63, 1}, {"placement version", 64, 1}, {"copies", 65, 1}, {"reserved 2", 66, 2}, {"tier length", 68, 1}, {"key length", 69, 2}, {"placement state", 71, 1},
			{"placement generation", 72, 4}, {"tier", 84, 5}, {"key", 89, 20},
		}},
		{table: tableChunk, gone: true, fields: []field{
			{"segment", 0, 8}, {"frame offset", 8, 4}, {"frame length", 12, 4}, {"raw offset", 16, 4}, {"raw length", 20, 3}, {"flags", 23, 1}, {"hash", 24, 16}, {"base", 40, 8},
		}},
		{table: tableRef, gone: true, fields: []field{{"count", 0, 8}}},
		{table: tablePage, gone: true, fix: long, fields: extents, pick: func(_, value []byte) bool { return !isDirectory(value) && !isPart(value) }},
		{table: tablePage, gone: true, fix: long, fields: extents, pick: func(_, value []byte) bool { return isPart(value) }},
		{table: tablePage, gone: true, fix: long, fields: parts, pick: func(_, value []byte) bool { return isDirectory(value) }},
		{table: tableRadix, gone: true, fix: long, fields: []field{
			{"magic", 0, 4}, {"version", 4, 2}, {"level", 6, 1}, {"reserved 1", 7, 1}, {"id", 8, 8}, {"birth", 16, 8}, {"region", 24, 8}, {"count", 32, 2}, {"reserved 2", 34, 10}, {"crc", 44, 4}, {"present", 48, 32},
			{"child", 80, 8}, {"child birth", 88, 8},
		}},
		{table: tableDead, gone: true, fix: short, fields: []field{
			{"magic", 0, 4}, {"version", 4, 2}, {"count", 6, 2}, {"reserved", 8, 4}, {"crc", 12, 4}, {"kind", 16, 1}, {"level", 17, 1}, {"region", 18, 6}, {"id", 24, 8},
		}},
		{table: tableJob, gone: true, fix: short, fields: []field{
			{"magic", 0, 4}, {"version", 4, 2}, {"kind", 6, 1}, {"level", 7, 1}, {"reserved", 8, 4}, {"crc", 12, 4}, {"id", 16, 8}, {"region", 24, 8}, {"birth", 32, 8}, {"snapshot", 40, 8}, {"previous", 48, 8},
			{"cursor", 56, 8},
		}},
		{table: tableMeta, gone: true, fields: []field{
			{"version", 0, 1}, {"reserved 1", 1, 7}, {"applied", 8, 8}, {"watermark", 16, 8}, {"chunk", 24, 8}, {"page", 32, 8}, {"segment", 40, 8}, {"volume", 48, 8}, {"row", 56, 8}, {"unique", 64, 8},
			{"shared", 72, 8}, {"store", 80, 16}, {"segments", 96, 8}, {"nodes", 104, 8}, {"lost", 112, 8}, {"row sum", 120, 8}, {"reserved 2", 128, 8},
		}},
		{table: tableMeta, gone: true, pick: func(key, _ []byte) bool { return key[1] == 'j' }, fields: []field{
			{"version", 0, 1}, {"reserved 1", 1, 3}, {"generation", 4, 4}, {"number", 8, 8}, {"journaled watermark", 16, 8}, {"journaled seq", 24, 8}, {"journaled page", 32, 8}, {"journaled chunk", 40, 8},
			{"full segment", 48, 8}, {"full offset", 56, 8}, {"full number", 64, 8}, {"last segment", 72, 8}, {"last offset", 80, 8}, {"last number", 88, 8}, {"full bytes", 96, 8}, {"delta bytes", 104, 8},
			{"reserved 2", 112, 16},
		}},
		{table: tableMarker, gone: true, pick: func(key, _ []byte) bool { return key[5] == tableNode }, fields: nil},
	}
}

// fixTouched puts the checksum of a row of granules right.
func fixTouched(key, b []byte) {
	binary.LittleEndian.PutUint32(b[4:], crcMore(crcMore(crc(key), b[:4]), b[8:]))
}

func TestDamagedRows(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	dir := richStore(t)
	mustBeClean(t, dir, "as it was made")
	for i, k := range rowKinds() {
		t.Run(fmt.Sprintf("%c%d", k.table, i), func(t *testing.T) { damageRow(t, dir, &k) })
	}
	mustBeClean(t, dir, "after all was put back")
}

// damageRow sets each field of one row to a neighbour of its value and to one far away.
func damageRow(t *testing.T, dir string, k *rowKind) {
	var key, was []byte
	editRows(t, dir, func(db *pebble.DB, _ *pebble.Batch) {
		err := (&meta{db}).scan([]byte{k.table}, []byte{k.table + 1}, func(rowKey, value []byte) error {
			if key == nil && (k.pick == nil || k.pick(rowKey, value)) {
				key, was = slices.Clone(rowKey), slices.Clone(value)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	if key == nil {
		t.Fatal("no such row")
	}
	write := func(value []byte) {
		editRows(t, dir, func(_ *pebble.DB, b *pebble.Batch) { set(t, b, key, value) })
	}
	for _, f := range k.fields {
		for name, change := range changes(f.n) {
			bad := slices.Clone(was)
			change(bad[f.off : f.off+f.n])
			if k.fix != nil && f.name != "crc" {
				k.fix(bad)
			}
			if bytes.Equal(bad, was) || harmless(k.table, f.name, was, bad) {
				continue
			}
			t.Run(f.name+" "+name, func(t *testing.T) {
				write(bad)
				if rep := checkAnyway(t, dir); rep.Errors+rep.Warnings == 0 {
					t.Errorf("silence about row %s: %x is now %x", unit(key), was[f.off:f.off+f.n], bad[f.off:f.off+f.n])
				}
			})
		}
	}
	lengths := map[string][]byte{"long": append(slices.Clone(was), 0)}
	if len(was) > 0 {
		lengths["short"], lengths["empty"] = was[:len(was)-1], nil
	}
	for name, bad := range lengths {
		t.Run(name, func(t *testing.T) {
			write(bad)
			if rep := checkAnyway(t, dir); rep.Errors == 0 {
				t.Error("silence")
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		editRows(t, dir, func(_ *pebble.DB, b *pebble.Batch) {
			if err := b.Delete(key, nil); err != nil {
				t.Fatal(err)
			}
		})
		if rep := checkAnyway(t, dir); (rep.Errors > 0) != k.gone {
			t.Errorf("%d errors", rep.Errors)
		}
	})
	t.Run("doubled", func(t *testing.T) {
		write(was)
		other := slices.Clone(key)
		other[len(other)-2] ^= 0x40
		editRows(t, dir, func(_ *pebble.DB, b *pebble.Batch) { set(t, b, other, was) })
		rep := checkAnyway(t, dir)
		editRows(t, dir, func(_ *pebble.DB, b *pebble.Batch) {
			if err := b.Delete(other, nil); err != nil {
				t.Fatal(err)
			}
		})
		if rep.Errors == 0 && k.table != tableMarker { // a marker too many only makes the next delta longer
			t.Error("silence")
		}
	})
}

func changes(n int) map[string]func(p []byte) {
	return map[string]func(p []byte){
		"plus one": func(p []byte) { p[0]++ },
		"large":    func(p []byte) { p[n-1] ^= 0x41 },
	}
}

// harmless knows the values that make another row that is as good as the one before: nothing else in the store says what it should be.
func harmless(table byte, name string, was, bad []byte) bool {
	le := binary.LittleEndian
	switch string(table) + " " + name {
	case "M applied":
		return le.Uint64(bad[8:]) > 0
	case "M chunk", "M page", "M segment", "M volume", "M row":
		at := map[string]int{"chunk": 24, "page": 32, "segment": 40, "volume": 48, "row": 56}[name]
		return le.Uint64(bad[at:]) > le.Uint64(was[at:])
	case "M watermark":
		return le.Uint64(bad[16:])>>32 == le.Uint64(was[16:])>>32
	}
	return false
}

// TestUnknownRows puts rows into the metadata that belong to no table.
func TestUnknownRows(t *testing.T) {
	l := newLab(t, 3)
	l.create("a", 1<<20)
	l.close()
	for _, key := range []string{"K", "K\x00\x00\x00\x09", "K\x00\x00\x00\x09X", "K\x00\x00\x00\x09V1234567", "K\x00\x00\x00\x09H1234567812345678", "X", "Z|1", "C", "C12345678x", "Mx", "Mcc", "P1234567"} {
		editRows(t, l.dir, func(_ *pebble.DB, b *pebble.Batch) { set(t, b, []byte(key), []byte("value")) })
		if rep := checkAnyway(t, l.dir); rep.Errors == 0 {
			t.Errorf("silence about key %q", key)
		}
		editRows(t, l.dir, func(_ *pebble.DB, b *pebble.Batch) {
			if err := b.Delete([]byte(key), nil); err != nil {
				t.Fatal(err)
			}
		})
	}
	mustBeClean(t, l.dir, "without them")
}
