package framecache

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

// sample makes the frame of a key: chunks of random lengths whose bytes follow from the key.
func sample(k Key, raw int) Frame {
	rng := rand.New(rand.NewPCG(uint64(k.Segment), uint64(k.Off)))
	f := Frame{Raw: make([]byte, raw), Verified: ^uint64(0)}
	for i := range f.Raw {
		f.Raw[i] = byte(rng.Uint32())
	}
	for at := 0; at < raw; {
		n := min(raw-at, 1+rng.IntN(raw))
		c := segment.FrameChunk{RawOff: uint32(at), RawLen: uint32(n)}
		binary.LittleEndian.PutUint64(c.Hash[:], rng.Uint64())
		binary.LittleEndian.PutUint64(c.Hash[24:], rng.Uint64())
		f.Chunks = append(f.Chunks, c)
		at += n
	}
	return f
}

func chunkOf(c segment.FrameChunk) Chunk {
	return Chunk{Hash: [16]byte(c.Hash[:16]), Off: c.RawOff, Len: c.RawLen}
}

// use reads a frame of one chunk and puts it in when it is not here, as a reader does.
func use(c *Cache, k Key, raw int) bool {
	var hash block.Hash
	binary.LittleEndian.PutUint64(hash[:], k.hash())
	f := Frame{Raw: zeroes[:raw], Chunks: []segment.FrameChunk{{Hash: hash, RawLen: uint32(raw)}}, Verified: 1}
	if c.Copy(k, chunkOf(f.Chunks[0]), 0, make([]byte, 1)) == Hit {
		return true
	}
	c.Put(k, f)
	return false
}

var zeroes [1 << 18]byte

// TestCopiesWhatWasPut compares every answer with the frame itself while frames of all sizes come and go, on several goroutines.
func TestCopiesWhatWasPut(t *testing.T) {
	c := New(4 << 20)
	defer c.Close()
	var all sync.WaitGroup
	for g := range 4 {
		all.Add(1)
		go func() {
			defer all.Done()
			rng := rand.New(rand.NewPCG(1, uint64(g)))
			for range 4000 {
				k := Key{block.SegmentID(rng.IntN(20)), uint32(rng.IntN(20))}
				raw := 1 + int(k.Off*k.Off)*200
				f := sample(k, raw)
				ch := f.Chunks[rng.IntN(len(f.Chunks))]
				at := rng.IntN(int(ch.RawLen))
				p := make([]byte, 1+rng.IntN(int(ch.RawLen)-at))
				switch c.Copy(k, chunkOf(ch), uint32(at), p) {
				case Hit:
					if !bytes.Equal(p, f.Raw[int(ch.RawOff)+at:][:len(p)]) {
						t.Errorf("other bytes for %v", k)
						return
					}
				case Miss:
					c.Put(k, f)
				default:
					t.Errorf("%v is neither here nor missing", k)
					return
				}
			}
		}()
	}
	all.Wait()
	st := c.Stats()
	if st.Hits == 0 || st.Misses == 0 || st.Bytes > st.Budget {
		t.Errorf("%+v", st)
	}
}

// TestGivesOutNothingUnverified asks for chunks whose hash nobody checked, and for chunks that a frame does not have.
func TestGivesOutNothingUnverified(t *testing.T) {
	c := New(1 << 20)
	defer c.Close()
	k := Key{1, 2}
	f := sample(k, 20000)
	for len(f.Chunks) < 2 {
		k.Off++
		f = sample(k, 20000)
	}
	f.Verified = 1
	c.Put(k, f)
	p := make([]byte, 1)
	first, second := chunkOf(f.Chunks[0]), chunkOf(f.Chunks[1])
	if got := c.Copy(k, first, 0, p); got != Hit {
		t.Errorf("%v for a chunk that was verified", got)
	}
	if got := c.Copy(k, second, 0, p); got != Unverified {
		t.Errorf("%v for one that was not", got)
	}
	raw, hash, ok := c.Whole(k, second, nil)
	if !ok || hash != f.Chunks[1].Hash || !bytes.Equal(raw, f.Raw[second.Off:][:second.Len]) {
		t.Error("the whole chunk is another one")
	}
	c.Verified(k, second)
	if got := c.Copy(k, second, 0, p); got != Hit {
		t.Errorf("%v after it was verified", got)
	}
	for _, other := range []Chunk{{second.Hash, first.Off, first.Len}, {first.Hash, first.Off, first.Len + 1}, {first.Hash, first.Off + 1, 1}, {first.Hash, 1 << 30, 1}} {
		if got := c.Copy(k, other, 0, p); got != Stranger {
			t.Errorf("%v for a chunk that the frame does not have: %+v", got, other)
		}
	}
	if got := c.Copy(k, first, first.Len, p); got != Stranger {
		t.Errorf("%v for bytes behind the chunk", got)
	}
}

