package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Tables of the metadata by the first byte of their keys (docs/format/meta.md, page.md, references.md).
const (
	tableChunk   = 'C'
	tableDead    = 'D'
	tableSegment = 'G'
	tableHint    = 'H' // of the index; in the metadata until version 1 of it
	tableJob     = 'J'
	tableMeta    = 'M'
	tableRadix   = 'N'
	tablePage    = 'P'
	tableRef     = 'R'
	tableNode    = 'S'
	tableVolume  = 'V'
)

// keyLengths are the lengths of the keys of each table, in bytes.
var keyLengths = map[byte]int{
	tableChunk: 9, tableDead: 33, tableSegment: 9, tableHint: 17, tableJob: 17, tableMeta: 2, tableRadix: 9, tablePage: 9, tableRef: 9, tableNode: 9, tableTouched: 25, tableVolume: 9,
}

// meta is the metadata of a store, opened for reading.
type meta struct{ db *pebble.DB }

// errNoRow says that there is no row under a key.
var errNoRow = errors.New("no row")

type silent struct{}

func (silent) Infof(string, ...any)         {}
func (silent) Errorf(string, ...any)        {}
func (silent) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }

func openMeta(dir string, cacheBytes int64) (*meta, error) {
	return openRows(filepath.Join(dir, "meta"), cacheBytes)
}

// openRows opens a database of rows.
func openRows(path string, cacheBytes int64) (*meta, error) {
	cache := pebble.NewCache(cacheBytes)
	defer cache.Unref()
	db, err := pebble.Open(path, &pebble.Options{
		FS: readOnlyFS{vfs.Default}, ReadOnly: true, Cache: cache, Logger: silent{}, MaxOpenFiles: 256,
		// Pebble would end the process. Here the error that it returns as well becomes a finding.
		EventListener: &pebble.EventListener{DataCorruption: func(pebble.DataCorruptionInfo) {}},
	})
	if err != nil {
		return nil, fmt.Errorf("open metadata in %s: %w", filepath.Base(path), err)
	}
	return &meta{db}, nil
}

func (m *meta) close() { _ = m.db.Close() }

func key64(table byte, id uint64) []byte { return binary.BigEndian.AppendUint64([]byte{table}, id) }

// unit names a row in findings: the table, then the fields of the key.
func unit(key []byte) string {
	s := string(key[:1])
	switch key[0] {
	case tableHint:
		return fmt.Sprintf("%s|%x", s, key[1:])
	case tableMeta:
		return fmt.Sprintf("%s|%s", s, key[1:])
	case tableMarker:
		if markerKeyOK(key) {
			return fmt.Sprintf("%s|%d|%s", s, binary.BigEndian.Uint32(key[1:]), unit(key[5:]))
		}
	}
	for at := 1; at+8 <= len(key); at += 8 {
		s += fmt.Sprintf("|%d", binary.BigEndian.Uint64(key[at:]))
	}
	return s
}

func unit64(table byte, id uint64) string { return fmt.Sprintf("%c|%d", table, id) }

// keyField returns field i of a key of u64s.
func keyField(key []byte, i int) uint64 { return binary.BigEndian.Uint64(key[1+8*i:]) }

// get returns a copy of a row, or errNoRow.
func (m *meta) get(key []byte) ([]byte, error) {
	v, closer, err := m.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, errNoRow
	}
	if err != nil {
		return nil, fmt.Errorf("read row %s: %w", unit(key), err)
	}
	defer closer.Close()
	return append([]byte(nil), v...), nil
}

// scan calls f with each row from lower to upper, exclusive. Key and value are lent.
func (m *meta) scan(lower, upper []byte, f func(key, value []byte) error) error {
	it, err := m.db.NewIter(&pebble.IterOptions{LowerBound: lower, UpperBound: upper})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = f(it.Key(), v)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return it.Close()
}

// table calls f with each row of a table whose key has the right length.
func (m *meta) table(table byte, f func(key, value []byte) error) error {
	return m.scan([]byte{table}, []byte{table + 1}, func(key, value []byte) error {
		if len(key) != keyLengths[table] {
			return nil // checkKeys has said so
		}
		return f(key, value)
	})
}

// checkKeys finds rows that belong to no table. It looks at the gaps between tables, and at the lengths of keys in them.
func (r *run) checkKeys() error {
	return r.meta.scan(nil, nil, func(key, _ []byte) error {
		if len(key) == 0 {
			r.fail("metadata", 0, "a key", "an empty one")
		} else if key[0] == tableMarker {
			r.expect(markerKeyOK(key), fmt.Sprintf("metadata key %q", key), 0, "a marker of a row", fmt.Sprintf("%d B", len(key)))
		} else if n := keyLengths[key[0]]; n != len(key) {
			r.fail(fmt.Sprintf("metadata key %q", key), 0, "a key of a known table", fmt.Sprintf("%d B", len(key)))
		}
		return nil
	})
}
