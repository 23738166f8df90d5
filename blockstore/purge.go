package blockstore

import (
	"context"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// rowsPerStep bounds the deadlist rows of one metadata batch.
const rowsPerStep = 200

// purgesPerStep bounds the nodes of one metadata batch: a batch is synced, and whoever deletes thousands of snapshots must not be faster than those who remove them.
const purgesPerStep = 64

// stepPurge does a part of the removal of deleted nodes, and reports whether there was one that can go. A node can go when no other node lies over it (a leaf: all that was
// born in it is freed), or when exactly one does and all of the node is in its map (an inner node: what only it had is freed, the child inherits the rest).
func (s *Store) stepPurge(context.Context) (bool, error) {
	if len(s.purgeable(1)) == 0 {
		return false, nil
	}
	p := &purging{m: s.beginMeta(), rows: rowsPerStep}
	did := false
	for _, due := range s.purgeable(purgesPerStep) {
		ready, err := p.step(due.n, due.child)
		if err != nil {
			p.m.abort()
			return false, err
		}
		did = did || ready
		if p.rows <= 0 {
			break
		}
	}
	if !did {
		p.m.abort()
		return false, nil
	}
	for _, change := range p.tree {
		change()
	}
	return true, p.m.commit()
}

// purgeableLocked reports whether the node is deleted and can go. Store.tree is held.
func (n *node) purgeableLocked() bool {
	return n.flags&nodeDeleted != 0 && (n.children == 0 || n.children == 1 && n.flags&nodeResolved != 0)
}

// purge is a node that can go, and its only child, if it has one.
type purge struct{ n, child *node }

// purgeable returns deleted nodes that can go, max at most, in their order. Those that were begun come first. No two of them are neighbours in the tree, so each can be
// worked off as if it were the only one.
func (s *Store) purgeable(max int) (due []purge) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	var can []*node
	children := make(map[*node]*node)
	for _, n := range s.nodes {
		if n.purgeableLocked() {
			can = append(can, n)
		}
		if p := n.parent.Load(); p != nil && p.flags&nodeDeleted != 0 {
			children[p] = n
		}
	}
	slices.SortFunc(can, func(a, b *node) int {
		if begun := a.flags & nodePurging; begun != b.flags&nodePurging {
			return int(b.flags&nodePurging) - int(begun)
		}
		if s.dueFirst.nodeBefore(a.id, b.id) {
			return -1
		}
		return 1
	})
	taken := make(map[*node]bool)
	for _, n := range can {
		child, parent := children[n], n.parent.Load()
		if n.children == 0 {
			child = nil
		}
		if len(due) < max && !taken[n] && !taken[child] && !taken[parent] {
			due = append(due, purge{n, child})
		} else if n.flags&nodePurging == 0 {
			continue
		}
		taken[n], taken[parent] = true, parent != nil
		if child != nil {
			taken[child] = true
		}
	}
	return due
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

// purging is one batch that removes nodes.
type purging struct {
	m    *metaBatch
	rows int      // of deadlists that the batch still takes
	tree []func() // changes of the tree, made when nothing can fail any more but the commit
}

// step does the next part of a removal and reports whether it could: what a trim or a purge before has cut off must be freed first.
func (p *purging) step(n, child *node) (ready bool, err error) {
	for _, of := range []*node{n, child} {
		if of == nil {
			continue
		}
		if jobs, err := p.m.s.hasJobs(of.id); err != nil || jobs {
			return false, err
		}
	}
	if child == nil {
		return true, p.leaf(n)
	}
	return true, p.inner(n, child)
}

// leaf turns the whole map of the node into a job first; when the job is done, the deadlist and the node go.
func (p *purging) leaf(n *node) error {
	m := p.m
	if root := n.root.Load(); n.flags&nodePurging == 0 {
		p.tree = append(p.tree, func() { m.s.setFlags(n, nodePurging, n.bound) })
		if root != nil && root.ID != 0 && root.Birth > block.Epoch(n.bound) {
			m.addJob(n.id, root.Subtree())
			return nil
		}
	}
	err := extentmap.ScanDead(m.s.db, deadOwner, block.Epoch(n.id), 0, ^block.Epoch(0)-1, func(k extentmap.DeadKey, _ []extentmap.Dead) (bool, error) {
		m.delete(k.Bytes())
		p.rows--
		return p.rows > 0, nil
	})
	if err == nil && p.rows > 0 {
		m.purged = append(m.purged, n)
	}
	return err
}

// inner frees what n alone had: the entries of the child's deadlist that were born after n's own bound. Then n's deadlist becomes the child's.
func (p *purging) inner(n, child *node) error {
	m := p.m
	if n.flags&nodePurging == 0 || child.root.Load() == nil {
		if child.root.Load() == nil {
			m.roots[child] = child.effectiveRoot()
			m.grown[child] = 0
		}
		p.tree = append(p.tree, func() {
			m.s.setFlags(n, nodePurging, n.bound)
			m.s.setFlags(child, 0, n.bound)
		})
		return nil
	}
	freed, err := m.freeDead(child.id, block.Epoch(n.bound), p.rows)
	p.rows -= freed
	if err != nil || freed > 0 {
		return err
	}
	moved, err := extentmap.MoveDead(m.s.db, m.b, deadOwner, block.Epoch(n.id), block.Epoch(child.id), ^block.Epoch(0)-1, p.rows)
	p.rows -= moved
	if err == nil && p.rows > 0 {
		p.tree = append(p.tree, func() { m.adopt(n, child) })
	}
	return err
}

// freeDead frees at most limit rows of a node's deadlist that were born after bound and returns how many; 0 when none is left.
func (m *metaBatch) freeDead(id nodeID, bound block.Epoch, limit int) (rows int, err error) {
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
		return rows < limit, nil
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
