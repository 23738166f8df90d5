package blockstore

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// benchVolume is a volume of half compressible data with default options.
func benchVolume(b *testing.B, size uint64) (*Store, *Device) {
	s := openTest(b, Options{Dir: b.TempDir(), FS: vfs.Default})
	d := createTest(b, s, "v", size)
	rng := rand.New(rand.NewPCG(1, 1))
	for off := uint64(0); off < size; off += 1 << 20 {
		writeTest(b, d, off, guestData(rng, 1<<20))
	}
	return s, d
}

func benchRead(b *testing.B, d *Device, size uint64) {
	rng := rand.New(rand.NewPCG(2, 2))
	p := make([]byte, block.Size)
	b.SetBytes(block.Size)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.ReadAt(context.Background(), p, rng.Uint64N(size/block.Size)*block.Size, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadFromLog reads random blocks that are still raw in the log.
func BenchmarkReadFromLog(b *testing.B) {
	const size = 256 << 20
	_, d := benchVolume(b, size)
	benchRead(b, d, size)
}

// BenchmarkReadDestagedCached reads random blocks of a volume that fits the frame cache.
func BenchmarkReadDestagedCached(b *testing.B) {
	const size = 32 << 20
	s, d := benchVolume(b, size)
	settleTest(b, s)
	benchRead(b, d, size)
}

// BenchmarkReadDestaged reads random blocks of a volume that is many times the frame cache; segments are in the page cache.
func BenchmarkReadDestaged(b *testing.B) {
	const size = 1 << 30
	s, d := benchVolume(b, size)
	settleTest(b, s)
	benchRead(b, d, size)
}

// BenchmarkWrite4K appends batches of 32 random blocks, as a connection at depth 32 does.
func BenchmarkWrite4K(b *testing.B) {
	const size = 256 << 20
	_, d := benchVolume(b, size)
	rng := rand.New(rand.NewPCG(3, 3))
	data := guestData(rng, 32*block.Size)
	batch := make([]block.Write, 32)
	b.SetBytes(int64(len(data)))
	b.ReportAllocs()
	for b.Loop() {
		for i := range batch {
			batch[i] = block.Write{Off: rng.Uint64N(size/block.Size) * block.Size, Data: data[i*block.Size : (i+1)*block.Size]}
		}
		if err := d.Write(context.Background(), batch, false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIngest writes unique data and brings it down: log, cut, hash, compression, segments and maps.
func BenchmarkIngest(b *testing.B) {
	const size = 256 << 20
	s := openTest(b, Options{Dir: b.TempDir(), FS: vfs.Default})
	d := createTest(b, s, "v", 1<<40)
	rng := rand.New(rand.NewPCG(4, 4))
	data := guestData(rng, size)
	off := uint64(0)
	b.SetBytes(size)
	for b.Loop() {
		for at := 0; at < size; at += 512 {
			binary.LittleEndian.PutUint64(data[at:], off+uint64(at)) // new content in every chunk
		}
		for at := 0; at < size; at += 1 << 20 {
			writeTest(b, d, off+uint64(at), data[at:at+1<<20])
		}
		off += size
		settleTest(b, s)
	}
}

// BenchmarkDestage brings down a stream that lies raw in the log, in writes of 1 MiB: cut, hash, compression, segments and maps.
func BenchmarkDestage(b *testing.B) {
	const size = 1 << 30
	s := openTest(b, Options{Dir: b.TempDir(), FS: vfs.Default})
	d := createTest(b, s, "v", 1<<40)
	rng := rand.New(rand.NewPCG(5, 5))
	data := guestData(rng, 16<<20)
	off := uint64(0)
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		for at := uint64(0); at < size; at += uint64(len(data)) {
			for k := 0; k < len(data); k += 512 {
				binary.LittleEndian.PutUint64(data[k:], off+at+uint64(k)) // new content in every chunk
			}
			for k := 0; k < len(data); k += 1 << 20 {
				writeTest(b, d, off+at+uint64(k), data[k:k+1<<20])
			}
		}
		off += size
		b.StartTimer()
		settleTest(b, s)
	}
}
