package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// SnapshotFrees says how many bytes of chunks, before compression, deleting a snapshot would free: those that no other state and no other volume has. What is still in
// the log is brought down first, so it may take a while. It costs as much as the deletion would.
func (s *Store) SnapshotFrees(ctx context.Context, volume, name string) (uint64, error) {
	fail := func(err error) (uint64, error) {
		return 0, fmt.Errorf("compute what snapshot %q of volume %q holds alone: %w", name, volume, err)
	}
	if err := s.Settle(ctx, nil); err != nil {
		return fail(err)
	}
	// Nothing may change the maps meanwhile: destage waits, guests do not.
	s.meta.Lock()
	defer s.meta.Unlock()
	s.tree.RLock()
	n, err := s.findSnapshotLocked(volume, name)
	var child *node
	bound := block.Epoch(0)
	if err == nil {
		bound = block.Epoch(n.bound)
		for _, c := range s.nodes {
			if n.children == 1 && c.parent.Load() == n {
				child = c
			}
		}
	}
	s.tree.RUnlock()
	if err != nil {
		return fail(err)
	}
	if n.children > 1 {
		return 0, nil
	}
	c := &freeCount{s: s, ctx: ctx, bound: bound, drops: map[block.ChunkID]uint64{}}
	if child == nil {
		err = c.subtree(n.effectiveRoot().Subtree())
	} else {
		err = c.deadlist(child.id)
	}
	if err != nil {
		return fail(err)
	}
	freed, err := c.bytes()
	if err != nil {
		return fail(err)
	}
	return freed, nil
}

// freeCount gathers the references that a deletion would give back. It holds 16 bytes for each chunk that is concerned.
type freeCount struct {
	s     *Store
	ctx   context.Context // of the one call it is made for
	bound block.Epoch
	drops map[block.ChunkID]uint64
}

func (c *freeCount) subtree(t extentmap.Subtree) error {
	_, _, err := c.s.maps.Walk(c.ctx, t, c.bound, 0, extentmap.Visitor{Recent: true, Page: func(p extentmap.Page) bool {
		for i := range p.Len() {
			if x := p.Extent(i); x.Kind == extentmap.KindChunk && x.Birth > c.bound {
				c.drops[x.Chunk]++
			}
		}
		return true
	}})
	return err
}

func (c *freeCount) deadlist(n nodeID) error {
	return extentmap.ScanDead(c.s.db, deadOwner, block.Epoch(n), c.bound, ^block.Epoch(0)-1, func(k extentmap.DeadKey, dead []extentmap.Dead) (bool, error) {
		for _, d := range dead {
			switch d.Kind {
			case extentmap.DeadChunk:
				c.drops[block.ChunkID(d.ID)]++
			case extentmap.DeadSubtree:
				if err := c.subtree(extentmap.Subtree{ID: d.ID, Level: d.Level, Region: d.Region, Birth: k.Birth}); err != nil {
					return false, err
				}
			}
		}
		return true, c.ctx.Err()
	})
}

// bytes adds up the chunks all of whose references would go.
func (c *freeCount) bytes() (uint64, error) {
	total := uint64(0)
	for id, drops := range c.drops {
		count, err := extentmap.ReadRef(c.s.db, id)
		if err != nil {
			return 0, err
		}
		if count > drops {
			continue
		}
		row, err := c.s.chunks.row(id)
		if errors.Is(err, block.ErrNotFound) {
			continue
		}
		if err != nil {
			return 0, err
		}
		total += uint64(row.RawLen)
	}
	return total, nil
}
