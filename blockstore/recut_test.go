package blockstore

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// piecesTest returns a store with a volume whose first region lies in as many pieces as small overwrites make that went down while the log was filling up, and its content.
func piecesTest(t *testing.T) (*Store, *Device, []byte) {
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.LogCapBytes, opts.DestageAfter = 64<<20, time.Hour
	s := openTest(t, opts)
	d, others := createTest(t, s, "v", 2*block.RegionSize), createTest(t, s, "others", 64<<20)
	rng := rand.New(rand.NewPCG(4, 5))
	data := guestData(rng, block.RegionSize)
	writeTest(t, d, 0, data)
	settleTest(t, s)
	noise := guestData(rng, 28<<20)
	// Blocks that go down when the pressure is just over, as on a busy machine, have the region cut anew at once (regionWork.recut): then further ones are needed.
	for round := 0; round < 4 || round < 8 && extentsOf(t, s, d) <= piecesMost(d.v.cut); round++ {
		for b := round*2%8 + round/4; b < block.BlocksPerRegion; b += 8 {
			at := b * block.Size
			copy(data[at:at+block.Size], guestData(rng, block.Size))
			writeTest(t, d, uint64(at), data[at:at+block.Size])
		}
		for at := 0; at < len(noise); at += 1 << 20 { // which is younger, and stays where it is while the blocks go down
			noise[at]++
			writeTest(t, others, uint64(at), noise[at:at+1<<20])
		}
		waitFor(t, "destage", func() bool { s.destager.kick(); return d.v.head.Load().layer.Blocks() == 0 })
	}
	return s, d, data
}

func extentsOf(t *testing.T, s *Store, d *Device) int {
	t.Helper()
	p, err := s.maps.Region(d.v.head.Load().effectiveRoot(), 0)
	if err != nil {
		t.Fatal(err)
	}
	return p.Len()
}

// TestRecut: a region in pieces is cut anew by a settle, and holds no part of a chunk for nothing then. After a restart, which forgets such regions, an audit finds them.
func TestRecut(t *testing.T) {
	t.Parallel() // it waits for the disk
	s, d, data := piecesTest(t)
	before := extentsOf(t, s, d)
	if before <= piecesMost(d.v.cut) || s.recuts.len() == 0 {
		t.Fatalf("%d extents, %d regions noted", before, s.recuts.len())
	}
	s.recuts.mu.Lock()
	s.recuts.due = nil
	s.recuts.mu.Unlock()
	if _, err := s.Audit(context.Background(), nil); err != nil {
		t.Fatal(err)
	}
	if n := s.GC().RegionsInPieces; n == 0 {
		t.Fatalf("an audit found %d regions in pieces", n)
	}
	settleTest(t, s)
	if n := extentsOf(t, s, d); n > piecesMost(d.v.cut)*3/4 || s.recuts.len() > 0 {
		t.Errorf("%d extents, %d before; %d regions are left", n, before, s.recuts.len())
	}
	if st := s.Stats(); st.UniqueBytes > (block.RegionSize+28<<20)*21/20 {
		t.Errorf("44 MiB hold %d B", st.UniqueBytes)
	}
	expect(t, d, 0, data)
	(&model{t: t, s: s}).audit()
}

// TestRecutLoose: what was overwritten here and there and got back what it held lies in too many pieces, though not in so many that an ordinary settle cuts it anew. A cold one does, and finds the chunks that a snapshot has: it holds no more than before.
// What got other content, and of which a snapshot holds the rest, is cut anew only if that makes the store no larger.
func TestRecutLoose(t *testing.T) {
	t.Parallel() // it waits for the disk
	ctx := context.Background()
	for _, back := range []bool{true, false} {
		s := openTest(t, testOptions(t, vfs.Default, t.TempDir()))
		d := createTest(t, s, "v", 2*block.RegionSize)
		rng := rand.New(rand.NewPCG(4, 6))
		data := guestData(rng, block.RegionSize)
		writeTest(t, d, 0, data)
		coolTest(t, s)
		if _, err := s.CreateSnapshot(ctx, "v", "one"); err != nil {
			t.Fatal(err)
		}
		extents, unique, old := extentsOf(t, s, d), s.Stats().UniqueBytes, append([]byte(nil), data...)
		for round := 0; extentsOf(t, s, d) <= piecesMost(d.v.cut)*5/8; round++ {
			if round == 20 {
				t.Fatalf("%d extents after 20 rounds", extentsOf(t, s, d))
			}
			at := rng.Perm(block.BlocksPerRegion)[:100]
			for _, b := range at {
				copy(data[b*block.Size:(b+1)*block.Size], guestData(rng, block.Size))
				writeTest(t, d, uint64(b*block.Size), data[b*block.Size:(b+1)*block.Size])
			}
			settleTest(t, s)
			for _, b := range at {
				if back {
					copy(data[b*block.Size:(b+1)*block.Size], old[b*block.Size:(b+1)*block.Size])
					writeTest(t, d, uint64(b*block.Size), data[b*block.Size:(b+1)*block.Size])
				}
			}
			settleTest(t, s)
		}
		loose, held := extentsOf(t, s, d), s.Stats().UniqueBytes
		coolTest(t, s)
		after, now := extentsOf(t, s, d), s.Stats().UniqueBytes
		t.Logf("back: %v; %d extents, then %d, then %d; %d KiB of chunks, then %d, then %d", back, extents, loose, after, unique>>10, held>>10, now>>10)
		if back && (after > extents*21/20 || now > unique*101/100) || now > held {
			t.Error("that is too much")
		}
		expect(t, d, 0, data)
		expect(t, deviceTest(t, s, "v", "one"), 0, old)
		(&model{t: t, s: s}).audit()
	}
}

// TestInPieces: a region is worth it when it has twice the extents that its cut makes, most of them of its own state.
func TestInPieces(t *testing.T) {
	page := func(n, inherited int) extentmap.Page {
		var all []extentmap.Extent
		for i := range n {
			x := extentmap.Extent{Off: uint64(i) * 4096, Len: 4096, Kind: extentmap.KindChunk, Chunk: block.ChunkID(i + 1), Birth: 9}
			if i < inherited {
				x.Birth = 5
			}
			all = append(all, x)
		}
		p, err := extentmap.DecodePage(7, 0, extentmap.EncodePage(7, 0, 9, all))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	for _, c := range []struct {
		n, inherited int
		cut          cdc.Params
		want         bool
	}{
		{2048, 0, cdc.Default(), false}, {2049, 0, cdc.Default(), true}, {2100, 525, cdc.Default(), true}, {2100, 530, cdc.Default(), false},
		{4096, 0, cdc.FixedSize(4 << 10), false}, {600, 0, cdc.FixedSize(64 << 10), true}, {500, 0, cdc.FixedSize(64 << 10), false},
	} {
		if got := inPieces(page(c.n, c.inherited), 5, c.cut); got != c.want {
			t.Errorf("%d extents, %d of older states, cut %v: %v", c.n, c.inherited, c.cut, got)
		}
	}
}
