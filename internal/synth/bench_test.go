package synth

import (
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// BenchmarkWrite makes maps of a million extents: the price of the large stores of other tests.
func BenchmarkWrite(b *testing.B) {
	const regions, each = 1024, 1024
	for b.Loop() {
		b.StopTimer()
		dir := b.TempDir()
		s, err := blockstore.Open(b.Context(), blockstore.Options{Dir: dir})
		if err == nil {
			_, err = s.CreateVolume(b.Context(), blockstore.VolumeSpec{Name: "v", SizeBytes: regions * block.RegionSize})
		}
		if err == nil {
			err = s.Close()
		}
		b.StartTimer()
		if err == nil {
			err = Write(b.Context(), dir, Spec{Kind: New, Volume: "v", Regions: regions, ExtentsPerRegion: each, ChunkBytes: 16 << 10})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)*regions*each/b.Elapsed().Seconds(), "extents/s")
}
