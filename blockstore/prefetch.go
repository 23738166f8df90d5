package blockstore

import (
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

const (
	// aheadGap is how many bytes between two frames are read ahead for nothing rather than with a request of their own.
	aheadGap = 64 << 10
	// aheadRun bounds one request.
	aheadRun = 4 << 20
	// aheadSure is how many runs of the log must be found in memory one after the other before only one in aheadStep is looked at: to look at each of many scattered blocks costs
	// half as much as reading it from there.
	aheadSure = 64
	aheadStep = 32
)

// prefetcher has what lies under a range of a volume brought into the kernel's memory, in as few and as large requests as it can. It decodes and checks nothing: that is done by who reads it.
type prefetcher struct {
	s       *Store
	segment block.SegmentID // of the run that is gathered; 0: none
	off     uint32
	end     uint32
	found   int // runs of the log found, or believed, to be in memory one after the other
}

// readAhead begins to bring a range of a node into memory. It is a hint, so it ends with the first thing that is in its way. It takes and returns how many runs of the log its reader found in memory of
// late.
func (s *Store) readAhead(n *node, r block.Range, found int) int {
	p := prefetcher{s: s, found: found}
	first, count := blocksOf(r.Off, r.Len)
	pin := s.log.Pin()
	defer pin.Release()
	_ = p.layers(n, first, count)
	p.flush()
	return p.found
}

// layers goes through blocks of n as reader.layers does.
func (p *prefetcher) layers(n *node, first, count uint64) error {
	runs, _ := n.layer.LookupInto(nil, nil, first, count)
	for _, run := range runs {
		if err := p.s.ctx.Err(); err != nil {
			return err
		}
		switch run.Kind {
		case overlay.Data:
			p.fromLog(journal.Pos(run.Pos), int64(run.N*block.Size))
		case overlay.Zero:
		default:
			var err error
			if parent := n.parent.Load(); n.root.Load() == nil && parent != nil {
				err = p.layers(parent, run.Block, run.N)
			} else {
				err = p.fromMap(n.effectiveRoot(), run.Block*block.Size, run.N*block.Size)
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// fromLog asks for a run of the log, unless it is in memory, or all were of late.
func (p *prefetcher) fromLog(pos journal.Pos, n int64) {
	if history.InHistory(uint64(pos)) {
		return // a frame is read as a whole anyhow
	}
	if p.found >= aheadSure && p.found%aheadStep != 0 || p.s.log.Cached(pos, n) {
		p.found++
		return
	}
	p.found = 0
	p.s.log.Prefetch(pos, n)
}

func (p *prefetcher) fromMap(root extentmap.Root, off, n uint64) error {
	var inner error
	err := p.s.maps.Lookup(root, off, n, func(e extentmap.Extent) bool {
		if e.Kind == extentmap.KindChunk {
			inner = p.chunk(e)
		}
		return inner == nil && p.s.ctx.Err() == nil
	})
	if err == nil {
		err = inner
	}
	return err
}

// chunk adds the frame of a chunk to the run.
func (p *prefetcher) chunk(e extentmap.Extent) error {
	row, err := p.s.chunks.row(e.Chunk)
	if err != nil {
		return err
	}
	end := row.FrameOff + row.FrameLen
	if row.Segment == p.segment && row.FrameOff >= p.off && uint64(row.FrameOff) <= uint64(p.end)+aheadGap && end-p.off <= aheadRun {
		p.end = max(p.end, end)
		return nil
	}
	p.flush()
	p.segment, p.off, p.end = row.Segment, row.FrameOff, end
	return nil
}

// flush asks for the run.
func (p *prefetcher) flush() {
	if p.segment != 0 {
		p.s.segments.prefetch(p.s.ctx, p.segment, int64(p.off), int64(p.end-p.off))
		p.segment = 0
	}
}
