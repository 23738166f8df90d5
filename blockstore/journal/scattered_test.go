package journal

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestReadScattered reads blocks of several files in a random order, with and without a file system that can be mapped, and compares them; then one of them is damaged, and one lies beyond the end of its
// file.
func TestReadScattered(t *testing.T) {
	t.Run("mapped", func(t *testing.T) { testReadScattered(t, vfs.Default, t.TempDir()) })
	t.Run("in memory", func(t *testing.T) { testReadScattered(t, vfs.NewCrashableMem(), "log") })
}

func testReadScattered(t *testing.T, fsys vfs.FS, dir string) {
	l, _ := openAll(t, testOptions(fsys, dir, 1))
	defer l.Close()
	rng := rand.New(rand.NewPCG(3, 9))
	var wrote []entry
	for len(wrote) < 200 {
		for _, e := range appendRandom(t, l, rng) {
			if e.Kind == Write {
				wrote = append(wrote, e)
			}
		}
	}
	pin := l.Pin()
	defer pin.Release()
	if first, last := wrote[0].Pos.File(), wrote[len(wrote)-1].Pos.File(); first == last {
		t.Fatal("all lies in one file")
	}
	pieces := make([]Piece, len(wrote))
	order := rng.Perm(len(wrote))
	for i, k := range order {
		e := &wrote[k]
		pieces[i] = Piece{make([]byte, e.Len), e.Pos, e.Sums}
	}
	for n := range 2*touchAtOnce + 2 { // each number of pieces in the last group
		if err := l.ReadScattered(pieces[:n]); err != nil {
			t.Fatalf("%d pieces: %v", n, err)
		}
	}
	if err := l.ReadScattered(pieces); err != nil {
		t.Fatal(err)
	}
	for i, k := range order {
		if string(pieces[i].P) != string(wrote[k].data) {
			t.Fatalf("piece %d at %v is not what was written", i, pieces[i].Pos)
		}
		if !l.Cached(pieces[i].Pos, int64(len(pieces[i].P))) {
			t.Logf("piece %d is not in memory", i) // short memory is no fault of ours
		}
	}

	bad := pieces[:touchAtOnce+3]
	e := wrote[order[touchAtOnce+1]]
	flip(t, fsys, filepath.Join(dir, fileName(e.Pos.File())), e.Pos.Offset())
	var corrupt *block.CorruptError
	if err := l.ReadScattered(bad); !errors.As(err, &corrupt) || corrupt.Offset != e.Pos.Offset() {
		t.Errorf("a damaged piece at %d: %v", e.Pos.Offset(), err)
	}
	for _, p := range []Piece{
		{make([]byte, sectorSize), pieces[0].Pos, nil},
		{make([]byte, sectorSize-1), pieces[0].Pos, pieces[0].Sums[:1]},
	} {
		if err := l.ReadScattered([]Piece{p}); !errors.Is(err, block.ErrInvalid) {
			t.Errorf("%d B with %d sums: %v", len(p.P), len(p.Sums), err)
		}
	}
	if err := l.ReadScattered([]Piece{{make([]byte, sectorSize), pieces[0].Pos | 1<<60, pieces[0].Sums[:1]}}); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("a file that is not there: %v", err)
	}
	if fsys != vfs.Default {
		return
	}
	// What a device that fails does, too: the page cannot be had, and copies of others in the same group are under way.
	gone := wrote[order[0]]
	if err := os.Truncate(filepath.Join(dir, fileName(gone.Pos.File())), 0); err != nil {
		t.Fatal(err)
	}
	if err := l.ReadScattered(pieces[:3]); !errors.Is(err, unix.EIO) {
		t.Errorf("a page that is gone: %v", err)
	}
}
