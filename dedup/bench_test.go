package dedup_test

import (
	"math/rand/v2"
	"testing"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"

	"github.com/hyper-nixos/hyper-nixos/dedup"
)

func BenchmarkHasher(b *testing.B) {
	h := dedup.NewHasher(testKey(b))
	for _, n := range []int{4 << 10, 16 << 10, 64 << 10} {
		p := randomBytes(1, n)
		b.Run(sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				h.Sum(p)
			}
		})
	}
}

func BenchmarkIsZero(b *testing.B) {
	for _, n := range []int{4 << 10, 16 << 10} {
		p := make([]byte, n)
		b.Run(sizeName(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			for b.Loop() {
				dedup.IsZero(p)
			}
		})
	}
}

// BenchmarkProbe sets the cost of the probe against that of the work it can save: compressing what does not compress.
func BenchmarkProbe(b *testing.B) {
	p := randomBytes(1, 16<<10)
	run := func(name string, f func()) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(p)))
			for b.Loop() {
				f()
			}
		})
	}
	dst := make([]byte, s2.MaxEncodedLen(len(p)))
	z, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		b.Fatal(err)
	}
	run("incompressible", func() { dedup.Incompressible(p) })
	run("s2", func() { s2.Encode(dst, p) })
	run("zstd", func() { dst = z.EncodeAll(p, dst[:0]) })
}

func randomBytes(seed uint64, n int) []byte {
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	p := make([]byte, n)
	src.Read(p)
	return p
}