const frameBytes = 16 << 10

// TestScanLeavesTheHotSet reads a hot set and then, once, forty times the memory, in frames and in pieces of frames as a backup does.
func TestScanLeavesTheHotSet(t *testing.T) {
	for _, pieces := range []int{1, 4} {
		c := New(32 << 20)
		hot := make([]Key, 1000)
		for i := range hot {
			hot[i] = Key{1, uint32(i)}
		}
		for range 4 {
			for _, k := range hot {
				use(c, k, frameBytes)
			}
			for i := range uint32(500) { // others, so that the uses of the hot ones are apart
				use(c, Key{2, i}, frameBytes)
			}
		}
		for i := range uint32(40 * 32 << 20 / frameBytes) {
			for range pieces {
				use(c, Key{3, i}, frameBytes)
			}
		}
		kept := 0
		for _, k := range hot {
			if c.Has(k) {
				kept++
			}
		}
		if kept < len(hot)*9/10 {
			t.Errorf("%d of %d hot frames are left after a scan with %d reads of each frame", kept, len(hot), pieces)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSetThatFitsStays reads a set that takes most of the memory, round after round.
func TestSetThatFitsStays(t *testing.T) {
	c := New(32 << 20)
	defer c.Close()
	missed := 0
	for round := range 5 {
		for i := range uint32(1600) {
			if !use(c, Key{1, i}, frameBytes) && round > 0 {
				missed++
			}
		}
	}
	if missed > 16 {
		t.Errorf("%d frames of a set that fits were gone", missed)
	}
}

// TestLeftBriefly has a frame come back soon after it left: it goes to the main queue and then outlives a scan.
func TestLeftBriefly(t *testing.T) {
	c := New(1 << 20)
	defer c.Close()
	back := Key{1, 0}
	use(c, back, frameBytes)
	for i := range uint32(1 << 10) {
		if use(c, Key{2, i}, frameBytes); !c.Has(back) {
			break
		}
	}
	if c.Has(back) {
		t.Fatal("it never left")
	}
	use(c, back, frameBytes)
	for i := range uint32(200) {
		use(c, Key{3, i}, frameBytes)
	}
	if !c.Has(back) {
		t.Error("it left again with a scan")
	}
}

// TestPassing puts frames that were used as a whole: the first time they are not kept, the second time they are.
func TestPassing(t *testing.T) {
	c := New(8 << 20)
	defer c.Close()
	k := Key{1, 1}
	f := sample(k, frameBytes)
	f.Passing = true
	if c.Put(k, f); c.Has(k) {
		t.Error("kept at once")
	}
	if c.Put(k, f); !c.Has(k) {
		t.Error("not kept when it came back")
	}
}

// TestUselessFramesAreNotCopied reads far more frames than fit, each once, and then a set that fits: the first are mostly left out, the others are not.
func TestUselessFramesAreNotCopied(t *testing.T) {
	c := New(8 << 20)
	defer c.Close()
	for i := range uint32(20000) {
		use(c, Key{1, i}, frameBytes)
	}
	kept := func(segment block.SegmentID, from, to uint32) (n int) {
		for i := from; i < to; i++ {
			use(c, Key{segment, i}, frameBytes)
			if c.Has(Key{segment, i}) {
				n++
			}
		}
		return n
	}
	if n := kept(1, 20000, 20800); n < 50 || n > 200 {
		t.Errorf("%d of 800 useless frames were kept, want one in eight", n)
	}
	for range 4 {
		kept(2, 0, 200)
	}
	if n := kept(2, 0, 200); n < 190 {
		t.Errorf("%d of 200 frames that are read again and again are here", n)
	}
}

func TestTooLargeAndClosed(t *testing.T) {
	c := New(1 << 20)
	k := Key{1, 1}
	c.Put(k, sample(k, 1<<18))
	if c.Has(k) {
		t.Error("a frame of a quarter of the memory was taken")
	}
	use(c, k, 1)
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 { // what is asked for again is taken in, elsewhere
		if use(c, k, 1) {
			t.Error("a closed cache has something")
		}
	}
}

// BenchmarkCopy reads 4 KiB out of frames that are here.
func BenchmarkCopy(b *testing.B) {
	c := New(32 << 20)
	defer c.Close()
	const n = 1024
	chunks := make([]Chunk, n)
	for i := range chunks {
		k := Key{1, uint32(i)}
		f := sample(k, frameBytes)
		f.Chunks = []segment.FrameChunk{{RawLen: frameBytes}}
		chunks[i] = chunkOf(f.Chunks[0])
		c.Put(k, f)
	}
	p := make([]byte, block.Size)
	b.SetBytes(block.Size)
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		i = (i*1664525 + 1013904223) % n
		c.Copy(Key{1, i}, chunks[i], 8<<10, p)
	}
}
