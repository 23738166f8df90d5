package control

import (
	"context"
	"fmt"
	"sort"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// sparse is parts of a device, one after the other, whose holes are not read. Offsets count from where the first begins, in bytes, as if the others followed it.
type sparse struct {
	ctx    context.Context // of the one transfer that it is made for
	device Device
	parts  []block.Range
	starts []uint64 // of the parts
	size   uint64
}

// newSparse returns block.ErrOutOfRange for a part that is empty or not all in the device. An empty device has one empty part.
func newSparse(ctx context.Context, device Device, parts []block.Range) (*sparse, error) {
	s := &sparse{ctx: ctx, device: device, parts: parts, starts: make([]uint64, len(parts))}
	whole := device.Size()
	for i, p := range parts {
		if p.Off > whole || p.Len > whole-p.Off || p.Len == 0 && whole > 0 {
			return nil, fmt.Errorf("%d B at %d of %d B: %w", p.Len, p.Off, whole, block.ErrOutOfRange)
		}
		s.starts[i] = s.size
		s.size += p.Len
	}
	return s, nil
}

// rest returns where in the device an offset is, up to the end of its part.
func (s *sparse) rest(off uint64) block.Range {
	i := sort.Search(len(s.starts), func(i int) bool { return s.starts[i] > off }) - 1
	in := off - s.starts[i]
	return block.Range{Off: s.parts[i].Off + in, Len: s.parts[i].Len - in}
}

// ReadAt implements transfer.Source.
func (s *sparse) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	for len(p) > 0 {
		r := s.rest(off)
		n := min(uint64(len(p)), r.Len)
		if _, err := s.device.ReadAt(ctx, p[:n], r.Off, nil); err != nil {
			return holes, err
		}
		p, off = p[n:], off+n
	}
	return holes, nil
}

// NextData implements transfer.Sparse.
func (s *sparse) NextData(off uint64) (uint64, error) {
	found := false
	for off < s.size && !found {
		r := s.rest(off)
		err := s.device.Depths(s.ctx, r, func(n uint64, depth uint32) bool {
			if found = depth != 0; !found {
				off += n
			}
			return !found
		})
		if err != nil {
			return 0, err
		}
	}
	return off, nil
}
