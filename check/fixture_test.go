package check

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// richStore is a closed store with something of every kind in it: shared chunks, two levels of radix nodes, snapshots with deadlists of all kinds of entries, a clone, a
// volume that is being freed (a job), several segments, and records of every kind in the log that are in no map yet.
func richStore(t *testing.T) string {
	l := newLab(t, 42)
	l.create("a", 100<<20)
	l.create("x", 100<<20)
	l.create("big", 5<<40)
	for i := range uint64(6) {
		l.write("a", i*16<<20, l.pool[i%3])
		l.write("x", i*16<<20+8192, l.pool[i%4])
	}
	l.write("a", 1<<20, l.data(200_000))
	l.write("big", 4<<40, l.pool[5])
	l.write("big", 0, l.pool[4])
	l.create("parts", 16<<20)
	l.write("parts", 0, fresh(4<<20))
	l.settle()
	l.snapshot("parts", "s1")
	l.write("parts", 1<<20, fresh(5000)) // so little of the page that it is kept in parts from now on
	l.settle()
	l.close()
	l.open() // which seals the segment
	l.snapshot("a", "s1")
	for _, name := range []string{"kept", "cleared", "removed"} {
		l.bitmap("a", name)
	}
	l.bitmap("big", "kept")
	l.write("a", 100_000, l.data(150_000))
	l.trim("a", 16<<20, 48<<20)
	l.clone("a", "s1", "c")
	l.write("c", 64<<20, l.pool[5])
	l.snapshot("big", "s1")
	l.snapshot("parts", "s2")
	l.write("parts", 3<<20, fresh(5000))
	l.trim("big", 3<<40, 2<<40)
	_, err := l.s.ClearBitmap(t.Context(), "a", "cleared")
	l.must(err)
	l.must(l.s.RemoveBitmap(t.Context(), "a", "removed"))
	l.write("a", 90<<20, l.data(5000))
	l.settle()
	l.write("a", 70<<20, l.data(300))
	l.write("a", 71<<20, l.pool[5])
	l.trim("a", 0, 4<<20)
	l.must(l.s.ResizeVolume(t.Context(), "c", 30<<20))
	l.create("late", 1<<20)
	l.snapshot("late", "s1")
	l.must(l.s.RenameVolume(t.Context(), "late", "later"))
	l.clone("later", "s1", "clone")
	l.must(l.s.Rollback(t.Context(), "later", "s1"))
	l.must(l.s.DeleteVolume(t.Context(), "clone"))
	dir := l.dir
	l.close()
	detachVolume(t, dir, "x")
	return dir
}

// fresh is data that nothing else has.
func fresh(n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(p)
	return p
}

// detachVolume brings a volume without snapshots into the state that the engine leaves when it begins to free a deleted one: the row of the volume is gone, its node is marked,
// and a job holds its map.
func detachVolume(t *testing.T, dir, name string) {
	editRows(t, dir, func(db *pebble.DB, b *pebble.Batch) {
		v := volumeNamed(t, db, name)
		key := key64(tableNode, v.Head)
		row := value(t, db, key)
		n, err := parseNodeRow(v.Head, row)
		if err != nil {
			t.Fatal(err)
		}
		row[1] |= nodeDeleted | nodePurging
		counters := value(t, db, []byte("Mc"))
		sumAgain := func(by uint64) {
			binary.LittleEndian.PutUint64(counters[120:], binary.LittleEndian.Uint64(counters[120:])+by)
		}
		sumAgain(-sumOf(key, value(t, db, key)) - sumOf(key64(tableVolume, v.ID), value(t, db, key64(tableVolume, v.ID))) + sumOf(key, row))
		number := binary.LittleEndian.Uint64(counters[56:]) + 1
		binary.LittleEndian.PutUint64(counters[56:], number)
		job := append([]byte("HvJb\x01\x00\x01"), n.Root.Level)
		job = append(job, make([]byte, 56)...)
		binary.LittleEndian.PutUint64(job[16:], n.Root.ID)
		binary.LittleEndian.PutUint64(job[32:], n.Root.Birth)
		fixRow(job, 12)
		set(t, b, key, row)
		set(t, b, []byte("Mc"), counters)
		set(t, b, append(key64(tableJob, v.Head), key64(0, number)[1:]...), job)
		if err := b.Delete(key64(tableVolume, v.ID), nil); err != nil {
			t.Fatal(err)
		}
		for _, changed := range [][]byte{key, append(key64(tableJob, v.Head), key64(0, number)[1:]...), key64(tableVolume, v.ID)} {
			set(t, b, nextMarker(t, db, changed), nil)
		}
	})
}

