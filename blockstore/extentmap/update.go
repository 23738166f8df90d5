package extentmap

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Writer takes rows. A *pebble.Batch fits; the options are ignored by it.
type Writer interface {
	Set(key, value []byte, o *pebble.WriteOptions) error
	Delete(key []byte, o *pebble.WriteOptions) error
}

// Sink hears what an Update inserts and drops, while it does. It applies the birth rule (docs/architecture.md, References): an Update deletes nothing by itself.
type Sink interface {
	// Born reports one more extent that refers to a chunk.
	Born(chunk block.ChunkID)
	// Killed reports that an extent of KindChunk is no longer part of the root. Its birth may be the Update's own.
	Killed(e Extent)
	// KilledPage and KilledNode report that a written page, part of a page, or node is no longer part of the root. What it listed is reported apart, or lives on in the
	// new one.
	KilledPage(id uint64, birth block.Epoch)
	KilledNode(id uint64, birth block.Epoch)
	// Subtree reports that a page or node was cut off with all that is under it, unread: none of it is reported in another way.
	Subtree(s Subtree)
}

// Update makes a new root out of an old one, in one batch. Pages and nodes that it touches stay in memory until Finish writes each of them once.
//
// An Update reads through its Map; if the root was made by the same, not yet committed batch, the Map's reader must be that batch, indexed. An error is final: the
// Update is of no use after it and the batch must be dropped. An Update is used by one goroutine.
type Update struct {
	m     *Map
	w     Writer
	birth block.Epoch
	alloc func() uint64
	sink  Sink

	root    slot
	level   uint8 // of root
	scratch entries
	shape   shape
	parted  bool
	err     error
}

// slot is a child of an open node: as it was written, or open for edits (at most one of node and page is set, and ref is then zero).
type slot struct {
	ref  ref
	node *openNode
	page *openPage
}

// Parted reports whether Finish has written a page in parts, which the first programs do not know.
func (u *Update) Parted() bool { return u.parted }

func (s *slot) empty() bool { return s.ref.id == 0 && s.node == nil && s.page == nil }

// openNode is a node in memory. A node that is not dirty is as base says, and so is all under it.
type openNode struct {
	base   ref
	dirty  bool
	level  uint8
	region uint64
	child  [Fanout]slot
}

// NewUpdate starts an update of root. All that it writes is born at birth, which must be above 0 and not below the root's own. alloc gives ids of pages and nodes; an id
// that it gave must never be given again, not even if the batch is dropped, because caches are keyed by it.
func NewUpdate(m *Map, w Writer, root Root, birth block.Epoch, alloc func() uint64, sink Sink) *Update {
	u := &Update{m: m, w: w, birth: birth, alloc: alloc, sink: sink, level: root.Level, shape: usualShape()}
	u.root.ref = ref{id: root.ID, birth: root.Birth}
	switch {
	case birth == 0 || root.Birth > birth:
		u.err = fmt.Errorf("update a map born at %d with births of %d: %w", root.Birth, birth, block.ErrInvalid)
	case root.Level > MaxLevel:
		u.err = fmt.Errorf("update a map of level %d: %w", root.Level, block.ErrInvalid)
	}
	return u
}

// Replace makes [off, off+n), which lies in one region, hold what with says, and holes where with says nothing. with must be in order, without overlaps, inside the
// range; births in it are ignored. Extents that straddle the range's ends are killed and their remnants inserted anew, each with a reference of its own.
func (u *Update) Replace(off, n uint64, with []Extent) error {
	if u.err == nil {
		u.err = u.replace(off, n, with)
	}
	return u.err
}

func (u *Update) replace(off, n uint64, with []Extent) error {
	region := regionOf(off)
	if n == 0 || off+n < off || regionOf(off+n-1) != region || region >= regionCount {
		return fmt.Errorf("replace %d+%d: not inside one region: %w", off, n, block.ErrInvalid)
	}
	if err := checkInserts(off, n, with); err != nil {
		return err
	}
	trail, page, err := u.open(region, len(with) > 0)
	if err != nil || page == nil {
		return err
	}
	lo := uint32(off - region<<regionBits)
	if changed, err := u.splice(page, lo, lo+uint32(n), with); err != nil || !changed {
		return err
	}
	if page.count > MaxExtents {
		return fmt.Errorf("region %d would have %d extents, at most %d: %w", region, page.count, MaxExtents, block.ErrInvalid)
	}
	for _, n := range trail {
		u.soil(n)
	}
	return nil
}

func checkInserts(off, n uint64, with []Extent) error {
	next := off
	for _, e := range with {
		if problem := e.problem(); problem != "" {
			return fmt.Errorf("insert extent %d+%d: %s: %w", e.Off, e.Len, problem, block.ErrInvalid)
		}
		if e.Off < next || e.End() > off+n {
			return fmt.Errorf("insert extent %d+%d: out of order or outside %d+%d: %w", e.Off, e.Len, off, n, block.ErrInvalid)
		}
		next = e.End()
	}
	return nil
}

// open descends to the page of a region and returns it with the nodes above. If create is unset, a hole is a nil page.
func (u *Update) open(region uint64, create bool) (trail []*openNode, page *openPage, err error) {
	if region >= span(u.level) {
		if !create {
			return nil, nil, nil
		}
		u.grow(region)
	}
	s := &u.root
	for level := u.level; ; level-- {
		if s.empty() && !create {
			return nil, nil, nil
		}
		if level == 0 {
			page, err = u.openPage(s, region)
			return trail, page, err
		}
		n, err := u.openNode(s, level, region&^(span(level)-1))
		if err != nil {
			return nil, nil, err
		}
		trail = append(trail, n)
		s = &n.child[childIndex(level, region)]
	}
}

// grow puts nodes above the root until it covers region.
func (u *Update) grow(region uint64) {
	level := levelFor(region)
	if u.root.empty() {
		u.level = level
		return
	}
	for u.level < level {
		u.level++
		n := &openNode{dirty: true, level: u.level}
		n.child[0] = u.root
		u.root = slot{node: n}
	}
}

func (u *Update) openNode(s *slot, level uint8, region uint64) (*openNode, error) {
	if s.node != nil {
		return s.node, nil
	}
	open := &openNode{base: s.ref, level: level, region: region}
	if s.ref.id != 0 {
		n, err := u.m.node(Subtree{ID: s.ref.id, Level: level, Region: region, Birth: s.ref.birth}, true)
		if err != nil {
			return nil, err
		}
		for i := n.next(0); i < Fanout; i = n.next(i + 1) {
			open.child[i].ref = n.child(i)
		}
	}
	*s = slot{node: open}
	return open, nil
}

// soil marks a node as changed. The first time, the node that was written is killed.
func (u *Update) soil(n *openNode) {
	if !n.dirty && n.base.id != 0 {
		u.sink.KilledNode(n.base.id, n.base.birth)
	}
	n.dirty = true
}
