package overlay

import "github.com/hyper-nixos/hyper-nixos/block"

// Touched appends to dst the blocks' byte ranges, by whole regions and in no order, in which the layer holds anything. It costs what the layer holds. What is published while it runs may be missing.
func (l *Layer) Touched(dst []block.Range) []block.Range {
	if l.Empty() {
		return dst
	}
	for s := range l.eachShard {
		s.mu.Lock()
		for _, e := range s.table.entries {
			if e != 0 {
				ref := e - 1
				dst = append(dst, block.Range{Off: s.regions.slabs[ref>>8][ref&0xff].id * block.RegionSize, Len: block.RegionSize})
			}
		}
		s.mu.Unlock()
	}
	// The list comes last: a tombstone that was laid meanwhile removed regions that were not looked at yet.
	for _, t := range l.ranges.list.Load().all() {
		dst = append(dst, block.Range{Off: t.First * block.RegionSize, Len: t.N * block.RegionSize})
	}
	return dst
}
