package journal

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestHotPathsAllocateNothing appends and reads through the same Records again and again.
func TestHotPathsAllocateNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	opts := testOptions(vfs.Default, t.TempDir(), 1)
	opts.FileSize, opts.Keys = 8<<20, nil // what encryption allocates is not promised
	l, _ := openAll(t, opts)
	defer l.Close()
	recs := make([]Record, 8)
	for i := range recs {
		recs[i] = oneWrite(uint64(i))[0]
	}
	waitPrepared(l)
	for range 40 { // let the scratch and the index grow
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
	}
	p := make([]byte, sectorSize)
	if n := testing.AllocsPerRun(100, func() {
		if err := l.Append(recs); err != nil {
			t.Fatal(err)
		}
		pin := l.Pin()
		if err := l.ReadAt(p, recs[3].Pos, recs[3].Sums); err != nil {
			t.Fatal(err)
		}
		_ = l.TryReadAt(p, recs[3].Pos, recs[3].Sums)
		pin.Release()
	}); n >= 1 {
		t.Fatalf("%v allocations", n)
	}
}
