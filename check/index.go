package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Tables of the index (docs/format/index.md), which is a database beside the metadata. No data depends on it, so nothing that is wrong with it is an error.
const (
	indexDir    = "index"
	indexState  = 'I'
	indexDouble = 'D'
)

// IndexState is the row that says what is in the index.
type IndexState struct {
	Store     string `json:"store"`     // uuid
	Through   uint64 `json:"through"`   // chunks up to this id are in it
	Unmatched uint64 `json:"unmatched"` // chunks that nobody looked for
	Doubles   uint64 `json:"doubles"`   // rows of doubles
	Joined    uint64 `json:"joined"`
	JoinedRaw uint64 `json:"joinedRaw"` // bytes
}

func parseIndexState(b []byte) (st IndexState, err error) {
	if len(b) != 72 {
		return st, &block.CorruptError{Source: "state of the index", Want: "72 bytes", Got: fmt.Sprint(len(b))}
	}
	if b[0] != 1 {
		return st, &block.CorruptError{Source: "state of the index", Want: "version 1", Got: fmt.Sprint(b[0])}
	}
	for i, c := range b {
		if c != 0 && (i > 0 && i < 8 || i >= 64) {
			return st, &block.CorruptError{Source: "state of the index", Offset: int64(i), Want: "a reserved 0", Got: fmt.Sprint(c)}
		}
	}
	st.Store = block.UUID(b[8:24]).String()
	for i, p := range []*uint64{&st.Through, &st.Unmatched, &st.Doubles, &st.Joined, &st.JoinedRaw} {
		*p = binary.LittleEndian.Uint64(b[24+8*i:])
	}
	return st, nil
}

// openIndex opens the index for reading. It returns os.ErrNotExist when there is none.
func openIndex(dir string, cacheBytes int64) (*meta, error) {
	path := filepath.Join(dir, indexDir)
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	return openRows(path, cacheBytes)
}

// indexTable calls f with each row of a table of the index whose key has the right length.
func (m *meta) indexTable(table byte, f func(key, value []byte) error) error {
	return m.scan([]byte{table}, []byte{table + 1}, func(key, value []byte) error {
		if len(key) != 9 {
			return nil
		}
		return f(key, value)
	})
}

// state reads the row that says what is in the index. An index without one is empty.
func (m *meta) state() (IndexState, error) {
	b, err := m.get([]byte{indexState})
	if errors.Is(err, errNoRow) {
		return IndexState{}, nil
	}
	if err != nil {
		return IndexState{}, err
	}
	return parseIndexState(b)
}

// checkIndex compares the index with the chunk rows.
func (r *run) checkIndex() error {
	x, err := openIndex(r.dir, r.opts.CacheBytes/2)
	if errors.Is(err, os.ErrNotExist) {
		r.rep.Totals.UnhintedChunks = r.rep.Totals.Chunks
		return nil
	}
	if err != nil {
		r.warn(indexDir, 0, "an index, which the next start makes anew", err.Error())
		return nil
	}
	defer x.close()
	st, err := x.state()
	if err == nil {
		err = errors.Join(r.checkIndexHints(x), r.checkDoubles(x, &st))
	}
	if pebble.IsCorruptionError(err) || errors.Is(err, block.ErrCorrupt) {
		r.warn(indexDir, 0, "an index that passes its checks, which the next start makes anew", err.Error())
		return nil
	}
	if err == nil && st.Through > r.tree.counters.Chunk {
		r.warn(indexDir, 24, fmt.Sprintf("chunks up to %d", r.tree.counters.Chunk), fmt.Sprint(st.Through))
	}
	return err
}

// checkIndexHints checks that each hint names a chunk with its hash. One that names a chunk that is gone is what a crash may leave.
func (r *run) checkIndexHints(x *meta) error {
	hinted := uint64(0)
	err := x.table(tableHint, func(key, value []byte) error {
		u := indexDir + " " + unit(key)
		if len(value) != 8 {
			r.warn(u, 0, "8 B", fmt.Sprint(len(value)))
			return nil
		}
		id := binary.LittleEndian.Uint64(value)
		row, err := r.chunkRow(id)
		if errors.Is(err, errNoRow) {
			r.rep.Totals.StaleHints++
			return nil
		}
		if err != nil {
			return err
		}
		if row.Hash != [16]byte(key[1:]) {
			r.warn(u, 0, "a chunk with this hash", fmt.Sprintf("chunk %d with %x", id, row.Hash))
		}
		hinted++
		return nil
	})
	r.rep.Totals.UnhintedChunks = r.rep.Totals.Chunks - min(hinted, r.rep.Totals.Chunks)
	return err
}

// checkDoubles checks that each double and what it equals have one hash, if both are there.
func (r *run) checkDoubles(x *meta, st *IndexState) error {
	n := uint64(0)
	err := x.indexTable(indexDouble, func(key, value []byte) error {
		n++
		u := indexDir + " " + unit(key)
		if len(value) != 12 {
			r.warn(u, 0, "12 B", fmt.Sprint(len(value)))
			return nil
		}
		a, err := r.chunkRow(keyField(key, 0))
		b, otherErr := r.chunkRow(binary.LittleEndian.Uint64(value))
		if errors.Is(err, errNoRow) || errors.Is(otherErr, errNoRow) {
			return nil
		}
		if err = errors.Join(err, otherErr); err == nil && (a.Hash != b.Hash || a.RawLen != b.RawLen) {
			r.warn(u, 0, "a chunk with the same bytes", fmt.Sprintf("%x, %d B and %x, %d B", a.Hash, a.RawLen, b.Hash, b.RawLen))
		}
		return err
	})
	if err == nil && n != st.Doubles {
		r.warn(indexDir, 40, fmt.Sprintf("%d rows of doubles", n), fmt.Sprint(st.Doubles))
	}
	return err
}

// chunkRow returns the row of a chunk, an empty one if it is damaged, which checkChunks reports, or errNoRow.
func (r *run) chunkRow(id uint64) (chunkRow, error) {
	b, err := r.meta.get(key64(tableChunk, id))
	if err != nil {
		return chunkRow{}, err
	}
	row, err := parseChunkRow(b)
	if err != nil {
		return chunkRow{}, nil
	}
	return row, nil
}

// IndexDump is the index in short.
type IndexDump struct {
	State   *IndexState `json:"state"`   // nil of an empty index
	Hints   uint64      `json:"hints"`   // rows
	Doubles uint64      `json:"doubles"` // rows
}

// DumpIndex counts what is in the index.
func DumpIndex(dir string) (d IndexDump, err error) {
	err = withMeta(dir, "index", func(*run) error {
		x, err := openIndex(dir, 16<<20)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer x.close()
		st, err := x.state()
		if err == nil && st != (IndexState{}) {
			d.State = &st
		}
		return errors.Join(err,
			x.table(tableHint, func(_, _ []byte) error { d.Hints++; return nil }),
			x.indexTable(indexDouble, func(_, _ []byte) error { d.Doubles++; return nil }))
	})
	return d, err
}

// WriteText implements the text form of store dump.
func (d IndexDump) WriteText(w io.Writer) error {
	if d.State == nil {
		_, err := fmt.Fprintf(w, "empty: the next start makes it of the chunk rows\n")
		return err
	}
	st := d.State
	_, err := fmt.Fprintf(w, "store %s\nchunks up to %d, %d of them not looked for\n%d hints\n%d doubles by rows, %d by the state\njoined %d, %d B\n", st.Store, st.Through, st.Unmatched, d.Hints, d.Doubles, st.Doubles, st.Joined, st.JoinedRaw)
	return err
}
