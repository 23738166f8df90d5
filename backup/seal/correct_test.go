package seal

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A piece in which a few bytes of one block are wrong is what it was again; in others nothing is taken for right that was not sealed.
func TestCorrect(t *testing.T) {
	box := newSecret().Box(PurposeFrames, NewSalt(), block.UUID{1})
	rng := rand.New(rand.NewPCG(3, 4))
	for _, n := range []int{16, 17, 31, 32, 1000, 4096, 8001} {
		plain := make([]byte, n)
		for i := range plain {
			plain[i] = byte(rng.Uint32())
		}
		sealed := box.Seal(nil, plain, 7)
		if _, ok := box.Correct(sealed, 7, 1); ok {
			t.Fatalf("%d B: what is whole is corrected", n)
		}
		for range 8 {
			at := rng.IntN(len(sealed))
			bad := bytes.Clone(sealed)
			bad[at] ^= byte(1 + rng.IntN(255))
			given := bytes.Clone(bad)
			if got, ok := box.Correct(bad, 7, 1); !ok || !bytes.Equal(got, sealed) || !bytes.Equal(bad, given) {
				t.Fatalf("%d B with another byte at %d are not corrected", n, at)
			}
			if _, ok := box.Correct(bad, 8, 1); ok {
				t.Fatalf("%d B: a piece of another number is corrected", n)
			}
			// Some bytes one after the other, of one block.
			burst := min(1+rng.IntN(MaxSpan), n-at/16*16-at%16)
			if at >= n || at%16+burst > 16 {
				continue
			}
			bad = bytes.Clone(sealed)
			for i := range burst {
				bad[at+i] ^= byte(1 + rng.IntN(255))
			}
			if got, ok := box.Correct(bad, 7, MaxSpan); !ok || !bytes.Equal(got, sealed) {
				t.Fatalf("%d B with %d others at %d are not corrected", n, burst, at)
			}
			if _, ok := box.Correct(bad, 7, 1); ok != (burst == 1) {
				t.Fatalf("%d other bytes at %d were corrected as one: %v", burst, at, ok)
			}
		}
		if n < 32 {
			continue
		}
		bad := bytes.Clone(sealed)
		bad[1] ^= 1
		bad[n-1] ^= 1 // of another block
		if _, ok := box.Correct(bad, 7, MaxSpan); ok {
			t.Errorf("%d B with two blocks damaged are corrected", n)
		}
	}
	if _, ok := box.Correct(box.Seal(nil, []byte("short"), 0), 0, 1); ok {
		t.Error("a short piece is corrected")
	}
}

func TestField(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	one := element{hi: 1 << 63}
	for range 50 {
		a, b := element{rng.Uint64(), rng.Uint64()}, element{rng.Uint64(), rng.Uint64()}
		if a.times(b) != b.times(a) || a.times(one) != a || a.times(a.inverse()) != one || a.times(a).root() != a || elementOf(func() []byte { x := a.bytes(); return x[:] }()) != a {
			t.Fatalf("the field is none, for %x and %x", a, b)
		}
	}
	for _, c := range []struct {
		e    element
		want int
	}{{element{1, 0}, 1}, {element{1, 1 << 63}, 2}, {element{0, 1 << 56}, 1}, {element{1 << 63, 1}, 16}, {element{0x0100_8000, 0}, 3}} {
		if got := c.e.span(); got != c.want {
			t.Errorf("%x spans %d bytes, want %d", c.e, got, c.want)
		}
	}
}
