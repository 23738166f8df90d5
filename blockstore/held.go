package blockstore

import "github.com/hyper-nixos/hyper-nixos/block"

// heldLocked returns how many bytes of data each volume, its snapshots included, has in the log alone. It reads the counters of the layers, which are exact: what was
// overwritten does not count. Store.tree is held.
func (s *Store) heldLocked() map[*Volume]int64 {
	held := make(map[*Volume]int64, len(s.volumes))
	for _, n := range s.nodes {
		if blocks := n.layer.Blocks(); blocks > 0 {
			held[n.volume] += blocks * block.Size
		}
	}
	return held
}
