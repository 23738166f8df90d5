package dir

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Large objects, which are written around the page cache, are what they were made of, whatever their sizes and in whatever pieces they come, also on a file system that cannot do that; and nothing is left of one whose bytes do not all come.
func TestLargeObjects(t *testing.T) {
	shm, err := os.MkdirTemp("/dev/shm", "hv-dir")
	if err != nil {
		shm = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(shm) })
	for _, root := range []string{t.TempDir(), shm} {
		d, err := Create(filepath.Join(root, "r"))
		if err != nil {
			t.Fatal(err)
		}
		ctx := context.Background()
		rng := rand.New(rand.NewPCG(4, 4))
		data := make([]byte, 5<<20+777)
		for i := range data {
			data[i] = byte(rng.Uint32())
		}
		for i, size := range []int{directFrom - 1, directFrom, directFrom + 1, 2<<20 - 4096, 3<<20 + 511, len(data)} {
			for _, from := range []bool{false, true} {
				key := "packs/aa/" + string(rune('a'+i))
				if from {
					key += "f"
					err = d.CreateFrom(ctx, key, int64(size), "", &inPieces{bytes.NewReader(data), rng})
				} else {
					err = d.Create(ctx, key, data[:size])
				}
				if err != nil {
					t.Fatalf("%d B: %v", size, err)
				}
				path := filepath.Join(d.root, key)
				got, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(got, data[:size]) {
					t.Errorf("%s: %d B are stored as %d other ones, %v", root, size, len(got), err)
				}
				if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s: %v, %v", path, info.Mode(), err)
				}
			}
		}
		broken := errors.New("broken")
		for _, n := range []int{0, 1, 512 << 10, 512<<10 + 1, 1 << 20, 3<<20 + 5} {
			for _, want := range []error{broken, io.ErrUnexpectedEOF} {
				from := io.Reader(bytes.NewReader(data[:n]))
				if want == broken {
					from = io.MultiReader(from, failing{broken})
				}
				if err := d.CreateFrom(ctx, "packs/aa/x", 4<<20, "", from); !errors.Is(err, want) {
					t.Errorf("%d B of 4 MiB come: %v", n, err)
				}
				if _, err := d.Stat(ctx, "packs/aa/x"); !errors.Is(err, block.ErrNotFound) {
					t.Errorf("%d B of 4 MiB come, and it is there: %v", n, err)
				}
			}
		}
		if left, err := os.ReadDir(filepath.Join(d.root, "tmp")); err != nil || len(left) != 0 {
			t.Errorf("%v is left, %v", left, err)
		}
	}
}

// inPieces reads no more than some bytes at once.
type inPieces struct {
	r   io.Reader
	rng *rand.Rand
}

// Read implements io.Reader.
func (p *inPieces) Read(b []byte) (int, error) {
	return p.r.Read(b[:min(len(b), 1+p.rng.IntN(100_000))])
}
