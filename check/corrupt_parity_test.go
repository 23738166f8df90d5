package check

import (
	"context"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// guardedStore is a closed store whose sealed segments have sidecars, and that was scrubbed once.
func guardedStore(t *testing.T, shape erasure.Shape) string {
	l := newLab(t, 43)
	l.create("a", 16<<20)
	for i := range uint64(5) {
		l.write("a", i*(256<<10), l.data(200_000))
	}
	l.settle()
	l.close()
	opts := options(t, l.dir)
	opts.Parity = shape
	s, err := blockstore.Open(context.Background(), opts)
	l.must(err)
	l.s = s
	until := func(what string, ok func() bool) {
		t.Helper()
		for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: not within half a minute", what)
			}
		}
	}
	until("sidecars", func() bool { st := s.Stats(); return st.GuardedBytes > 0 && st.UnguardedBytes == 0 })
	_, err = s.StartScrub(false)
	l.must(err)
	until("scrub", func() bool { return s.Scrub().State == blockstore.ScrubDone })
	l.close()
	return l.dir
}

// TestDamagedParity damages each field of a sidecar and of the record of a scrub once, takes the files away, and puts others in their place.
func TestDamagedParity(t *testing.T) {
	t.Parallel() // it takes long, and no time counts in it
	dir := guardedStore(t, erasure.Default)
	mustBeClean(t, dir, "as it was made")
	path := ""
	for _, p := range segmentFiles(t, dir, 2) {
		if par := strings.TrimSuffix(p, ".seg") + ".par"; path == "" {
			if _, err := os.Stat(par); err == nil {
				path = par
			}
		}
	}
	if path == "" {
		t.Fatal("no sidecar")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	h, err := parseParityHead(b[:parityHead])
	if err != nil {
		t.Fatal(err)
	}
	n, k := int(h.Here), int(h.Data)
	fields := []field{
		{"magic", 0, 8}, {"version", 8, 4}, {"data shards", 12, 1}, {"parity shards", 13, 1}, {"stripes here", 14, 1}, {"reserved 1", 15, 1}, {"store", 16, 16}, {"segment", 32, 8}, {"generation", 40, 4},
		{"footer crc", 44, 4}, {"size", 48, 8}, {"stripes", 56, 4}, {"group", 60, 4}, {"reserved 2", 64, 60}, {"sum of data", paritySums, 4}, {"sum of parity", paritySums + 4*n*k, 4}, {"end", 4088, 4}, {"crc", 4092, 4},
	}
	for name, base := range map[string]int{"first head": 0, "second head": parityHead + n*int(h.Parity)*parityColumn} {
		t.Run(name, func(t *testing.T) {
			flips(t, dir, path, base, fields, func(b []byte) { fixSum(b[base:], 4092) }, "crc")
		})
	}
	t.Run("parity", func(t *testing.T) {
		flips(t, dir, path, parityHead, []field{{"first column", 0, 4096}, {"last column", (n*int(h.Parity) - 1) * parityColumn, 4096}}, func(b []byte) {
			for _, head := range []int{0, parityHead + n*int(h.Parity)*parityColumn} {
				for i := range n * int(h.Parity) {
					binary.LittleEndian.PutUint32(b[head+paritySums+4*(n*k+i):], crc(b[parityHead+i*parityColumn:][:parityColumn]))
				}
				fixSum(b[head:], 4092)
			}
		})
	})
	rel, _ := filepath.Rel(dir, path)
	mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return b[:len(b)-1] }), rel)
	mustFind(t, mutate(t, dir, path, func(b []byte) []byte { return append(b, 0) }), rel)
	mustFind(t, mutate(t, dir, path, func([]byte) []byte { return nil }), rel)
	t.Run("scrub", func(t *testing.T) {
		flips(t, dir, filepath.Join(dir, "scrub"), 0, []field{
			{"magic", 0, 8}, {"version", 8, 4}, {"state", 12, 1}, {"find only", 13, 1}, {"reserved 1", 14, 2}, {"store", 16, 16}, {"run", 32, 8}, {"started", 40, 8}, {"ended", 48, 8}, {"segments", 56, 8},
			{"bytes", 64, 8}, {"damaged", 72, 8}, {"mended", 80, 8}, {"reserved 2", 88, 36}, {"crc", 124, 4},
		}, func(b []byte) { fixSum(b, 124) }, "crc", "run", "started", "ended", "segments", "bytes")
	})
	// A sidecar of another store, which differs in its identity alone.
	other := guardedStore(t, erasure.Default)
	if strange, err := filepath.Glob(filepath.Join(other, "segments", "*", "*.par")); err != nil || len(strange) == 0 {
		t.Fatal(strange, err)
	} else {
		foreign, err := os.ReadFile(strange[0])
		if err != nil {
			t.Fatal(err)
		}
		mustFind(t, mutate(t, dir, path, func([]byte) []byte { return foreign }), rel)
	}
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	mustFind(t, checkAnyway(t, dir), rel)
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	d, err := DumpParity(path)
	if err != nil || d.Error != "" || len(d.Heads) == 0 || d.Heads[0].Head.Segment != h.Segment || len(d.Heads[0].Damaged) > 0 {
		t.Errorf("dump: %+v, %v", d, err)
	}
	mustBeClean(t, dir, "after all was put back")
}

// TestParityOfAllShapes lets the second reader compute the parity of shapes whose matrices differ.
func TestParityOfAllShapes(t *testing.T) {
	for _, shape := range []erasure.Shape{{Data: 2, Parity: 2}, {Data: 5, Parity: 3}, {Data: 23, Parity: 8}} {
		mustBeClean(t, guardedStore(t, shape), shape.String())
	}
}

// TestGoldenParity reads the golden bytes of a sidecar.
func TestGoldenParity(t *testing.T) {
	d, err := DumpParity("../tiers/erasure/testdata/parity-2+1")
	if err != nil || d.Error != "" || len(d.Heads) != 2 {
		t.Fatalf("%+v, %v", d, err)
	}
	h := d.Heads[0].Head
	if h.Segment != 0x12f || h.Generation != 7 || h.FooterCRC != 0xabcdef01 || h.Size != 17_384 || h.Stripes != 3 || h.Data != 2 || h.Parity != 1 || len(d.Heads[0].Damaged) > 0 {
		t.Errorf("%+v", d.Heads[0])
	}
}
