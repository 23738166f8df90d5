package seal

import (
	"encoding/binary"
	"math/bits"
)

// MaxSpan is the most bytes that Correct may be asked to correct.
const MaxSpan = 8

// Correct returns a sealed piece as it was sealed, if what differs lies within span bytes of one block of 16: a flipped bit, or a byte that a disk or a memory got wrong. false: there is no such piece, or more than one byte of a
// piece of less than 16 bytes is wrong. What it returns passes Open. sealed is neither changed nor kept.
//
// The tag of GCM (NIST SP 800-38D) is a polynomial of the ciphertext's blocks in a key H of the field of 2^128 elements, plus a mask. So an error e in the block that is i from the end changes the tag that belongs to the ciphertext
// by e·H^(i+2), whatever else is in it. That change is known: it is the sum of the tag that stands there and the one that a seal of the same ciphertext makes. Divided by each power of H it is e for the right block, and
// for each other one a number without any pattern. H comes from the tags of two ciphertexts that differ in one known bit.
//
// A piece of n blocks is taken for one that was damaged, though nobody sealed it, with a probability of about n·16·256^span / 2^128. Who has other means to know what is in it may ask for more.
func (b *Box) Correct(sealed []byte, number uint64, span int) ([]byte, bool) {
	n := len(sealed) - Overhead
	if n < 16 || span < 1 || span > MaxSpan {
		return nil, false
	}
	plain := b.Seal(nil, make([]byte, n), number)[:n] // the stream that pieces are mixed with
	for i := range plain {
		plain[i] ^= sealed[i]
	}
	right := b.Seal(nil, plain, number)
	tag := elementOf(right[n:])
	change := elementOf(sealed[n:]).plus(tag)
	if change == (element{}) {
		return nil, false // it is whole, or sealed by another key
	}
	if change.span() <= span { // in the tag itself
		return right, true
	}
	blocks := (n + 15) / 16
	plain[16*(blocks-1)] ^= 0x80 // the element 1, in the last block
	h := elementOf(b.Seal(nil, plain, number)[n:]).plus(tag).root()
	if h == (element{}) {
		return nil, false
	}
	back := h.inverse()
	fixed := append([]byte(nil), sealed...)
	e := change.times(back).times(back)
	for at := 16 * (blocks - 1); at >= 0; at, e = at-16, e.times(back) {
		if e.span() > span {
			continue
		}
		wrong := e.bytes()
		for i := at; i < min(at+16, n); i++ {
			fixed[i] ^= wrong[i-at]
		}
		if _, err := b.Open(nil, fixed, number); err == nil {
			return fixed, true
		}
		copy(fixed, sealed)
	}
	return nil, false
}

// element is one of the field of GCM: the first bit of hi is the coefficient of x^0.
type element struct{ hi, lo uint64 }

func elementOf(b []byte) element {
	return element{binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:])}
}

func (a element) bytes() (b [16]byte) {
	binary.BigEndian.PutUint64(b[:], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return b
}

// span is how many bytes there are from the first that is not zero to the last.
func (a element) span() int {
	first, last := bits.LeadingZeros64(a.hi), bits.TrailingZeros64(a.lo)
	if a.hi == 0 {
		first = 64 + bits.LeadingZeros64(a.lo)
	}
	if a.lo == 0 {
		last = 64 + bits.TrailingZeros64(a.hi)
	}
	return 16 - first/8 - last/8
}

func (a element) plus(b element) element { return element{a.hi ^ b.hi, a.lo ^ b.lo} }

// times multiplies modulo x^128 + x^7 + x^2 + x + 1.
func (a element) times(b element) (sum element) {
	for _, word := range [2]uint64{a.hi, a.lo} {
		for i := 63; i >= 0; i-- {
			mask := -(word >> i & 1)
			sum.hi ^= b.hi & mask
			sum.lo ^= b.lo & mask
			carry := -(b.lo & 1)
			b.lo = b.lo>>1 | b.hi<<63
			b.hi = b.hi>>1 ^ carry&(0xe1<<56)
		}
	}
	return sum
}

// root is the only number whose square this is: squaring 128 times gives any number back.
func (a element) root() element {
	for range 127 {
		a = a.times(a)
	}
	return a
}

// inverse is the power 2^128 - 2, of a number that is not zero.
func (a element) inverse() element {
	power, product := a.times(a), element{hi: 1 << 63}
	for range 127 {
		product = product.times(power)
		power = power.times(power)
	}
	return product
}
