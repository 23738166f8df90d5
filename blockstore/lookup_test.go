package blockstore

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

func memoryDB(t *testing.T) *pebble.DB {
	t.Helper()
	db, err := pebble.Open("db", &pebble.Options{FS: vfs.NewCrashableMem(), Logger: quietLogger{}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func randomHash(r *rand.Rand) (h [16]byte) {
	binary.LittleEndian.PutUint64(h[:8], r.Uint64())
	binary.LittleEndian.PutUint64(h[8:], r.Uint64())
	return h
}

func setHint(t *testing.T, db *pebble.DB, h [16]byte) {
	t.Helper()
	if err := db.Set(append([]byte{keyHint}, h[:]...), make([]byte, 8), pebble.NoSync); err != nil {
		t.Fatal(err)
	}
}

// A hint that is there must never be denied, whatever parts were built before or after it came; one that is not there must mostly be.
func TestHintFilter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	db := memoryDB(t)
	f := newHintFilter(db, 64<<20, 0)
	var there [][16]byte
	add := func(h [16]byte) {
		setHint(t, db, h)
		f.added(&h)
		there = append(there, h)
	}
	// The parts of the first and the last hashes, and crowded ones: more than a part has room for at first.
	for i := range 3 * hintPartSpare {
		h := randomHash(r)
		h[0], h[1] = [3]byte{0, 0xff, 0x80}[i%3], [3]byte{0x0f, 0xf0, 0x7a}[i%3]
		add(h)
		if i%100 == 0 {
			f.perhaps(&h) // builds the part
		}
	}
	for range 20000 {
		add(randomHash(r))
	}
	for _, h := range there {
		if !f.perhaps(&h) {
			t.Fatalf("hint %x is denied", h)
		}
	}
	wrong := 0
	const asked = 20000
	for range asked {
		h := randomHash(r)
		if f.perhaps(&h) {
			wrong++
		}
	}
	if wrong > asked/50 {
		t.Errorf("%d of %d hashes that are not there pass", wrong, asked)
	}
	if used := f.used; used == 0 || used > 64<<20 {
		t.Errorf("%d B used", used)
	}
}

func TestHintFilterBudget(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 3))
	f := newHintFilter(memoryDB(t), 10_000, 0)
	for range 1000 {
		h := randomHash(r)
		f.perhaps(&h)
		if f.used > 10_000 {
			t.Fatalf("%d B used", f.used)
		}
	}
	h := randomHash(r)
	if f.used = f.budget; !f.perhaps(&h) && f.parts[hintPartOf(&h)] == nil {
		t.Error("over its budget the filter denies what it cannot know")
	}
}

