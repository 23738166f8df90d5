package blockstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// BenchmarkHistoryWrite4K appends batches of 32 random blocks, as a connection at depth 32 does, without history and with it. The log is filled many times over, so what copies it counts.
func BenchmarkHistoryWrite4K(b *testing.B) {
	for _, kept := range []bool{false, true} {
		b.Run(fmt.Sprint("history=", kept), func(b *testing.B) {
			const size = 256 << 20
			s := openTest(b, Options{Dir: b.TempDir(), FS: vfs.Default, LogCapBytes: 512 << 20})
			d := createTest(b, s, "v", size)
			if kept {
				if err := s.SetHistory(context.Background(), "v", HistoryPolicy{Window: time.Hour}); err != nil {
					b.Fatal(err)
				}
			}
			rng := rand.New(rand.NewPCG(3, 3))
			data := guestData(rng, 1<<20)
			batch := make([]block.Write, 32)
			b.SetBytes(int64(len(batch) * block.Size))
			for b.Loop() {
				for i := range batch {
					at := rng.IntN(len(data)/block.Size) * block.Size
					batch[i] = block.Write{Off: rng.Uint64N(size/block.Size) * block.Size, Data: data[at : at+block.Size]}
				}
				if err := d.Write(context.Background(), batch, false); err != nil {
					b.Fatal(err)
				}
			}
			if kept {
				if i, err := s.History("v"); err != nil || i.Gaps > 0 {
					b.Fatalf("%+v, %v", i, err)
				}
			}
		})
	}
}

// BenchmarkHistoryAttach opens a moment that lies two million records behind its root, which is the most: 8 GiB of random writes of a block, to 3.5 GiB of different ones.
func BenchmarkHistoryAttach(b *testing.B) {
	const size, records = 4 << 30, 2 << 20
	s := openTest(b, Options{Dir: b.TempDir(), FS: vfs.Default, MemoryBytes: 1 << 30, historyRootBytes: 1 << 40})
	d := createTest(b, s, "v", size)
	if err := s.SetHistory(context.Background(), "v", HistoryPolicy{Window: time.Hour, BudgetBytes: 100 << 30}); err != nil {
		b.Fatal(err)
	}
	rng := rand.New(rand.NewPCG(4, 4))
	data := guestData(rng, 1<<20)
	batch := make([]block.Write, 32)
	for range records / len(batch) {
		for i := range batch {
			at := rng.IntN(len(data)/block.Size) * block.Size
			batch[i] = block.Write{Off: rng.Uint64N(size/block.Size) * block.Size, Data: data[at : at+block.Size]}
		}
		if err := d.Write(context.Background(), batch, false); err != nil {
			b.Fatal(err)
		}
	}
	last, _ := s.log.Last()
	for b.Loop() {
		p, err := s.OpenPoint(context.Background(), "v", Moment{Seq: last})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
