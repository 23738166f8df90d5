package cdc_test

import (
	"testing"

	chunkers "github.com/PlakarKorp/go-cdc-chunkers"
	"github.com/PlakarKorp/go-cdc-chunkers/chunkers/jc"
	"github.com/PlakarKorp/go-cdc-chunkers/chunkers/ultracdc"

	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// BenchmarkCut measures our cutter beside two of the library that docs/rfc/0001-chunker.md compares it with.
func BenchmarkCut(b *testing.B) {
	data := corpus(8, 16<<20)
	b.Run("ours", func(b *testing.B) {
		c := newCutter(b, cdc.Default())
		lens := make([]uint32, 0, 1<<14)
		b.SetBytes(int64(len(data)))
		for b.Loop() {
			lens = c.Cut(lens[:0], data, 0)
		}
	})
	for name, impl := range map[string]chunkers.ChunkerImplementation{"jc": &jc.JC{}, "ultracdc": &ultracdc.UltraCDC{}} {
		b.Run(name, func(b *testing.B) {
			o := &chunkers.ChunkerOpts{MinSize: 4 << 10, NormalSize: 16 << 10, MaxSize: 64 << 10}
			if err := impl.Setup(o); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				for p := data; len(p) > 0; {
					p = p[impl.Algorithm(o, p, len(p)):]
				}
			}
		})
	}
}