// nextMarker is the key of a marker that the next batch would write.
func nextMarker(t *testing.T, db *pebble.DB, key []byte) []byte {
	j, err := parseJournalRow(value(t, db, []byte("Mj")))
	if err != nil {
		t.Fatal(err)
	}
	return append(binary.BigEndian.AppendUint32([]byte{tableMarker}, j.Gen+1), key...)
}

// segmentFiles lists the segments of a class.
func segmentFiles(t *testing.T, dir string, class byte) (all []string) {
	for _, path := range files(t, dir, ".seg") {
		if b, err := os.ReadFile(path); err == nil && b[12] == class {
			all = append(all, path)
		}
	}
	return all
}

func volumeNamed(t *testing.T, db *pebble.DB, name string) *volumeRow {
	t.Helper()
	m := &meta{db}
	var found *volumeRow
	if err := m.table(tableVolume, func(key, value []byte) error {
		v, err := parseVolumeRow(keyField(key, 0), value)
		if err == nil && v.Name == name {
			found = v
		}
		return err
	}); err != nil || found == nil {
		t.Fatal(name, err)
	}
	return found
}

// editRows changes metadata behind the engine's back.
func editRows(t *testing.T, dir string, f func(db *pebble.DB, b *pebble.Batch)) {
	t.Helper()
	db, err := pebble.Open(filepath.Join(dir, "meta"), &pebble.Options{FS: noSync{vfs.Default}, Logger: silent{}, FormatMajorVersion: pebble.FormatNewest, DisableAutomaticCompactions: true})
	if err != nil {
		t.Fatal(err)
	}
	b := db.NewBatch()
	f(db, b)
	if err := b.Commit(pebble.NoSync); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func value(t *testing.T, db *pebble.DB, key []byte) []byte {
	t.Helper()
	v, err := (&meta{db}).get(key)
	if err != nil {
		t.Fatalf("row %s: %v", unit(key), err)
	}
	return v
}

func set(t *testing.T, b *pebble.Batch, key, value []byte) {
	t.Helper()
	if err := b.Set(key, value, nil); err != nil {
		t.Fatal(err)
	}
}

// fixRow puts the checksum of a page, node, deadlist or job right, which lies at off.
func fixRow(b []byte, off int) {
	sum := crc32.Update(crc32.Checksum(b[:off], castagnoli), castagnoli, b[off+4:])
	binary.LittleEndian.PutUint32(b[off:], sum)
}

// fixSum puts a checksum right that lies at off and covers what is before it.
func fixSum(b []byte, off int) {
	binary.LittleEndian.PutUint32(b[off:], crc32.Checksum(b[:off], castagnoli))
}

// files lists the files below a directory whose path ends so, sorted.
func files(t *testing.T, dir, suffix string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() && strings.HasSuffix(path, suffix) {
			all = append(all, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// mutate changes a file for the time of one check and returns the report.
func mutate(t *testing.T, dir, path string, f func(b []byte) []byte) Report {
	t.Helper()
	was, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, f(slices.Clone(was)), 0o600); err != nil {
		t.Fatal(err)
	}
	rep := checkAnyway(t, dir)
	if err := os.WriteFile(path, was, 0o600); err != nil {
		t.Fatal(err)
	}
	return rep
}

// checkAnyway runs a check, whatever it finds.
func checkAnyway(t *testing.T, dir string) Report {
	t.Helper()
	rep, err := Run(t.Context(), dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

// mustFind fails the test when a damage passed in silence, or was found only in units that begin otherwise.
func mustFind(t *testing.T, rep Report, where string) {
	t.Helper()
	for i := range rep.Findings {
		if f := &rep.Findings[i]; f.Severity == Error && strings.HasPrefix(f.Unit, where) {
			return
		}
	}
	if rep.Errors == 0 {
		t.Error("silence")
		return
	}
	t.Errorf("nothing about %q, but: %s", where, rep.Findings[0].String())
}

// sumOf is what a row adds to the sum in the counters.
func sumOf(key, value []byte) uint64 {
	r := &run{}
	r.sumRow(key, value)
	return r.rowSum
}
