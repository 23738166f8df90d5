package check

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/zeebo/blake3"
)

// lastPart is the last frame of the newest segment of checkpoints, which is open: a part of the newest delta, stored so that each of its bytes can be changed.
type lastPart struct {
	path  string
	at    int    // of the frame
	file  []byte // up to the frame
	table []byte
	raw   []byte
	key   []byte // of the domain
}

// with returns the file with the part as raw.
func (p *lastPart) with(raw []byte) []byte {
	h, err := blake3.NewKeyed(p.key)
	if err != nil {
		panic(err)
	}
	h.Write(raw)
	table := slices.Clone(p.table)
	copy(table, h.Sum(nil))
	binary.LittleEndian.PutUint32(table[40:], uint32(len(raw)))
	f := make([]byte, frameHeader)
	copy(f, frameMagic)
	f[4] = 1
	binary.LittleEndian.PutUint32(f[8:], 1)
	binary.LittleEndian.PutUint32(f[12:], uint32(len(raw)))
	binary.LittleEndian.PutUint32(f[16:], uint32(len(raw)))
	binary.LittleEndian.PutUint32(f[20:], crc(raw))
	binary.LittleEndian.PutUint32(f[24:], crc(table))
	fixSum(f, 60)
	return slices.Concat(p.file, f, table, raw)
}

// plainPart stores the last part of the newest delta without compression and puts the rows right that tell its length.
func plainPart(t *testing.T, dir string) *lastPart {
	metas := segmentFiles(t, dir, classMeta)
	p := &lastPart{path: metas[len(metas)-1]}
	b, err := os.ReadFile(p.path)
	if err != nil {
		t.Fatal(err)
	}
	if p.key, err = os.ReadFile(filepath.Join(dir, "domain.key")); err != nil {
		t.Fatal(err)
	}
	dec, err := newFrameReader(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer dec.close()
	var size int
	for at := segHeaderSize; at < len(b); at += size {
		fr, err := parseFrame(b[at:])
		if err != nil {
			t.Fatal(err)
		}
		raw, err := dec.decode(fr)
		if err != nil {
			t.Fatal(err)
		}
		size = int(fr.Size)
		p.at, p.raw, p.file, p.table = at, slices.Clone(raw), b[:at], b[at+frameHeader:at+frameHeader+frameChunkSize]
	}
	longer := p.with(p.raw)
	if err := os.WriteFile(p.path, longer, 0o600); err != nil {
		t.Fatal(err)
	}
	grown := uint64(len(longer) - len(b))
	editRows(t, dir, func(db *pebble.DB, batch *pebble.Batch) {
		add := func(key []byte, off int) {
			row := value(t, db, key)
			binary.LittleEndian.PutUint64(row[off:], binary.LittleEndian.Uint64(row[off:])+grown)
			set(t, batch, key, row)
		}
		j, err := parseJournalRow(value(t, db, []byte("Mj")))
		if err != nil {
			t.Fatal(err)
		}
		segment := key64(tableSegment, j.Last.Segment)
		was := value(t, db, segment)
		add(segment, 16)
		now := slices.Clone(was)
		binary.LittleEndian.PutUint64(now[16:], binary.LittleEndian.Uint64(now[16:])+grown)
		add([]byte("Mj"), 104)
		counters := value(t, db, []byte("Mc"))
		binary.LittleEndian.PutUint64(counters[120:], binary.LittleEndian.Uint64(counters[120:])+sumOf(segment, now)-sumOf(segment, was))
		set(t, batch, []byte("Mc"), counters)
	})
	return p
}

// changedStore is a closed store whose newest delta has rows of every table.
func changedStore(t *testing.T) string {
	l := newLab(t, 43)
	l.create("a", 5<<40)
	for i := range uint64(4) {
		l.write("a", i*16<<20, l.pool[i%3])
	}
	l.write("a", 4<<40, l.pool[4])
	l.settle()
	l.snapshot("a", "s1")
	l.write("a", 100_000, l.data(150_000))
	l.write("a", 4<<40, l.pool[5])
	l.trim("a", 16<<20, 20<<20)
	l.snapshot("a", "s2")
	l.clone("a", "s1", "c")
	l.write("a", 0, l.data(200_000))
	l.settle()
	l.close()
	l.open()
	l.must(l.s.RenameVolume(t.Context(), "c", "d"))
	l.write("a", 8<<20, l.data(100_000))
	l.write("a", 4<<40+64<<10, l.pool[0])
	l.write("d", 0, l.pool[3])
	l.must(l.s.DeleteSnapshot(t.Context(), "a", "s2"))
	l.settle()
	l.close()
	return l.dir
}

// TestDamagedCheckpoint damages each field of a part, once so that a checksum tells, once with all checksums and the hash right, and rows of each table.
func TestDamagedCheckpoint(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	dir := changedStore(t)
	p := plainPart(t, dir)
	mustBeClean(t, dir, "with a part that is not compressed")
	header := frameHeader + frameChunkSize
	fields := []field{
		{"magic", 0, 8}, {"version", 8, 4}, {"kind", 12, 1}, {"last", 13, 1}, {"reserved", 14, 2}, {"number", 16, 8}, {"base", 24, 8}, {"part", 32, 4}, {"rows", 36, 4}, {"rows before", 40, 8},
		{"previous", 48, 16}, {"key length", 64, 2}, {"value length", 66, 4},
	}
	rel, _ := filepath.Rel(dir, p.path)
	for _, f := range fields {
		t.Run(f.name, func(t *testing.T) {
			mustFind(t, mutate(t, dir, p.path, func(b []byte) []byte { b[p.at+header+f.off] ^= 0x10; return b }), rel)
		})
		t.Run(f.name+" with right sums", func(t *testing.T) {
			raw := slices.Clone(p.raw)
			raw[f.off] ^= 0x13
			mustFind(t, mutate(t, dir, p.path, func([]byte) []byte { return p.with(raw) }), "")
		})
	}
	part, err := parsePart(p.raw)
	if err != nil {
		t.Fatal(err)
	}
	tables, at := "", partHeader
	for i := range part.rows {
		r := &part.rows[i]
		val := at + 6 + len(r.key)
		at = val + len(r.value)
		if strings.ContainsRune(tables, rune(r.key[0])) || r.gone {
			continue
		}
		tables += string(r.key[:1])
		places := map[string]int{"key": val - 1}
		if len(r.value) > 0 {
			places["value"] = val + min(16, len(r.value)-1)
		}
		if r.key[0] == tableMeta {
			delete(places, "key")
		}
		for name, off := range places {
			t.Run(string(r.key[:1])+" "+name, func(t *testing.T) {
				raw := slices.Clone(p.raw)
				raw[off] ^= 0x10
				mustFind(t, mutate(t, dir, p.path, func([]byte) []byte { return p.with(raw) }), "")
			})
		}
	}
	for _, want := range "DLMNPRSV" {
		if !strings.ContainsRune(tables, want) {
			t.Errorf("the part has tables %s, want %c among them", tables, want)
		}
	}
}
