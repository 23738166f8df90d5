package check

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// TestDamagedGCRecord damages each field of the record of garbage collection once.
func TestDamagedGCRecord(t *testing.T) {
	dir := t.TempDir()
	s, err := blockstore.Open(context.Background(), options(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Audit(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.PauseGC(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, gcName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if g, err := parseGC(b); err != nil || g.Audits == 0 || g.Flags != gcPaused|gcAudited {
		t.Fatalf("%+v, %v", g, err)
	}
	mustBeClean(t, dir, "before")
	flips(t, dir, path, 0, []field{
		{"magic", 0, 8}, {"version", 8, 4}, {"flags", 12, 1}, {"reserved 1", 13, 3}, {"store", 16, 16}, {"audits", 32, 8}, {"ended", 40, 8}, {"took", 48, 8}, {"chunks", 56, 8}, {"references", 64, 8},
		{"unreachable", 72, 8}, {"unreachable bytes", 80, 8}, {"missing", 88, 8}, {"wrong segments", 96, 8}, {"reserved 2", 104, 20}, {"crc", 124, 4},
	}, func(b []byte) { fixSum(b, 124) }, "crc", "flags", "audits", "ended", "took", "chunks", "references", "unreachable", "unreachable bytes", "missing", "wrong segments")
}
