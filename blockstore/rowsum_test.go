package blockstore

import (
	"bytes"
	"errors"
	"path"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// putFile writes a file.
func putFile(fs *vfs.MemFS, p string, b []byte) error {
	f, err := fs.Create(p, pebblevfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// editRows changes rows behind the engine's back, as a table of another time would.
func editRows(t *testing.T, fs *vfs.MemFS, edit func(db *pebble.DB) error) {
	t.Helper()
	db, err := pebble.Open("data/store/meta", &pebble.Options{FS: fs, Logger: quietLogger{}, FormatMajorVersion: pebble.FormatNewest})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(edit(db), db.Close(), putFile(fs, "data/store/"+metaLogsFile, encodeMetaLogs(nil))); err != nil {
		t.Fatal(err)
	}
}

// rowsOf returns copies of all rows of a table.
func rowsOf(t *testing.T, db *pebble.DB, table byte) (keys, values [][]byte) {
	t.Helper()
	it, err := db.NewIter(&pebble.IterOptions{LowerBound: []byte{table}, UpperBound: []byte{table + 1}})
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		keys, values = append(keys, bytes.Clone(it.Key())), append(values, bytes.Clone(it.Value()))
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	return keys, values
}

// TestStaleRows puts rows of volumes, nodes, segments and counters back to what they were, or in each other's place: sound rows, all of them, in sound tables. The start sees
// it, makes the metadata anew, and nothing is lost.
func TestStaleRows(t *testing.T) {
	r, d, data := newChanged(t, 0)
	earlier := r.left(false)
	copy(data, data[20<<19:30<<19])
	writeTest(t, d, 0, data[:10<<19])
	r.down()
	r.check(r.s.checkpoints.delta())
	old := map[byte][2][][]byte{}
	editRows(t, earlier, func(db *pebble.DB) error {
		for _, table := range []byte{keyVolume, keySnapshot, keySegment, keyMeta} {
			keys, values := rowsOf(t, db, table)
			old[table] = [2][][]byte{keys, values}
		}
		return nil
	})
	untouched := r.left(false)
	editRows(t, untouched, func(*pebble.DB) error { return nil })
	for what, edit := range map[string]func(db *pebble.DB) error{
		"nothing": func(*pebble.DB) error { return nil },
		"nodes of before": func(db *pebble.DB) error {
			return db.Set(old[keySnapshot][0][0], old[keySnapshot][1][0], pebble.Sync)
		},
		"a segment of before": func(db *pebble.DB) error {
			for i, key := range old[keySegment][0] {
				now, closer, err := db.Get(key)
				if err != nil {
					continue
				}
				differs := !bytes.Equal(now, old[keySegment][1][i])
				if err := closer.Close(); err != nil || differs {
					return errors.Join(err, db.Set(key, old[keySegment][1][i], pebble.Sync))
				}
			}
			return errors.New("all segments are as they were")
		},
		"counters of before": func(db *pebble.DB) error { return db.Set(countersKey, old[keyMeta][1][0], pebble.Sync) },
		"a volume's other size": func(db *pebble.DB) error {
			row := bytes.Clone(old[keyVolume][1][0])
			row[33] ^= 2
			return db.Set(old[keyVolume][0][0], row, pebble.Sync)
		},
		"a volume less": func(db *pebble.DB) error { return db.Delete(old[keyVolume][0][0], pebble.Sync) },
	} {
		t.Run(what, func(t *testing.T) {
			mem := r.left(false)
			editRows(t, mem, edit)
			var info RecoveryInfo
			opts := r.options(mem)
			opts.Events = Events{Recovered: func(i RecoveryInfo) { info = i }}
			s := openTest(t, opts)
			if (info.Rebuilt != nil) != (what != "nothing") {
				t.Fatalf("rebuilt: %+v", info.Rebuilt)
			}
			expect(t, deviceTest(t, s, "a", ""), 0, data)
			settleSoon(t, s)
			(&model{t: t, s: s}).audit()
			expect(t, deviceTest(t, s, "a", ""), 0, data)
			if kept := info.Rebuilt; kept != nil {
				if _, err := mem.Stat(path.Join("data/store", kept.Kept)); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
