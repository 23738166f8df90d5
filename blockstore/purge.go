package blockstore

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// rowsPerStep bounds the deadlist rows of one metadata batch.
const rowsPerStep = 200

// stepPurge does a part of the removal of one deleted node, and reports whether there was one that can go. A node can go when no other node lies over it (a leaf: all
// that was born in it is freed), or when exactly one does and all of the node is in its map (an inner node: what only it had is freed, the child inherits the rest).
func (s *Store) stepPurge(ctx context.Context) (bool, error) {
	n, child := s.purgeable()
	if n == nil {
		return false, nil
	}
	if jobs, err := s.hasJobs(n.id); err != nil || jobs {
		return false, err
	}
	if child == nil {
		return true, s.purgeLeaf(n)
	}
	if jobs, err := s.hasJobs(child.id); err != nil || jobs {
		return false, err
	}
	return true, s.purgeInner(ctx, n, child)
}

// purgeable returns a deleted node that can go, and its only child, if any. One that was begun comes first: at most one is under way.
func (s *Store) purgeable() (n, child *node) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, c := range s.nodes {
		if c.flags&nodeDeleted == 0 || c.children > 1 || c.children == 1 && c.flags&nodeResolved == 0 {
			continue
		}
		if n == nil || c.flags&nodePurging != 0 || n.flags&nodePurging == 0 && c.id > n.id {
			n = c
		}
	}
	if n == nil || n.children == 0 {
		return n, nil
	}
	for _, c := range s.nodes {
		if c.parent.Load() == n {
			return n, c
		}
	}
	return n, nil
}

func (s *Store) hasJobs(n nodeID) (found bool, err error) {
	err = extentmap.ScanJobs(s.db, block.VolumeID(n), func(block.VolumeID, uint64, extentmap.Job) (bool, error) {
		found = true
		return false, nil
	})
	return found, err
}

// setFlags changes a node's flags and leaves its row to the next commit.
func (s *Store) setFlags(n *node, set nodeFlags, bound nodeID) {
	s.tree.Lock()
	defer s.tree.Unlock()
	n.flags |= set
	n.bound = bound
	s.touchNodeLocked(n)
}

// purgeLeaf turns the whole map of the node into a job first; when the job is done, the deadlist and the node go.
func (s *Store) purgeLeaf(n *node) error {
	m := s.beginMeta()
	if n.flags&nodePurging == 0 {
		s.setFlags(n, nodePurging, n.bound)
		if root := n.root.Load(); root != nil && root.ID != 0 && root.Birth > block.Epoch(n.bound) {
			m.addJob(n.id, root.Subtree())
		}
		return m.commit()
	}
	rows := 0
	err := extentmap.ScanDead(s.db, deadOwner, block.Epoch(n.id), 0, ^block.Epoch(0)-1, func(k extentmap.DeadKey, _ []extentmap.Dead) (bool, error) {
		m.delete(k.Bytes())
		rows++
		return rows < rowsPerStep, nil
	})
	if err != nil {
		m.abort()
		return err
	}
	if rows < rowsPerStep {
		m.purged = append(m.purged, n)
	}
	return m.commit()
}

// purgeInner frees what n alone had: the entries of the child's deadlist that were born after n's own bound. Then n's deadlist becomes the child's.
func (s *Store) purgeInner(_ context.Context, n, child *node) error {
	m := s.beginMeta()
	if n.flags&nodePurging == 0 || child.root.Load() == nil {
		if child.root.Load() == nil {
			m.roots[child] = child.effectiveRoot()
			m.grown[child] = 0
		}
		s.setFlags(n, nodePurging, n.bound)
		s.setFlags(child, 0, n.bound)
		return m.commit()
	}
	freed, err := m.freeDead(child.id, block.Epoch(n.bound))
	if err == nil && freed == 0 {
		var moved int
		moved, err = extentmap.MoveDead(s.db, m.b, deadOwner, block.Epoch(n.id), block.Epoch(child.id), ^block.Epoch(0)-1, rowsPerStep)
		if err == nil && moved < rowsPerStep {
			m.adopt(n, child)
		}
	}
	if err != nil {
		m.abort()
		return err
	}
	return m.commit()
}

// freeDead frees a bounded number of rows of a node's deadlist that were born after bound and returns how many; 0 when none is left.
func (m *metaBatch) freeDead(id nodeID, bound block.Epoch) (rows int, err error) {
	err = extentmap.ScanDead(m.s.db, deadOwner, block.Epoch(id), bound, ^block.Epoch(0)-1, func(k extentmap.DeadKey, dead []extentmap.Dead) (bool, error) {
		for _, d := range dead {
			switch d.Kind {
			case extentmap.DeadChunk:
				m.refs.Add(block.ChunkID(d.ID), -1)
			case extentmap.DeadPage:
				m.delete(extentmap.PageKey(d.ID))
			case extentmap.DeadNode:
				m.delete(extentmap.NodeKey(d.ID))
			case extentmap.DeadSubtree:
				m.addJob(id, extentmap.Subtree{ID: d.ID, Level: d.Level, Region: d.Region, Birth: k.Birth})
			}
		}
		m.delete(k.Bytes())
		rows++
		return rows < rowsPerStep, nil
	})
	return rows, err
}

// adopt takes n out between its child and its parent, with the commit.
func (m *metaBatch) adopt(n, child *node) {
	s := m.s
	s.tree.Lock()
	defer s.tree.Unlock()
	p := n.parent.Load()
	child.parent.Store(p)
	if p != nil {
		p.children++
	}
	s.touchNodeLocked(child)
	m.purged = append(m.purged, n)
}
