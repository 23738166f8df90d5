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

// TestDamagedHistoryParity damages each field of a sidecar of history once, and the file beside it where only parity tells, and puts other sidecars in its place.
func TestDamagedHistoryParity(t *testing.T) {
	l := newLab(t, 32)
	l.create("a", 8<<20)
	l.must(l.s.SetHistory(context.Background(), "a", blockstore.HistoryPolicy{Window: time.Hour}))
	for i := range uint64(2) { // each open begins a file
		l.write("a", i<<20, l.data(200_000))
		_, err := l.s.MarkHistory(context.Background(), "a", "mark") // what was written is copied now
		l.must(err)
		l.close()
		if i == 0 {
			l.open()
		}
	}
	opts := options(t, l.dir)
	opts.Parity = erasure.Default
	s, err := blockstore.Open(context.Background(), opts)
	l.must(err)
	l.s = s
	glob := func(suffix string) []string {
		all, err := filepath.Glob(filepath.Join(l.dir, historyName, "0000000000000001", "*"+suffix))
		l.must(err)
		return all
	}
	for end := time.Now().Add(2 * time.Minute); len(glob(historySidecar)) < 2 || len(glob(historySidecar)) < len(glob(historySuffix)); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no sidecars in time")
		}
	}
	_, err = s.StartScrub(false)
	l.must(err)
	for end := time.Now().Add(2 * time.Minute); s.Scrub().State != blockstore.ScrubDone; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no scrub in time")
		}
	}
	l.close()
	rep := mustBeClean(t, l.dir, "as it was made")
	sidecars, files := glob(historySidecar), glob(historySuffix)
	if len(sidecars) < 2 || rep.Totals.HistoryParity == 0 {
		t.Fatalf("%v, %+v", sidecars, rep.Totals)
	}
	path := sidecars[0]
	b := read(t, path)
	h, err := parseParityHead(b[:parityHead])
	l.must(err)
	if h.Segment != historyPartID(1, 0) || h.Size != uint64(len(read(t, files[0]))) {
		t.Fatalf("%+v", h)
	}
	n, k := int(h.Here), int(h.Data)
	second := parityHead + n*int(h.Parity)*parityColumn
	fields := []field{
		{"magic", 0, 8}, {"version", 8, 4}, {"data shards", 12, 1}, {"stripes here", 14, 1}, {"store", 16, 16}, {"file", 32, 8}, {"header crc", 40, 4}, {"footer crc", 44, 4}, {"size", 48, 8}, {"group", 60, 4},
		{"reserved", 64, 60}, {"sum of data", paritySums, 4}, {"sum of parity", paritySums + 4*n*k, 4}, {"crc", 4092, 4},
	}
	for name, base := range map[string]int{"first head": 0, "second head": second} {
		t.Run(name, func(t *testing.T) {
			flips(t, l.dir, path, base, fields, func(b []byte) { fixSum(b[base:], 4092) }, "crc")
		})
	}
	t.Run("parity", func(t *testing.T) { flips(t, l.dir, path, parityHead, []field{{"column", 0, 4096}}, nil) })
	rel, _ := filepath.Rel(l.dir, path)
	for what, change := range map[string]func([]byte) []byte{
		"shorter": func(b []byte) []byte { return b[:len(b)-1] }, "longer": func(b []byte) []byte { return append(b, 0) }, "empty": func([]byte) []byte { return nil },
	} {
		t.Run(what, func(t *testing.T) { mustFind(t, mutate(t, l.dir, path, change), rel) })
	}
	// That of another file is no damage: hvd replaces it, and nothing is mended by it.
	foreign := read(t, sidecars[1])
	if rep := mutate(t, l.dir, path, func([]byte) []byte { return foreign }); rep.Errors > 0 || rep.Warnings == 0 {
		t.Errorf("a sidecar of other bytes: %+v", rep.Findings)
	}
	// What a death leaves is no damage either.
	for _, name := range []string{"00000001.par.tmp", "00000001.hist.mend", "000000ff.par"} {
		over := filepath.Join(filepath.Dir(path), name)
		l.must(os.WriteFile(over, b, 0o600))
		got, err := Run(context.Background(), l.dir, Options{})
		l.must(err)
		if got.Errors > 0 || got.Warnings != 1 {
			t.Errorf("%s: %+v", name, got.Findings)
		}
		l.must(os.Remove(over))
	}
	t.Run("scrub", func(t *testing.T) {
		scrub := filepath.Join(l.dir, scrubName)
		if b := read(t, scrub); binary.LittleEndian.Uint32(b[8:]) != 2 || binary.LittleEndian.Uint64(b[88:]) < 2 {
			t.Fatalf("% x", b)
		}
		flips(t, l.dir, scrub, 0, []field{{"version", 8, 4}, {"files", 88, 8}, {"volume", 96, 8}, {"file", 104, 4}, {"reserved", 108, 16}, {"crc", 124, 4}}, func(b []byte) { fixSum(b, 124) }, "crc", "files", "volume", "file")
	})
	d, err := DumpParity(path)
	var text strings.Builder
	if err == nil {
		err = d.WriteText(&text)
	}
	if err != nil || d.Error != "" || len(d.Heads) == 0 || len(d.Heads[0].Damaged) > 0 || !strings.Contains(text.String(), "of history file 00000001") {
		t.Errorf("dump: %s%+v, %v", text.String(), d, err)
	}
	mustBeClean(t, l.dir, "after all was put back")
}
