package overlay

import (
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Run is a maximal run of blocks of one kind. The blocks of a Data run lie at consecutive sectors of the log.
type Run struct {
	Block uint64   // first block
	N     uint64   // blocks
	Kind  Kind     //
	Pos   uint64   // Data: position of the first sector, the next is block.Size further
	Sums  []uint32 // Data: crc32c of each sector
}

// LookupInto classifies blocks [b, b+n) and appends the runs, in order and without gaps, to dst and their checksums to sums; it returns
// both. Run.Sums point into sums, so they are valid until the caller reuses it. It allocates only where the buffers are too short.
func (l *Layer) LookupInto(dst []Run, sums []uint32, b, n uint64) ([]Run, []uint32) {
	w := runWriter{runs: dst, sums: sums, base: len(dst)}
	if l.Empty() {
		w.gap(b, n, Absent)
		return w.done()
	}
	for n > 0 {
		region, first := regionOf(b)
		part := min(n, block.BlocksPerRegion-uint64(first))
		l.lookupRegion(&w, region, first, uint(part))
		b, n = b+part, n-part
	}
	return w.done()
}

// Lookup calls visit for each run of blocks [b, b+n), in order, after all locks were released. It allocates; the data path uses LookupInto.
func (l *Layer) Lookup(b, n uint64, visit func(Run)) {
	runs, _ := l.LookupInto(nil, nil, b, n)
	for _, r := range runs {
		visit(r)
	}
}

// lookupRegion classifies blocks [first, first+n) of one region.
func (l *Layer) lookupRegion(w *runWriter, id uint64, first, n uint) {
	start := id * block.BlocksPerRegion
	var r *region
	s := l.shardOf(id)
	if s != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		_, r = s.table.find(&s.regions, id)
	}
	floor := l.ranges.list.Load().covering(id)
	if r != nil {
		floor = max(floor, r.zeroed)
	}
	under := Absent
	if floor != 0 {
		under = Zero
	}
	if r == nil || r.leaves == 0 {
		w.gap(start+uint64(first), uint64(n), under)
		return
	}
	for n > 0 {
		i, at := first/leafBlocks, first%leafBlocks
		part := min(n, leafBlocks-at)
		if lf := s.leaf(r, i); lf != nil {
			s.lookupLeaf(w, lf, start+uint64(first), at, part, floor, under)
		} else {
			w.gap(start+uint64(first), uint64(part), under)
		}
		first, n = first+part, n-part
	}
}

// lookupLeaf classifies n blocks of a leaf from block at on, which is block b of the volume.
func (s *shard) lookupLeaf(w *runWriter, lf *leaf, b uint64, at, n uint, floor uint64, under Kind) {
	cells := s.slots.cells(lf.ref, lf.class)
	if lf.based {
		under = Zero
	}
	cells = cells[lf.baseLen()+rank(lf.mask, at):]
	for mask := lf.mask >> at; n > 0; {
		if gap := min(uint(bits.TrailingZeros64(mask)), n); gap > 0 {
			w.gap(b, uint64(gap), under)
			b, n, mask = b+uint64(gap), n-gap, mask>>gap
		}
		set := min(uint(bits.TrailingZeros64(^mask)), n)
		for j := range cells[:set] {
			if c := &cells[j]; c.kind == Data && c.pos > floor {
				w.data(b+uint64(j), c)
			} else {
				w.gap(b+uint64(j), 1, Zero)
			}
		}
		b, n, mask, cells = b+uint64(set), n-set, mask>>set, cells[set:]
	}
}

// runWriter joins what a lookup finds into maximal runs.
type runWriter struct {
	runs []Run
	sums []uint32
	base int // runs before this one were there already
	from int // in sums, where the last run starts
}

// gap adds n blocks without data.
func (w *runWriter) gap(b, n uint64, kind Kind) {
	if k := len(w.runs) - 1; k >= w.base && w.runs[k].Kind == kind {
		w.runs[k].N += n
		return
	}
	w.seal()
	w.runs = append(w.runs, Run{Block: b, N: n, Kind: kind})
}

// data adds one block.
func (w *runWriter) data(b uint64, c *slot) {
	if k := len(w.runs) - 1; k >= w.base && w.runs[k].Kind == Data && w.runs[k].Pos+w.runs[k].N*block.Size == c.pos {
		w.runs[k].N++
		w.sums = append(w.sums, c.sum)
		return
	}
	w.seal()
	w.from = len(w.sums)
	w.sums = append(w.sums, c.sum)
	w.runs = append(w.runs, Run{Block: b, N: 1, Kind: Data, Pos: c.pos})
}

// seal gives the last run its checksums.
func (w *runWriter) seal() {
	if k := len(w.runs) - 1; k >= w.base && w.runs[k].Kind == Data {
		w.runs[k].Sums = w.sums[w.from:len(w.sums):len(w.sums)]
	}
}

func (w *runWriter) done() ([]Run, []uint32) {
	w.seal()
	return w.runs, w.sums
}
