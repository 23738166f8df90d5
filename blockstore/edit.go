package blockstore

import (
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// mapEdit changes the map of one node within a metadata batch and keeps the books: it is the extentmap.Sink that applies the birth rule (docs/architecture.md,
// References).
type mapEdit struct {
	m     *metaBatch
	n     *node
	u     *extentmap.Update
	bound block.Epoch // what was born later is this node's alone
	dead  *extentmap.Deadlist
	at    block.Range // being replaced
	grown int64       // bytes of chunk extents
}

// edit begins a change of a node's map. A node has at most one edit in a batch. It is nil for a node that is being removed: its map must not change any more.
func (m *metaBatch) edit(n *node) *mapEdit {
	e := &mapEdit{m: m, n: n, dead: extentmap.NewDeadlist(m.nextRow)}
	m.s.tree.RLock()
	gone := n.abandonedLocked()
	e.bound = block.Epoch(n.bound)
	m.s.tree.RUnlock()
	if gone {
		return nil
	}
	e.u = extentmap.NewUpdate(m.s.maps, m.b, n.effectiveRoot(), n.birth(), m.nextPage, e)
	if m.s.opts.smallParts {
		e.u.SmallParts()
	}
	return e
}

func (m *metaBatch) nextPage() uint64 { m.c.NextPage++; return m.c.NextPage }
func (m *metaBatch) nextRow() uint64  { m.c.NextRow++; return m.c.NextRow }

// replace makes [off, off+n), which lies in one region, consist of the given extents.
func (e *mapEdit) replace(off, n uint64, with []extentmap.Extent) error {
	e.at = block.Range{Off: off, Len: n}
	for i := range with {
		if with[i].Kind == extentmap.KindChunk {
			e.grown += int64(with[i].Len)
		}
	}
	return e.u.Replace(off, n, with)
}

// detach makes [off, off+n) a hole, whatever lies there, at the cost of its two ends.
func (e *mapEdit) detach(off, n uint64) error {
	e.at = block.Range{Off: off, Len: n}
	return e.u.Detach(off, n)
}

// finish writes the new pages and nodes into the batch; the root is published with the batch's commit.
func (e *mapEdit) finish() error {
	root, err := e.u.Finish()
	if err != nil {
		return err
	}
	if e.u.Parted() {
		if err := e.m.s.needFeature(incompatParts); err != nil {
			return err
		}
	}
	e.m.roots[e.n] = root
	e.m.grown[e.n] += e.grown
	return e.dead.Flush(e.m.b)
}

// Born counts a new reference.
func (e *mapEdit) Born(chunk block.ChunkID) { e.m.refs.Add(chunk, 1) }

// Killed gives a reference back, or leaves it to the states that still need it.
func (e *mapEdit) Killed(x extentmap.Extent) {
	lo, hi := max(x.Off, e.at.Off), min(x.End(), e.at.End())
	if hi > lo {
		e.grown -= int64(hi - lo)
	}
	if x.Birth > e.bound {
		e.m.refs.Add(x.Chunk, -1)
		return
	}
	e.inherit(x.Birth, extentmap.Dead{Kind: extentmap.DeadChunk, ID: uint64(x.Chunk)})
}

// KilledPage deletes a page, or a part of one, that only this node had.
func (e *mapEdit) KilledPage(id uint64, birth block.Epoch) {
	if birth > e.bound {
		e.m.delete(extentmap.PageKey(id))
		return
	}
	e.inherit(birth, extentmap.Dead{Kind: extentmap.DeadPage, ID: id})
}

// KilledNode deletes a radix node that only this node had.
func (e *mapEdit) KilledNode(id uint64, birth block.Epoch) {
	if birth > e.bound {
		e.m.delete(extentmap.NodeKey(id))
		return
	}
	e.inherit(birth, extentmap.Dead{Kind: extentmap.DeadNode, ID: id})
}

// Subtree leaves a subtree that was cut off to the background, or, when all of it is inherited, to the states that still need it.
func (e *mapEdit) Subtree(s extentmap.Subtree) {
	if s.Birth > e.bound {
		e.m.addJob(e.n.id, s)
		return
	}
	e.inherit(s.Birth, extentmap.Dead{Kind: extentmap.DeadSubtree, ID: s.ID, Level: s.Level, Region: s.Region})
}

// inherit puts something on the node's deadlist: the parent still has it. It is freed when the parent goes and nobody else has it.
func (e *mapEdit) inherit(birth block.Epoch, d extentmap.Dead) {
	e.dead.Add(deadOwner, block.Epoch(e.n.id), birth, d)
}

// deadOwner is the volume field of deadlist keys, which are told apart by node alone.
const deadOwner = 0

func (m *metaBatch) delete(key []byte) {
	// A batch in memory fails only when it is closed or beyond 4 GiB; commit would say so.
	_ = m.b.Delete(key, nil)
}

// addJob leaves a subtree that is dead in a node to the background.
func (m *metaBatch) addJob(n nodeID, s extentmap.Subtree) {
	row := extentmap.EncodeJob(extentmap.Job{Kind: extentmap.JobSubtree, Subtree: s})
	_ = m.b.Set(extentmap.JobKey(block.VolumeID(n), m.nextRow()), row, nil)
	m.s.worker.noteJob()
}
