package blockstore

import (
	"slices"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// TestPlanFitsItsBudget adds up what the parts may hold: from the least budget on it is never more than all.
func TestPlanFitsItsBudget(t *testing.T) {
	for total := int64(32 << 20); total <= 4<<30; total += 1 << 20 {
		for _, chunks := range []uint64{0, 1 << 20, 1 << 24, 1 << 26, 1 << 30} {
			p := planMemory(total, 2<<30).forChunks(chunks)
			sum := int64(p.regions)*block.RegionSize + p.hints + p.overlay + p.frames + p.pages + p.rows + p.recent + p.pebble + 3*p.memtbl + p.index + 3*p.indextbl + p.batch
			if sum > total || min(p.overlay, p.frames, p.pages, p.rows, p.recent, p.batch, p.hints) < 128<<10 || p.regions < 1 {
				t.Fatalf("%d B are planned for %d with %d chunks: %+v", sum, total, chunks, p)
			}
		}
		p := planMemory(total, 2<<30)
		sum := int64(p.regions)*block.RegionSize + p.hints + p.overlay + p.frames + p.pages + p.rows + p.recent + p.pebble + 3*p.memtbl + p.index + 3*p.indextbl + p.batch
		if sum > total {
			t.Fatalf("%d B are planned for %d: %+v", sum, total, p)
		}
	}
}

// TestFilterNeverShrinks: a store that needs a little more of a filter than the plan gives it gets more, not less.
func TestFilterNeverShrinks(t *testing.T) {
	for _, total := range []int64{64 << 20, 1 << 30} {
		least := planMemory(total, 2<<30)
		for chunks := uint64(1 << 18); chunks < 1<<28; chunks += chunks / 64 {
			if p := least.forChunks(chunks); p.hints < least.hints || p.hints < min(int64(hintRoom(chunks)), least.hints+total/8) {
				t.Fatalf("%d MiB, %d chunks: a filter of %d B where none has %d, and it needs %d", total>>20, chunks, p.hints, least.hints, hintRoom(chunks))
			}
		}
	}
}

func TestJoinTombstones(t *testing.T) {
	const r = block.RegionSize
	got := joinTombstones([]overlay.Tombstone{{First: 0, N: 2}, {First: 2, N: 1}, {First: 4, N: 4}, {First: 8, N: 1}, {First: 20, N: 1}})
	if want := []block.Range{{Off: 0, Len: 3 * r}, {Off: 4 * r, Len: 5 * r}, {Off: 20 * r, Len: r}}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

// TestRegionBuffersGoBack lets destage rest: its buffers are there after a batch, and gone a while later.
func TestRegionBuffersGoBack(t *testing.T) {
	w := &regionWork{chunks: make([]cutChunk, 1, 4)}
	var b regionBuffers
	b.lend(w)
	w.chunks[0].raw = w.buf[:1]
	b.idle([]*regionWork{w}, b.lastLent.Add(buffersKept/2))
	if w.buf == nil || b.held.Load() != block.RegionSize {
		t.Fatal("the buffer went back at once")
	}
	b.idle([]*regionWork{w}, b.lastLent.Add(buffersKept))
	if w.buf != nil || w.chunks[0].raw != nil || b.held.Load() != 0 {
		t.Error("the buffer is still there, or something that points into it")
	}
	b.lend(w)
	if len(w.buf) != block.RegionSize || b.held.Load() != block.RegionSize {
		t.Error("no buffer for the next batch")
	}
}

// TestFilterFollowsPublishedMemory: at the memory that is published for so much data, in chunks of 16 KiB, the filter has more than four bits for each hash.
func TestFilterFollowsPublishedMemory(t *testing.T) {
	for unique := int64(64 << 30); unique <= 4<<40; unique *= 2 {
		published := 64<<20 + 160<<20*(unique>>20)>>20
		engine := max(32<<20, min(published*5/8, published-38<<20)) // as control does it
		chunks := uint64(unique / (16 << 10))
		p := planMemory(engine, 2<<30).forChunks(chunks)
		f := newHintFilter(nil, p.hints, chunks)
		need := int64(hintRoom(chunks)) * 64 / int64(f.perBlock)
		t.Logf("%d GiB in %d MiB: filter of %d MiB, %.1f bits a hash, overlay %d MiB, %d regions", unique>>30, engine>>20, p.hints>>20, 512/float64(f.perBlock), p.overlay>>20, p.regions)
		if need > p.hints+1<<20 || f.perBlock > 118 {
			t.Errorf("%d GiB: %d B for a filter that needs %d, %d hashes a block", unique>>30, p.hints, need, f.perBlock)
		}
	}
}
