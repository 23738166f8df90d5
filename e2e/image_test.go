package e2e

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// randomBytes returns n bytes that no compression and no dedup makes smaller. A seed always gives the same.
func randomBytes(seed, n int) []byte {
	p := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(p) // documented never to fail
	return p
}

// sparseImage writes a raw file of the given size: runs of random bytes, of text and of zeroes that are written, with holes between them.
func sparseImage(t *testing.T, seed byte, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.raw")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	rng := rand.New(rand.NewChaCha8([32]byte{seed, 1}))
	noise := rand.NewChaCha8([32]byte{seed, 2})
	for off := int64(0); off < size; off += 512 * (1 + rng.Int64N(8192)) {
		run := make([]byte, min(512*(1+rng.Int64N(2048)), size-off))
		switch rng.IntN(4) {
		case 0: // zeroes
		case 1:
			copy(run, bytes.Repeat([]byte("all work and no play makes jack a dull boy\n"), len(run)/43+1))
		default:
			_, _ = noise.Read(run)
		}
		if _, err := f.WriteAt(run, off); err != nil {
			t.Fatal(err)
		}
		off += int64(len(run))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// equalFiles fails the test when two files differ, and says where.
func equalFiles(t *testing.T, want, got string) {
	t.Helper()
	a, err := os.Open(want)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	b, err := os.Open(got)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	x, y := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); ; off += int64(len(x)) {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			t.Fatalf("%s and %s differ at %d", want, got, off+int64(differAt(x[:n], y[:m])))
		}
		if errA != nil || errB != nil {
			if !errors.Is(errA, io.EOF) && !errors.Is(errA, io.ErrUnexpectedEOF) {
				t.Fatal(errA, errB)
			}
			return
		}
	}
}

// differAt returns the index of the first byte that differs.
func differAt(a, b []byte) int {
	i := 0
	for i < min(len(a), len(b)) && a[i] == b[i] {
		i++
	}
	return i
}
