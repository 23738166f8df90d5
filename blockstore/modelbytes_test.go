package blockstore

import (
	"bytes"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// modelBytes is what a state of a volume should hold. Clones share the pages that neither has written since, so that a model may remember many states of which each is some 40 MiB. It may be used by several goroutines.
type modelBytes struct {
	mu    sync.Mutex
	n     int
	pages []*modelPage // nil: zeroes; never changed
}

const modelPageSize = 64 << 10

type modelPage [modelPageSize]byte

func newModelBytes(n int) *modelBytes {
	return &modelBytes{n: n, pages: make([]*modelPage, (n+modelPageSize-1)/modelPageSize)}
}

func (b *modelBytes) len() int { return b.n }

func (b *modelBytes) clone() *modelBytes {
	b.mu.Lock()
	defer b.mu.Unlock()
	return &modelBytes{n: b.n, pages: slices.Clone(b.pages)}
}

// set replaces [off, off+n) by p, or by zeroes if that is nil.
func (b *modelBytes) set(off, n int, p []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for end := off + n; off < end; {
		i, in := off/modelPageSize, off%modelPageSize
		k := min(modelPageSize-in, end-off)
		switch {
		case p == nil && (k == modelPageSize || b.pages[i] == nil):
			b.pages[i] = nil
		default:
			page := &modelPage{}
			if b.pages[i] != nil {
				*page = *b.pages[i]
			}
			if p == nil {
				clear(page[in : in+k])
			} else {
				p = p[copy(page[in:in+k], p):]
			}
			b.pages[i] = page
		}
		off += k
	}
}

func (b *modelBytes) write(off int, p []byte) { b.set(off, len(p), p) }

func (b *modelBytes) clear(off, end int) { b.set(off, max(0, end-off), nil) }

// read returns a copy of a part.
func (b *modelBytes) read(off, n int) []byte {
	p := make([]byte, n)
	b.into(p, off)
	return p
}

// into fills p with what is at off; behind the end there are zeroes.
func (b *modelBytes) into(p []byte, off int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(p)
	for at := 0; at < len(p) && off+at < b.n; {
		i, in := (off+at)/modelPageSize, (off+at)%modelPageSize
		k := min(modelPageSize-in, len(p)-at)
		if b.pages[i] != nil {
			copy(p[at:at+k], b.pages[i][in:])
		}
		at += k
	}
}

// resize cuts off, or adds zeroes.
func (b *modelBytes) resize(n int) {
	if n < b.n {
		b.clear(n, min(b.n, (n+modelPageSize-1)/modelPageSize*modelPageSize))
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	pages := make([]*modelPage, (n+modelPageSize-1)/modelPageSize)
	copy(pages, b.pages)
	b.n, b.pages = n, pages
}

// same reports whether two states hold the same in a range.
func (b *modelBytes) same(o *modelBytes, off, end int) bool {
	for off < end {
		i := off / modelPageSize
		to := min(end, (i+1)*modelPageSize)
		if i >= len(b.pages) || i >= len(o.pages) || b.pages[i] != o.pages[i] || (b.n < to) != (o.n < to) {
			if !bytes.Equal(b.read(off, to-off), o.read(off, to-off)) {
				return false
			}
		}
		off = to
	}
	return true
}

// modelPiece is how much of a device is compared at a time: no multiple of a block.
const modelPiece = 1<<20 + 512

// differs returns where a device holds something else, or -1.
func (b *modelBytes) differs(t testing.TB, d *Device) int {
	t.Helper()
	got, want := make([]byte, modelPiece), make([]byte, modelPiece)
	for off := 0; off < b.n; off += modelPiece {
		k := min(modelPiece, b.n-off)
		if _, err := d.ReadAt(context.Background(), got[:k], uint64(off), nil); err != nil {
			t.Fatal(err)
		}
		b.into(want[:k], off)
		if at := firstDiff(got[:k], want[:k]); at >= 0 {
			return off + at
		}
	}
	return -1
}

// modelOf returns what a device holds.
func modelOf(t testing.TB, d *Device) *modelBytes {
	t.Helper()
	b := newModelBytes(int(d.Size()))
	p := make([]byte, modelPageSize)
	for off := 0; off < b.n; off += len(p) {
		k := min(len(p), b.n-off)
		if _, err := d.ReadAt(context.Background(), p[:k], uint64(off), nil); err != nil {
			t.Fatal(err)
		}
		if !allZeroes(p[:k]) {
			b.write(off, p[:k])
		}
	}
	return b
}

func allZeroes(p []byte) bool { return len(bytes.TrimLeft(p, "\x00")) == 0 }

// TestModelBytes compares the model of models with byte slices.
func TestModelBytes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	plain, b := make([]byte, 5*modelPageSize+512), newModelBytes(5*modelPageSize+512)
	type kept struct {
		plain []byte
		b     *modelBytes
	}
	var all []kept
	for step := range 2000 {
		off := rng.IntN(len(plain))
		n := rng.IntN(min(len(plain)-off, 3*modelPageSize) + 1)
		switch k := rng.IntN(10); {
		case k < 4:
			p := guestData(rng, n)
			copy(plain[off:], p)
			b.write(off, p)
		case k < 6:
			clear(plain[off : off+n])
			b.clear(off, off+n)
		case k < 7:
			n = 1 + rng.IntN(8*modelPageSize)
			plain = append(slices.Clone(plain[:min(n, len(plain))]), make([]byte, max(0, n-len(plain)))...)
			b.resize(n)
		case k < 8:
			all = append(all, kept{slices.Clone(plain), b.clone()})
		default:
			if !bytes.Equal(b.read(off, n), plain[off:off+n]) {
				t.Fatalf("step %d: %d+%d", step, off, n)
			}
		}
	}
	for _, k := range all {
		if !bytes.Equal(k.b.read(0, k.b.len()), k.plain) {
			t.Fatal("a clone changed")
		}
		off, end := 0, min(len(plain), len(k.plain))
		if rng.IntN(2) == 0 {
			off = rng.IntN(end)
		}
		if got := b.same(k.b, off, end); got != bytes.Equal(plain[off:end], k.plain[off:end]) {
			t.Fatalf("same is %v", got)
		}
	}
}
