package vfs

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

func TestAppender(t *testing.T) {
	for _, c := range []struct {
		name string
		fs   FS
		dir  string
	}{{"disk", Default, t.TempDir()}, {"memory", NewCrashableMem(), ""}, {"shm", Default, shm(t)}} {
		t.Run(c.name, func(t *testing.T) {
			name := filepath.Join(c.dir, "f")
			f, err := Create(c.fs, name)
			if err != nil {
				t.Fatal(err)
			}
			a := NewAppender(f)
			t.Logf("direct: %v", a.direct)
			other, err := c.fs.Open(name)
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			rng := rand.New(rand.NewPCG(1, 2))
			var want []byte
			for k := range 120 {
				p := make([]byte, []int{1, 100, 4096, 5000, 1 << 20, 2<<20 + 77}[rng.IntN(6)])
				for i := range p {
					p[i] = byte(rng.Uint32())
				}
				if n, err := a.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				want = append(want, p...)
				if k%5 == 0 {
					if err := a.Sync(); err != nil {
						t.Fatal(err)
					}
					if st, err := other.Stat(); err != nil || st.Size() != int64(len(want)) {
						t.Fatalf("the file has %d bytes of %d: %v", st.Size(), len(want), err)
					}
					from := max(0, len(want)-3<<20)
					got := make([]byte, len(want)-from)
					if err := ReadFull(other, got, int64(from)); err != nil || !bytes.Equal(got, want[from:]) {
						t.Fatalf("append %d is not what another handle reads: %v", k, err)
					}
				}
				if len(want) > 24<<20 {
					break
				}
			}
			if err := a.Sync(); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if err := ReadFull(other, got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the whole file differs: %v", err)
			}
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// shm returns a directory on another kind of file system.
func shm(t *testing.T) string {
	dir, err := os.MkdirTemp("/dev/shm", "hv-appender")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
