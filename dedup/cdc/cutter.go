package cdc

import "math/bits"

// Cutter cuts with one set of parameters.
type Cutter struct {
	p    Params
	jump jumpCut
}

// NewCutter returns a cutter for p, or the error of p.Validate.
func NewCutter(p Params) (*Cutter, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	c := &Cutter{p: p}
	if p.Kind == CDC {
		c.jump = newJumpCut(p)
	}
	return c, nil
}

// Params returns what the cutter was made with.
func (c *Cutter) Params() Params { return c.p }

// Cut appends the lengths of the chunks that cover data to dst and returns it. base is the offset of data in its volume, in bytes: fixed
// cuts fall on multiples of their size of it, content-defined ones ignore it. It neither keeps data nor allocates, but to grow dst.
func (c *Cutter) Cut(dst []uint32, data []byte, base uint64) []uint32 {
	for len(data) > 0 {
		n := c.Next(data, base, true)
		dst = append(dst, uint32(n))
		data, base = data[n:], base+uint64(n)
	}
	return dst
}

// Next returns the length of the first chunk of data, which starts at base in its volume. When data is the prefix of a longer run (final is
// false) and its end decides nothing yet, Next returns 0: call again with more bytes, from the same start. Max bytes always decide.
func (c *Cutter) Next(data []byte, base uint64, final bool) int {
	var n int
	if c.p.Kind == Fixed {
		n = int(uint64(c.p.Avg) - base&uint64(c.p.Avg-1))
	} else {
		n = c.jump.next(data[:min(len(data), int(c.p.Max))])
		if n == len(data) && n < int(c.p.Max) && !final {
			return 0
		}
	}
	if n > len(data) {
		if !final {
			return 0
		}
		return len(data)
	}
	return n
}

// jumpCut is the algorithm of TableVersion1: the gear hash of FastCDC (Xia et al., USENIX ATC 2016) with the jump condition of JC (Jin et
// al., IEEE TPDS 2023), and a longer jump than the paper's, which measured best at an average of 16 KiB. Starting Min bytes into the chunk
// it rolls until the top bits-1 bits of the hash are zero. If the next bit is zero as well the chunk ends behind that byte; if not, no cut can be
// near that is worth finding, and it jumps ahead Avg/2 bytes with a fresh hash.
type jumpCut struct {
	min, jump        int    // bytes
	judgeMask, cMask uint64 // bits of the hash that must be zero to stop rolling, and to cut
	table            [256]uint64
}

func newJumpCut(p Params) jumpCut {
	bits := bits.Len32(p.Avg) - 1 - 3
	return jumpCut{
		min:       int(p.Min),
		jump:      int(p.Avg / 2),
		judgeMask: ^uint64(0) << (64 - (bits - 1)),
		cMask:     ^uint64(0) << (64 - bits),
		table:     gearTable(),
	}
}

// next returns the length of the first chunk of data; len(data), which is at most Max, when nothing in data says otherwise.
func (j *jumpCut) next(data []byte) int {
	for at := j.min; at < len(data); at += j.jump {
		n, h := j.roll(data[at:])
		if h&j.judgeMask != 0 {
			break
		}
		at += n
		if h&j.cMask == 0 {
			return at
		}
	}
	return len(data)
}

// roll hashes p until the judge mask matches, and returns the bytes read and the hash; at the end of p the hash does not match.
func (j *jumpCut) roll(p []byte) (int, uint64) {
	h := uint64(0)
	for i, b := range p {
		h = h<<1 + j.table[b]
		if h&j.judgeMask == 0 {
			return i + 1, h
		}
	}
	return len(p), ^uint64(0)
}

// gearSeed starts the table: the first 64 bits of the fraction of pi. It is part of the disk format.
const gearSeed = 0x243f6a8885a308d3

// gearTable returns the 256 outputs of splitmix64 (Steele, Lea, Flood, OOPSLA 2014) that follow gearSeed.
func gearTable() (t [256]uint64) {
	s := uint64(gearSeed)
	for i := range t {
		s += 0x9e3779b97f4a7c15
		z := s
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		t[i] = z ^ z>>31
	}
	return t
}
