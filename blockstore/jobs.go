package blockstore

import (
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// extentsPerStep bounds one metadata batch of background work, so that destage waits for it only a few milliseconds.
const extentsPerStep = 20_000

// stepJobs frees a part of the oldest subtree that was cut off, and reports whether there was one.
func (s *Store) stepJobs(ctx context.Context) (bool, error) {
	if !s.worker.jobs.Load() {
		return false, nil
	}
	m := s.beginMeta()
	var n nodeID
	var num uint64
	var job extentmap.Job
	err := extentmap.ScanJobs(s.db, 0, func(owner block.VolumeID, k uint64, j extentmap.Job) (bool, error) {
		n, num, job = nodeID(owner), k, j
		return false, nil
	})
	if err != nil || n == 0 {
		s.worker.jobs.Store(err != nil)
		m.abort()
		return false, err
	}
	done, err := m.freeSubtree(ctx, n, &job)
	if err != nil {
		m.abort()
		return false, fmt.Errorf("free subtree %d of node %d: %w", job.Subtree.ID, n, err)
	}
	key := extentmap.JobKey(block.VolumeID(n), num)
	if done {
		m.delete(key)
	} else if err := m.b.Set(key, extentmap.EncodeJob(job), nil); err != nil {
		m.abort()
		return false, err
	}
	return true, m.commit()
}

// freeSubtree walks a part of a subtree that is dead in a node and moves the job's cursor. What was born in the node is freed. What is inherited goes to the node's
// deadlist, or is forgotten when the node itself goes and the parent keeps it.
func (m *metaBatch) freeSubtree(ctx context.Context, id nodeID, job *extentmap.Job) (done bool, err error) {
	s := m.s
	s.tree.RLock()
	n := s.nodes[id]
	if n == nil {
		s.tree.RUnlock()
		return false, &block.CorruptError{Source: fmt.Sprintf("job of node %d", id), Want: "the node", Got: "none"}
	}
	bound, leaf := block.Epoch(n.bound), n.abandonedLocked()
	s.tree.RUnlock()

	dead := extentmap.NewDeadlist(m.nextRow)
	inherit := func(birth block.Epoch, d extentmap.Dead) {
		if !leaf {
			dead.Add(deadOwner, block.Epoch(id), birth, d)
		}
	}
	extents, freed := 0, int64(0)
	next, done, err := s.maps.Walk(ctx, job.Subtree, bound, job.Cursor, extentmap.Visitor{
		Page: func(p extentmap.Page) bool {
			for i := range p.Len() {
				x := p.Extent(i)
				if x.Kind != extentmap.KindChunk {
					continue
				}
				freed += int64(x.Len)
				if x.Birth > bound {
					m.refs.Add(x.Chunk, -1)
				} else {
					inherit(x.Birth, extentmap.Dead{Kind: extentmap.DeadChunk, ID: uint64(x.Chunk)})
				}
			}
			m.delete(extentmap.PageKey(p.ID()))
			extents += p.Len() + 16
			return extents < extentsPerStep
		},
		Node: func(t extentmap.Subtree) bool {
			m.delete(extentmap.NodeKey(t.ID))
			extents += 16
			return extents < extentsPerStep
		},
		Older: func(t extentmap.Subtree) bool {
			inherit(t.Birth, extentmap.Dead{Kind: extentmap.DeadSubtree, ID: t.ID, Level: t.Level, Region: t.Region})
			extents += 16
			return extents < extentsPerStep
		},
	})
	if err != nil {
		return false, err
	}
	job.Cursor = next
	if !leaf {
		m.shrinkMapped(n, freed)
	}
	return done, dead.Flush(m.b)
}

// shrinkMapped books that bytes are gone from the map of a node and of the nodes that began as it afterwards.
func (m *metaBatch) shrinkMapped(n *node, bytes int64) {
	if bytes == 0 {
		return
	}
	s := m.s
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, c := range s.nodes {
		for p := c; p != nil; p = p.parent.Load() {
			if p == n && c.flags&nodeStarted != 0 {
				m.grown[c] -= bytes
				break
			}
		}
	}
}