// A count that is there must never be denied: it would be taken for 1, and the chunk freed under its other owners.
func TestRefFilter(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	db := memoryDB(t)
	f := newRefFilter(db)
	counts := map[block.ChunkID]uint64{}
	for round := range 50 {
		b := db.NewBatch()
		var refs extentmap.Refs
		for range 200 {
			id := block.ChunkID(1 + r.Uint64N(300)*1000) // five blocks
			if counts[id] == 0 {
				refs.New(id)
				counts[id] = 1
				refs.Add(id, 1)
			} else if counts[id] > 1 && r.IntN(2) == 0 {
				counts[id]--
				refs.Add(id, -1)
			} else {
				counts[id]++
				refs.Add(id, 1)
			}
		}
		if err := refs.Resolve(f, refWriter{b, f}, func(id block.ChunkID, _, after uint64) error {
			if after != counts[id] {
				t.Fatalf("round %d: chunk %d has %d references, want %d", round, id, after, counts[id])
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(pebble.NoSync); err != nil {
			t.Fatal(err)
		}
		if round%7 == 0 {
			clear(f.blocks)
		}
	}
}

func TestRowCache(t *testing.T) {
	c := newRowCache(1 << 20)
	if _, ok, _ := c.get(5); ok {
		t.Fatal("an empty cache knows a row")
	}
	_, _, gen := c.get(5)
	c.put(5, chunkRow{RawLen: 1}, gen)
	if row, ok, _ := c.get(5); !ok || row.RawLen != 1 {
		t.Fatalf("put, then got %v %v", row, ok)
	}
	c.changed(5, &chunkRow{RawLen: 2})
	if row, _, _ := c.get(5); row.RawLen != 2 {
		t.Errorf("after a change: %v", row)
	}
	c.changed(5, nil)
	if _, ok, _ := c.get(5); ok {
		t.Error("a removed row is still known")
	}
	// A reader that read the row before it was removed and keeps it afterwards.
	_, _, gen = c.get(7)
	c.changed(7, nil)
	c.put(7, chunkRow{RawLen: 3}, gen)
	if _, ok, _ := c.get(7); ok {
		t.Error("a row came back that was removed while it was read")
	}
	for id := block.ChunkID(1); id < 200_000; id++ {
		_, _, gen := c.get(id)
		c.put(id, chunkRow{RawLen: uint32(id)}, gen)
	}
	known := 0
	for id := block.ChunkID(1); id < 200_000; id++ {
		if row, ok, _ := c.get(id); ok {
			known++
			if row.RawLen != uint32(id) {
				t.Fatalf("row of %d is that of %d", id, row.RawLen)
			}
		}
	}
	if known < 1000 {
		t.Errorf("only %d rows are kept in 1 MiB", known)
	}
}

func TestHintCache(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 5))
	c := newHintCache(64 << 10)
	var recent [][16]byte
	for i := range 10_000 {
		h := randomHash(r)
		c.put(&h, block.ChunkID(i+1))
		recent = append(recent, h)
	}
	found := 0
	for i := len(recent) - 1000; i < len(recent); i++ {
		if id, ok := c.find(&recent[i]); ok {
			found++
			if id != block.ChunkID(i+1) {
				t.Fatalf("hint %d names %d", i+1, id)
			}
		}
	}
	if found < 900 {
		t.Errorf("%d of the last 1000 hints are found", found)
	}
	h := recent[len(recent)-1]
	c.put(&h, 77)
	if id, ok := c.find(&h); !ok || id != 77 {
		t.Errorf("a newer hint does not replace the older: %d %v", id, ok)
	}
	c.drop(&h, 10_000)
	if _, ok := c.find(&h); !ok {
		t.Error("the end of an older chunk took the newer hint")
	}
	c.drop(&h, 77)
	if id, ok := c.find(&h); ok {
		t.Errorf("a dropped hint still names %d", id)
	}
}

func TestRowIter(t *testing.T) {
	db := memoryDB(t)
	r := rand.New(rand.NewPCG(1, 6))
	there := map[block.ChunkID]bool{}
	for id := block.ChunkID(1); id < 3000; id++ {
		if r.IntN(3) > 0 {
			there[id] = true
			row := chunkRow{RawLen: uint32(id)}
			if err := db.Set(key64(keyChunk, uint64(id)), row.encode(nil), pebble.NoSync); err != nil {
				t.Fatal(err)
			}
		}
	}
	var it rowIter
	defer it.close()
	ask := func(id block.ChunkID) {
		row, err := it.row(db, id)
		if there[id] != (err == nil) || err != nil && !errors.Is(err, block.ErrNotFound) || err == nil && row.RawLen != uint32(id) {
			t.Fatalf("row %d: %v, %v; there: %v", id, row.RawLen, err, there[id])
		}
	}
	for id := block.ChunkID(1); id < 3100; id++ {
		ask(id)
		if r.IntN(4) == 0 {
			ask(id)
		}
	}
	for range 3000 {
		ask(block.ChunkID(1 + r.IntN(3100)))
	}
}

// TestDenseHintFilter: with less memory for each hash there are more false answers, and still none that denies.
func TestDenseHintFilter(t *testing.T) {
	const hashes = 1 << 21
	r := rand.New(rand.NewPCG(3, 4))
	there := make([][16]byte, hashes)
	for i := range there {
		there[i] = randomHash(r)
	}
	db := memoryDB(t)
	for i := range there {
		setHint(t, db, there[i])
	}
	for _, c := range []struct {
		bits float64
		most float64 // part of the answers that may be false
	}{{12.8, 0.01}, {8, 0.05}, {6.4, 0.09}, {4, 0.27}} {
		f := newHintFilter(db, int64(float64(hintRoom(hashes))*c.bits/8), hashes)
		for i := range there {
			if !f.perhaps(&there[i]) {
				t.Fatalf("%.1f bits: hint %x is denied", c.bits, there[i])
			}
		}
		wrong := 0
		const asked = 100_000
		for range asked {
			h := randomHash(r)
			if f.perhaps(&h) {
				wrong++
			}
		}
		t.Logf("%.1f bits, %d a block, %d probes: %.2f %% false, %.1f MiB of %.1f", c.bits, f.perBlock, f.probes, 100*float64(wrong)/asked, float64(f.used)/(1<<20), float64(f.budget)/(1<<20))
		if float64(wrong) > c.most*asked {
			t.Errorf("%.1f bits: %d of %d answers are false", c.bits, wrong, asked)
		}
	}
}
