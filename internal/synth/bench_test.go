package synth

import (
	"testing"
	"time"

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

// BenchmarkUniqueSurvey measures what one volume of 64 GiB in chunks of 16 KiB alone holds (RFC 22).
func BenchmarkUniqueSurvey(b *testing.B) {
	const regions, each = 4096, 1024
	dir := b.TempDir()
	open := func() *blockstore.Store {
		s, err := blockstore.Open(b.Context(), blockstore.Options{Dir: dir})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	s := open()
	_, err := s.CreateVolume(b.Context(), blockstore.VolumeSpec{Name: "v", SizeBytes: regions * block.RegionSize})
	if err == nil {
		err = s.Close()
	}
	if err == nil {
		err = Write(b.Context(), dir, Spec{Kind: New, Volume: "v", Regions: regions, ExtentsPerRegion: each, ChunkBytes: 16 << 10})
	}
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		b.StopTimer()
		s := open()
		b.StartTimer()
		if err := s.SetVolumeQuota("v", blockstore.VolumeQuota{UniqueBytes: 1 << 40}, true); err != nil {
			b.Fatal(err)
		}
		for {
			v, err := s.Volume("v")
			if err != nil {
				b.Fatal(err)
			}
			if !v.Unique.MeasuredAt.IsZero() {
				b.ReportMetric(float64(v.Unique.ErrorBytes)/float64(max(1, v.Unique.StoredBytes)), "error")
				break
			}
			time.Sleep(time.Millisecond)
		}
		b.StopTimer()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N)*regions*each/b.Elapsed().Seconds(), "chunks/s")
}
