package synth

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/check"
)

// store opens, or makes, a store in dir that fails the test on every event of damage.
func store(t *testing.T, dir string) *blockstore.Store {
	t.Helper()
	s, err := blockstore.Open(t.Context(), blockstore.Options{
		Dir: dir, LogCapBytes: 64 << 20, MemoryBytes: 96 << 20, ReserveBytes: 1,
		Events: blockstore.Events{
			Corruption:      func(err error) { t.Errorf("corruption: %v", err) },
			BackgroundError: func(task string, err error) { t.Errorf("background %s: %v", task, err) },
		},
	})
	must(t, err)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// made is a store with an empty volume "v", closed.
func made(t *testing.T, size uint64) string {
	t.Helper()
	dir := t.TempDir()
	s := store(t, dir)
	_, err := s.CreateVolume(t.Context(), blockstore.VolumeSpec{Name: "v", SizeBytes: size})
	must(t, err)
	must(t, s.Close())
	return dir
}

// TestNewChunks gives a volume chunks without bytes. The engine and the second reader must find each row as it should be, and the deletion of the volume must leave none.
func TestNewChunks(t *testing.T) {
	const regions, each, chunk = 300, 128, 32 << 10 // two levels of nodes
	dir := made(t, regions*block.RegionSize)
	must(t, Write(t.Context(), dir, Spec{Kind: New, Volume: "v", Regions: regions, ExtentsPerRegion: each, ChunkBytes: chunk, Seed: 1}))
	complaints(t, dir, "want a file for G", "want a frame of")

	s := store(t, dir)
	const want = regions * each * chunk
	if st := s.Stats(); st.UniqueBytes != want || st.NonZeroBytes != want || st.SharedBytes != 0 || st.StoredBytes < want/2 || st.StoredBytes > want*2/3 {
		t.Errorf("%d B of chunks: %+v", uint64(want), st)
	}
	must(t, s.DeleteVolume(t.Context(), "v"))
	until(t, s, func(st blockstore.Stats) bool {
		return st.UniqueBytes == 0 && st.StoredBytes == 0 && st.NonZeroBytes == 0
	})
	must(t, s.Settle(t.Context(), nil))
	must(t, s.Close())
	complaints(t, dir)
}

// TestSharedChunks gives a volume a map over chunks of another one: all of it can be read and freed, and no reader finds fault with it.
func TestSharedChunks(t *testing.T) {
	const size, regions, each = 8 << 20, 300, 150
	dir := made(t, regions*block.RegionSize)
	s := store(t, dir)
	_, err := s.CreateVolume(t.Context(), blockstore.VolumeSpec{Name: "seed", SizeBytes: size, Chunking: blockstore.Chunking{FixedBytes: block.Size}})
	must(t, err)
	d, err := s.OpenDevice("seed", "")
	must(t, err)
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(content)
	must(t, d.Write(t.Context(), []block.Write{{Data: content}}, false))
	must(t, s.Settle(t.Context(), nil))
	must(t, d.Close())
	before := s.Stats()
	must(t, s.Close())

	spec := Spec{Kind: Shared, Volume: "v", Regions: regions, ExtentsPerRegion: each, RegionsAlike: 4}
	must(t, Write(t.Context(), dir, spec))
	complaints(t, dir)
	s = store(t, dir)
	if st := s.Stats(); st.UniqueBytes != before.UniqueBytes || st.SharedBytes != size || st.NonZeroBytes != size+regions*each*block.Size {
		t.Errorf("before %+v, now %+v", before, st)
	}
	readShared(t, s, spec, content)
	must(t, s.DeleteVolume(t.Context(), "v"))
	until(t, s, func(st blockstore.Stats) bool { return st.SharedBytes == 0 })
	if st := s.Stats(); st.UniqueBytes != before.UniqueBytes || st.NonZeroBytes != before.NonZeroBytes {
		t.Errorf("before %+v, after the deletion %+v", before, st)
	}
	must(t, s.Settle(t.Context(), nil))
	must(t, s.Close())
	complaints(t, dir)
}

// readShared reads some extents of the map and the holes behind them.
func readShared(t *testing.T, s *blockstore.Store, spec Spec, content []byte) {
	t.Helper()
	d, err := s.OpenDevice("v", "")
	must(t, err)
	for _, region := range []uint64{0, 3, 4, 255, 256, spec.Regions - 1} {
		p := make([]byte, 2*spec.slot())
		_, err := d.ReadAt(t.Context(), p, region*block.RegionSize, nil)
		must(t, err)
		for k := range uint64(2) {
			// Chunks have ids in the order in which they were written.
			at := (region/spec.RegionsAlike*uint64(spec.ExtentsPerRegion) + k) % uint64(len(content)/block.Size) * block.Size
			got := p[k*spec.slot():][:spec.slot()]
			if !bytes.Equal(got[:block.Size], content[at:][:block.Size]) || !bytes.Equal(got[block.Size:], make([]byte, len(got)-block.Size)) {
				t.Errorf("region %d, extent %d: other bytes than its chunk's and zeroes", region, k)
			}
		}
	}
	must(t, d.Close())
}

// until waits for the background work of a store.
func until(t *testing.T, s *blockstore.Store, done func(blockstore.Stats) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for !done(s.Stats()) {
		if ctx.Err() != nil {
			t.Fatalf("background work does not end: %+v", s.Stats())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// complaints runs the second reader, which may object only to what has one of the words.
func complaints(t *testing.T, dir string, words ...string) {
	t.Helper()
	report, err := check.Run(t.Context(), dir, check.Options{})
	must(t, err)
	for _, f := range report.Findings {
		text := f.String()
		expected := false
		for _, w := range words {
			expected = expected || strings.Contains(text, w)
		}
		if !expected {
			t.Error(text)
		}
	}
	if len(words) == 0 && len(report.Findings) > 0 {
		t.Errorf("%d findings", len(report.Findings))
	}
}

func TestRefusals(t *testing.T) {
	dir := made(t, 2*block.RegionSize)
	ok := Spec{Kind: New, Volume: "v", Regions: 2, ExtentsPerRegion: 4, ChunkBytes: 4096}
	for _, c := range []struct {
		name   string
		change func(*Spec)
		want   error
	}{
		{"no such volume", func(s *Spec) { s.Volume = "w" }, block.ErrNotFound},
		{"larger than the volume", func(s *Spec) { s.Regions = 3 }, block.ErrInvalid},
		{"chunks that overlap", func(s *Spec) { s.ExtentsPerRegion, s.ChunkBytes = 4096, 8192 }, block.ErrInvalid},
		{"nothing to share", func(s *Spec) { s.Kind, s.RegionsAlike = Shared, 1 }, block.ErrNotFound},
	} {
		spec := ok
		c.change(&spec)
		if err := Write(t.Context(), dir, spec); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	must(t, Write(t.Context(), dir, ok))
	if err := Write(t.Context(), dir, ok); !errors.Is(err, block.ErrInUse) {
		t.Errorf("a second map: %v, want %v", err, block.ErrInUse)
	}
}
