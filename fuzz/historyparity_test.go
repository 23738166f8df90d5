package fuzz

import (
	"context"
	"os"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

const (
	historyFile    = "history/0000000000000007/00000001.hist"
	historySidecar = "history/0000000000000007/00000001.par"
)

// FuzzHistorySidecar puts what may be a sidecar beside a file of history, a byte of which may be damaged: an open, reads, a look and a repair give nothing else than errors of package block, and a file that was whole stays as it is.
func FuzzHistorySidecar(f *testing.F) {
	golden, err := os.ReadFile("../blockstore/history/testdata/history.golden")
	if err != nil {
		f.Fatal(err)
	}
	side := historyParity(f, golden)
	f.Add(side, uint32(0))
	f.Add(side, uint32(20))
	f.Add(side, uint32(len(golden)-10))
	f.Add(side[:len(side)-4096], uint32(600))
	f.Fuzz(func(t *testing.T, b []byte, at uint32) {
		for _, b := range [][]byte{b, withHeadChecksums(b)} {
			fs := vfs.NewCrashableMem()
			file := append([]byte(nil), golden...)
			if at > 0 {
				file[int(at)%len(file)] ^= 1
			}
			putFile(t, fs, historyFile, file)
			putFile(t, fs, historySidecar, b)
			mendHistory(t, fs)
			if at > 0 {
				continue
			}
			if left := getFile(t, fs, historyFile, len(golden)); string(left) != string(golden) {
				t.Fatal("a file that was whole is another one")
			}
		}
	})
}

// mendHistory opens, reads, looks at and mends what lies there.
func mendHistory(t *testing.T, fs *vfs.MemFS) {
	s, bad, err := history.Open(history.Options{FS: fs, Dir: "history", StoreID: block.UUID{1}})
	if err != nil {
		t.Fatal(err)
	}
	allowed(t, bad[7])
	ctx, work := context.Background(), &history.Work{Coder: erasure.NewCoder}
	if st := s.Stream(7); st != nil {
		read := func(r *history.Record) error {
			if r.Kind == history.Write {
				allowed(t, s.ReadAt(make([]byte, r.Len), r.Pos, r.Sums))
			}
			return nil
		}
		allowed(t, st.Each(0, ^uint64(0), read))
		for _, of := range s.Sealed() {
			_, err := s.Check(ctx, of.FileKey, work)
			allowed(t, err)
			_, err = s.Mend(ctx, of.FileKey, work)
			allowed(t, err)
			_, _, err = s.Lost(ctx, of.FileKey, 8, nil)
			allowed(t, err)
		}
		s.Lacks(erasure.Default)
		allowed(t, st.Each(0, ^uint64(0), read))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// historyParity makes the sidecar of a file.
func historyParity(f *testing.F, file []byte) []byte {
	fs := vfs.NewCrashableMem()
	putFile(f, fs, historyFile, file)
	s, bad, err := history.Open(history.Options{FS: fs, Dir: "history", StoreID: block.UUID{1}})
	if err != nil || len(bad) > 0 || len(s.Sealed()) != 1 {
		f.Fatal(err, bad)
	}
	of := s.Sealed()[0]
	n, err := s.Guard(context.Background(), of.FileKey, erasure.Default, &history.Work{Coder: erasure.NewCoder})
	if err != nil {
		f.Fatal(err)
	}
	if err := s.Close(); err != nil {
		f.Fatal(err)
	}
	return getFile(f, fs, historySidecar, int(n))
}

func putFile(tb testing.TB, fs *vfs.MemFS, path string, b []byte) {
	tb.Helper()
	if err := fs.MkdirAll(fs.PathDir(path), 0o700); err != nil {
		tb.Fatal(err)
	}
	f, err := vfs.Create(fs, path)
	if err != nil {
		tb.Fatal(err)
	}
	if len(b) > 0 {
		if _, err := f.Write(b); err != nil {
			tb.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		tb.Fatal(err)
	}
}

func getFile(tb testing.TB, fs *vfs.MemFS, path string, n int) []byte {
	tb.Helper()
	f, err := fs.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, n)
	if err := vfs.ReadFull(f, b, 0); err != nil {
		tb.Fatal(err)
	}
	return b
}
