package blockstore

import (
	"strings"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// nodeID is the sequence number of the log record that made the node. It is also the birth of all that is destaged into it, so along every path from the oldest ancestor
// ids and births grow together.
type nodeID uint64

// nodeFlags are part of the disk format.
type nodeFlags uint8

const (
	nodeClosed   nodeFlags = 1 << 0 // a snapshot: takes no more writes
	nodeStarted  nodeFlags = 1 << 1 // has a root of its own
	nodeResolved nodeFlags = 1 << 2 // closed, and nothing of it is left in the log
	nodeDeleted  nodeFlags = 1 << 3 // invisible; purged when at most one child is left
	nodePurging  nodeFlags = 1 << 4 // its deadlists are being worked off

	// Of a store with the feature "snapshots".
	nodeProtected nodeFlags = 1 << 5 // a snapshot that may not be deleted
	nodeAutomatic nodeFlags = 1 << 6 // a snapshot that a schedule made, and nobody renamed since
)

// node is one state of a volume: what is still in the log (layer) over a map (root), over its parent where neither has an answer. A volume's head and each of its
// snapshots is a node; a clone's first node has the snapshot it came from as its parent, so all volumes of a store form a forest.
type node struct {
	id       nodeID
	volume   *Volume
	mapEpoch uint32
	layer    *overlay.Layer

	// parent is the state this one began as; nil for a volume that began empty.
	parent atomic.Pointer[node]
	// root is the node's own map. It is nil until the first destage into the node, which happens only after the parent is resolved; until then the parent's counts.
	root atomic.Pointer[extentmap.Root]

	// Guarded by Store.tree.
	flags    nodeFlags
	name     string // of a snapshot
	size     uint64 // bytes, of a snapshot
	closed   uint64 // seq of the barrier
	created  int64  // ns since the epoch, of a snapshot
	children int
	users    int    // open devices of a snapshot
	bound    nodeID // elements born after it are not reachable from outside this node and its children
	mapped   uint64 // bytes of extents in the root, zero extents not counted
}

// effectiveRoot is the map below the node's layers. It must be read after the layers were searched.
func (n *node) effectiveRoot() extentmap.Root {
	for ; n != nil; n = n.parent.Load() {
		if r := n.root.Load(); r != nil {
			return *r
		}
	}
	return extentmap.Root{}
}

// readyLocked reports whether the node may be destaged: all that lies below it is in maps. Store.tree is held.
func (n *node) readyLocked() bool {
	p := n.parent.Load()
	return p == nil || n.flags&nodeStarted != 0 || p.flags&nodeResolved != 0
}

// abandonedLocked reports whether nothing needs the node's layer any more: it is deleted and no other node lies over it. Store.tree is held.
func (n *node) abandonedLocked() bool { return n.flags&nodeDeleted != 0 && n.children == 0 }

// removed reports whether a node is gone or about to go with all that it has.
func (s *Store) removed(n *node) bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return n.abandonedLocked() || s.nodes[n.id] != n
}

// visibleLocked reports whether the node is a snapshot that a user may name. Store.tree is held.
func (n *node) visibleLocked() bool {
	return n.flags&nodeClosed != 0 && n.flags&nodeDeleted == 0 && n.name != "" && !strings.HasPrefix(n.name, rootPrefix)
}

func (n *node) rowLocked() *nodeRow {
	r := &nodeRow{ID: n.id, Volume: n.volume.id, Flags: n.flags, MapEpoch: n.mapEpoch, Size: n.size, Closed: n.closed, Created: n.created, Bound: n.bound, Mapped: n.mapped, Name: n.name}
	if p := n.parent.Load(); p != nil {
		r.Parent = p.id
	}
	if root := n.root.Load(); root != nil {
		r.Root = *root
	}
	return r
}

func (n *node) birth() block.Epoch { return block.Epoch(n.id) }

// mappedLocked is how many bytes the node's map holds. Store.tree is held.
func (n *node) mappedLocked() uint64 {
	for ; n != nil; n = n.parent.Load() {
		if n.flags&nodeStarted != 0 {
			return n.mapped
		}
	}
	return 0
}
