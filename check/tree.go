package check

import (
	"fmt"
	"maps"
	"slices"
)

// forest is all volumes and their states.
type forest struct {
	counters counterRow
	volumes  map[uint64]*volumeRow
	nodes    map[uint64]*treeNode
	order    []*treeNode // by id: parents before children
	names    map[snapshotName]uint64
}

type snapshotName struct {
	volume uint64
	name   string
}

// treeNode is a node with its place in the forest.
type treeNode struct {
	nodeRow
	parent   *treeNode
	children []*treeNode
	jobs     []subtreeJob
}

// purged reports whether the node's own map does not count any more: a leaf's is held by jobs, an inner node's by its child and that one's deadlist.
func (n *treeNode) purged() bool { return n.is(nodePurging) }

// base is the nearest older state whose map counts: what n was given by others is what base holds.
func (n *treeNode) base() *treeNode {
	p := n.parent
	for p != nil && p.purged() {
		p = p.parent
	}
	return p
}

// root is the map of a node: its own, or until its first destage that of the state it began as.
func (n *treeNode) root() ref {
	for ; n != nil; n = n.parent {
		if n.is(nodeStarted) {
			return n.Root
		}
	}
	return ref{}
}

// abandoned reports whether nobody can ever read the node again.
func (n *treeNode) abandoned() bool { return n.is(nodeDeleted) && len(n.children) == 0 }

func (n *treeNode) unit() string { return unit64(tableNode, n.ID) }

func (r *run) readTree() error {
	t := &r.tree
	t.volumes, t.nodes, t.names = map[uint64]*volumeRow{}, map[uint64]*treeNode{}, map[snapshotName]uint64{}
	err := r.meta.table(tableVolume, func(key, value []byte) error {
		r.sumRow(key, value)
		v, err := parseVolumeRow(keyField(key, 0), value)
		if err != nil {
			r.noteErr(unit(key), err)
		}
		t.volumes[keyField(key, 0)] = v
		return nil
	})
	if err != nil {
		return err
	}
	err = r.meta.table(tableNode, func(key, value []byte) error {
		r.sumRow(key, value)
		n, err := parseNodeRow(keyField(key, 0), value)
		if err != nil {
			r.noteErr(unit(key), err)
		}
		n.ID = keyField(key, 0)
		t.nodes[n.ID] = &treeNode{nodeRow: *n}
		return nil
	})
	if err != nil {
		return err
	}
	for _, id := range slices.Sorted(maps.Keys(t.nodes)) {
		t.order = append(t.order, t.nodes[id])
	}
	return r.readJobs()
}

// checkTree checks that the nodes form a forest, and what volumes and nodes say of each other.
func (r *run) checkTree() error {
	t := &r.tree
	r.rep.Totals.Volumes, r.rep.Totals.Nodes = len(t.volumes), len(t.nodes)
	for _, n := range t.order {
		r.linkNode(n)
	}
	for _, n := range t.order {
		r.checkNode(n)
	}
	names := map[string]uint64{}
	for _, id := range slices.Sorted(maps.Keys(t.volumes)) {
		v := t.volumes[id]
		r.checkVolume(v)
		if other, twice := names[v.Name]; twice {
			r.fail(unit64(tableVolume, id), 120, "a name of its own", fmt.Sprintf("%q, as volume %d", v.Name, other))
		}
		names[v.Name] = id
	}
	return nil
}

func (r *run) linkNode(n *treeNode) {
	if n.Parent == 0 {
		return
	}
	p := r.tree.nodes[n.Parent]
	if !r.expect(p != nil && p.ID < n.ID, n.unit(), 24, "an older node as its parent", n.Parent) {
		return
	}
	n.parent = p
	p.children = append(p.children, n)
}

