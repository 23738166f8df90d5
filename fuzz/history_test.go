package fuzz

import (
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// FuzzHistoryFile opens and reads what may be a file of history: an open that finds no footer reads it frame by frame and seals it, and nothing else than errors of package block comes of whatever is in it.
func FuzzHistoryFile(f *testing.F) {
	const footer = 128
	b, err := os.ReadFile("../blockstore/history/testdata/history.golden")
	if err != nil {
		f.Fatal(err)
	}
	thinned, err := os.ReadFile("../blockstore/history/testdata/thinned.golden")
	if err != nil {
		f.Fatal(err)
	}
	placed, err := os.ReadFile("../blockstore/history/testdata/placed.golden")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:len(b)-footer])
	f.Add(thinned)
	f.Add(thinned[:len(thinned)-footer])
	f.Add(placed)
	f.Add(placed[:len(placed)-footer])
	f.Fuzz(func(t *testing.T, b []byte) {
		readHistory(t, b)
	})
}

// readHistory opens a file of history, and reads all that it has.
func readHistory(t *testing.T, b []byte) {
	t.Helper()
	const volume = 7
	fs := vfs.NewCrashableMem()
	if err := fs.MkdirAll("history/0000000000000007", 0o700); err != nil {
		t.Fatal(err)
	}
	file, err := vfs.Create(fs, "history/0000000000000007/00000001.hist")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	s, bad, err := history.Open(history.Options{FS: fs, Dir: "history", StoreID: block.UUID{1}})
	if err != nil {
		t.Fatal(err)
	}
	allowed(t, bad[volume])
	if st := s.Stream(volume); st != nil {
		allowed(t, st.Each(0, ^uint64(0), func(r *history.Record) error {
			if r.Kind == history.Write {
				allowed(t, s.ReadAt(make([]byte, r.Len), r.Pos, r.Sums))
			}
			return nil
		}))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
