package extentmap

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// fill makes a map of regions with equal extents in each, in batches as large as a destage would make them.
func fill(b *testing.B, db *pebble.DB, ids *counter, regions, extents int) Root {
	b.Helper()
	m, root := NewMap(db, nil), Root{}
	with := make([]Extent, extents)
	length := uint32(block.RegionSize / extents)
	for first := 0; first < regions; first += 256 {
		root = edit(b, db, m, root, 1, ids.next, nopSink{}, func(u *Update) error {
			for r := first; r < min(first+256, regions); r++ {
				base := uint64(r) << regionBits
				for i := range with {
					with[i] = chunkAt(base+uint64(i)*uint64(length), length, block.ChunkID(r*extents+i+1))
				}
				if err := u.Replace(base, block.RegionSize, with); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return root
}

func openBench(b *testing.B) *pebble.DB {
	db, err := pebble.Open(b.TempDir(), &pebble.Options{FS: vfs.Default, Logger: quiet{}, MemTableSize: 16 << 20, CacheSize: 40 << 20})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}

// BenchmarkLookup reads 4 KiB at random places of 64 regions of 1,024 extents: all pages in the cache, or none.
func BenchmarkLookup(b *testing.B) {
	db := openBench(b)
	root := fill(b, db, &counter{}, 64, 1024)
	for name, m := range map[string]*Map{"cached": NewMap(db, NewCache(16<<20)), "uncached": NewMap(db, nil)} {
		b.Run(name, func(b *testing.B) {
			rng, n := rand.New(rand.NewPCG(1, 1)), 0
			visit := func(Extent) bool { n++; return true }
			for r := range uint64(64) {
				if err := m.Lookup(root, r<<regionBits, 1, visit); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				if err := m.Lookup(root, rng.Uint64N(64*block.BlocksPerRegion)*block.Size, block.Size, visit); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkReplace replaces 1 or 64 random blocks of one full page in one update: without the commit, and with it (no sync).
func BenchmarkReplace(b *testing.B) {
	for _, blocks := range []int{1, 64} {
		for _, commit := range []bool{false, true} {
			b.Run(fmt.Sprintf("blocks=%d/commit=%v", blocks, commit), func(b *testing.B) {
				db, ids := openBench(b), &counter{}
				root := fill(b, db, ids, 1, 1024)
				m, rng := NewMap(db, NewCache(4<<20)), rand.New(rand.NewPCG(1, 1))
				b.ReportAllocs()
				b.ResetTimer()
				for range b.N {
					batch := db.NewBatch()
					u := NewUpdate(m, batch, root, 2, ids.next, nopSink{})
					for range blocks {
						off := rng.Uint64N(block.BlocksPerRegion) * block.Size
						if err := u.Replace(off, block.Size, []Extent{chunkAt(off, block.Size, 1)}); err != nil {
							b.Fatal(err)
						}
					}
					if _, err := u.Finish(); err != nil {
						b.Fatal(err)
					}
					var err error
					if commit {
						err = batch.Commit(pebble.NoSync)
					} else {
						err = batch.Close()
					}
					if err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkDetach cuts 2 TiB with 20 million extents off, but for half a region at each end, and commits.
func BenchmarkDetach(b *testing.B) {
	db, ids := openBench(b), &counter{}
	root := fill(b, db, ids, 1<<17, 153)
	b.ReportAllocs()
	b.ResetTimer()
	for range b.N {
		edit(b, db, NewMap(db, nil), root, 2, ids.next, nopSink{}, func(u *Update) error {
			return u.Detach(block.RegionSize/2, 2<<40-block.RegionSize)
		})
	}
}

// BenchmarkWalk visits each page of 16 GiB in regions of 1,024 extents.
func BenchmarkWalk(b *testing.B) {
	db := openBench(b)
	root := fill(b, db, &counter{}, 1024, 1024)
	b.ResetTimer()
	for range b.N {
		bytes := uint64(0)
		_, _, err := NewMap(db, nil).Walk(context.Background(), root.Subtree(), 0, 0, Visitor{Page: func(p Page) bool {
			bytes += p.Fragments().Bytes
			return true
		}})
		if err != nil || bytes != 1024*block.RegionSize {
			b.Fatal(bytes, err)
		}
	}
	b.ReportMetric(float64(b.N)*1024*1024/b.Elapsed().Seconds(), "extents/s")
}