func (r *run) checkNode(n *treeNode) {
	seq := r.tree.counters.AppliedSeq
	r.expect(n.ID <= seq && n.Closed <= seq, n.unit(), 8, fmt.Sprintf("records up to %d", seq), fmt.Sprint(n.ID, ", ", n.Closed))
	r.expect(n.Root.Birth <= n.ID, n.unit(), 40, fmt.Sprintf("a root born by %d", n.ID), n.Root.Birth)
	r.expect(!n.is(nodeProtected|nodeAutomatic) || r.super.Incompat&superSnapshots != 0, n.unit(), 1, "no such flag without the feature in the superblock", fmt.Sprintf("flags %02x", n.Flags))
	bound := uint64(0)
	if b := n.base(); b != nil {
		bound = b.ID
	}
	r.expect(n.Bound == bound, n.unit(), 72, fmt.Sprintf("bound %d, the nearest older state", bound), n.Bound)
	if p := n.parent; p != nil {
		r.expect(p.is(nodeClosed) && p.Closed <= n.ID, n.unit(), 24, "a parent that was closed before", fmt.Sprintf("node %d, closed by %d", p.ID, p.Closed))
		r.expect(!n.is(nodeStarted) || p.is(nodeResolved), n.unit(), 1, "a map only over a resolved parent", fmt.Sprintf("flags %02x", n.Flags))
		if p.purged() {
			r.expect(len(p.children) == 1 && n.is(nodeStarted), p.unit(), 1, "purging only with one child, which has its own map", fmt.Sprintf("%d children", len(p.children)))
		}
	}
	v := r.tree.volumes[n.Volume]
	r.expect(n.Volume < r.tree.counters.NextVolume, n.unit(), 16, fmt.Sprintf("a volume below %d", r.tree.counters.NextVolume), n.Volume)
	if !n.is(nodeDeleted) {
		r.expect(v != nil, n.unit(), 16, "a volume that exists", n.Volume)
	}
	if v == nil {
		return
	}
	r.expect(n.MapEpoch <= v.MapEpoch, n.unit(), 4, fmt.Sprintf("a map epoch up to %d", v.MapEpoch), n.MapEpoch)
	if !n.is(nodeClosed) && !n.is(nodeDeleted) {
		r.expect(v.Head == n.ID, n.unit(), 1, fmt.Sprintf("a closed or deleted node beside head %d of volume %d", v.Head, v.ID), "an open one")
	}
	if n.is(nodeClosed) && !n.is(nodeDeleted) {
		r.rep.Totals.Snapshots++
		r.checkSnapshotName(n)
	}
}

func (r *run) checkSnapshotName(n *treeNode) {
	k := snapshotName{n.Volume, n.Name}
	if other, twice := r.tree.names[k]; twice {
		r.fail(n.unit(), 88, "a name of its own", fmt.Sprintf("%q, as node %d", n.Name, other))
	}
	r.tree.names[k] = n.ID
}

func (r *run) checkVolume(v *volumeRow) {
	u := unit64(tableVolume, v.ID)
	r.expect(v.ID < r.tree.counters.NextVolume, u, 8, fmt.Sprintf("an id below %d", r.tree.counters.NextVolume), v.ID)
	h := r.tree.nodes[v.Head]
	if !r.expect(h != nil, u, 40, "a node as its head", v.Head) {
		return
	}
	r.expect(h.Volume == v.ID && !h.is(nodeClosed) && !h.is(nodeDeleted), u, 40, "an open node of the volume as its head", fmt.Sprintf("node %d of volume %d, flags %02x", h.ID, h.Volume, h.Flags))
	r.checkBitmaps(v)
	r.expect(h.MapEpoch == v.MapEpoch, u, 4, fmt.Sprintf("map epoch %d, as the head's", h.MapEpoch), v.MapEpoch)
}

// place names a range of a node's volume.
func (r *run) place(n *treeNode, off, length uint64) Place {
	p := Place{Volume: n.Volume, Offset: off, Length: length}
	if v := r.tree.volumes[n.Volume]; v != nil {
		p.Name = v.Name
	}
	if n.is(nodeClosed) && !n.is(nodeDeleted) {
		p.Snapshot = n.Name
	}
	return p
}
