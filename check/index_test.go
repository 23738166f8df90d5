package check

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2"
)

// editIndex changes rows of the index of a closed store.
func editIndex(t *testing.T, dir string, f func(db *pebble.DB, b *pebble.Batch)) {
	t.Helper()
	db, err := pebble.Open(filepath.Join(dir, indexDir), &pebble.Options{Logger: silent{}, ErrorIfNotExists: true})
	if err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch()
	f(db, b)
	if err := b.Commit(pebble.Sync); err != nil {
		t.Error(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// firstHint returns a row of the index.
func firstHint(t *testing.T, db *pebble.DB) (key, value []byte) {
	t.Helper()
	err := (&meta{db}).table(tableHint, func(k, v []byte) error {
		if key == nil {
			key, value = append([]byte{}, k...), append([]byte{}, v...)
		}
		return nil
	})
	if err != nil || key == nil {
		t.Fatalf("no hint: %v", err)
	}
	return key, value
}

// TestIndex harms the index in each way: it is told, but it is never an error, as no data depends on it.
func TestIndex(t *testing.T) {
	dir := richStore(t)
	rep := mustBeClean(t, dir, "as it was made")
	if rep.Totals.UnhintedChunks != 0 || rep.Totals.StaleHints != 0 {
		t.Fatalf("%d chunks without a hint, %d stale hints", rep.Totals.UnhintedChunks, rep.Totals.StaleHints)
	}
	dump, err := DumpIndex(dir)
	if err != nil || dump.Hints != rep.Totals.Chunks || dump.State == nil || dump.Doubles != 0 {
		t.Errorf("dump: %+v, %v; %d chunks", dump, err, rep.Totals.Chunks)
	}
	warned := func(what string) {
		t.Helper()
		if rep := checkAnyway(t, dir); rep.Errors > 0 || rep.Warnings == 0 {
			t.Errorf("%s: %d errors, %d warnings", what, rep.Errors, rep.Warnings)
		}
	}
	var key, was []byte
	set := func(k, v []byte) {
		editIndex(t, dir, func(_ *pebble.DB, b *pebble.Batch) { _ = b.Set(k, v, nil) })
	}
	editIndex(t, dir, func(db *pebble.DB, _ *pebble.Batch) { key, was = firstHint(t, db) })
	other := append([]byte{}, key...)
	other[16] ^= 1
	set(other, was)
	warned("a hint for another hash")
	editIndex(t, dir, func(_ *pebble.DB, b *pebble.Batch) { _ = b.Delete(other, nil) })
	set(key, was[:7])
	warned("a short hint")
	set(key, binary.LittleEndian.AppendUint64(nil, 1<<40))
	if rep := mustBeClean(t, dir, "with a stale hint"); rep.Totals.StaleHints != 1 || rep.Totals.UnhintedChunks != 1 {
		t.Errorf("%d stale hints, %d chunks without one", rep.Totals.StaleHints, rep.Totals.UnhintedChunks)
	}
	set(key, was)
	double := key64(indexDouble, binary.LittleEndian.Uint64(was))
	set(double, make([]byte, 12))
	warned("a double that the state does not know of")
	editIndex(t, dir, func(_ *pebble.DB, b *pebble.Batch) { _ = b.Delete(double, nil) })
	state := make([]byte, 72)
	for _, bad := range [][]byte{{}, state, append([]byte{1, 1}, state[2:]...)} {
		set([]byte{indexState}, bad)
		warned("a state of another form")
	}
	if err := os.RemoveAll(filepath.Join(dir, indexDir)); err != nil {
		t.Fatal(err)
	}
	if rep := mustBeClean(t, dir, "without an index"); rep.Totals.UnhintedChunks != rep.Totals.Chunks {
		t.Errorf("%d of %d chunks have no hint", rep.Totals.UnhintedChunks, rep.Totals.Chunks)
	}
	if _, err := DumpIndex(dir); err != nil {
		t.Error(err)
	}
}
