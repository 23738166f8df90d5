package similar

import "math/bits"

const (
	features      = 12
	perSuper      = 4
	superFeatures = features / perSuper
	// sampleMask selects one position in 128. It takes high bits of the rolling hash, which all of the last 64 bytes had a part in.
	sampleMask = uint64(0x7f) << 57
)

// Sketch is what is kept of a chunk to find others like it. The zero Sketch is that of a chunk in which nothing was sampled: it resembles nothing.
type Sketch struct {
	max [features]uint64
	any bool
}

// Super are the super-features of a chunk.
type Super [superFeatures]uint64

// Of returns the sketch of a chunk. It reads each byte once and does not allocate.
func Of(p []byte) (s Sketch) {
	h, c := uint64(0), random
	for _, b := range p {
		h = h<<1 + c.gear[b]
		if h&sampleMask != 0 {
			continue
		}
		s.any = true
		for i := range s.max {
			s.max[i] = max(s.max[i], h*c.transforms[i].mul+c.transforms[i].add)
		}
	}
	return s
}

// Common is how many of the twelve features two chunks have in common.
func (s *Sketch) Common(o *Sketch) (n int) {
	if !s.any || !o.any {
		return 0
	}
	for i := range s.max {
		if s.max[i] == o.max[i] {
			n++
		}
	}
	return n
}

// Super returns the super-features, and false when the chunk has none.
func (s *Sketch) Super() (f Super, ok bool) {
	for i := range s.max {
		f[i/perSuper] = bits.RotateLeft64(f[i/perSuper], 17)*0x9e3779b97f4a7c15 ^ s.max[i]
	}
	return f, s.any
}

// constants are random numbers, the same in every run.
type constants struct {
	gear       [256]uint64
	transforms [features]struct{ mul, add uint64 }
}

var random = makeConstants()

// makeConstants draws them with splitmix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
func makeConstants() *constants {
	seed := uint64(0x68797065726e6978)
	next := func() uint64 {
		seed += 0x9e3779b97f4a7c15
		z := seed
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		return z ^ z>>31
	}
	c := &constants{}
	for i := range c.gear {
		c.gear[i] = next()
	}
	for i := range c.transforms {
		c.transforms[i].mul, c.transforms[i].add = next()|1, next()
	}
	return c
}
