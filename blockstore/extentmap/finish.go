package extentmap

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Finish writes the touched pages and nodes into the batch and returns the new root, which is the old one if nothing changed. The Update must not be used after it.
// New pages and nodes are put in the cache at once: their ids are not known to any reader before the new root is.
func (u *Update) Finish() (Root, error) {
	if u.err != nil {
		return Root{}, u.err
	}
	r, err := u.finish(&u.root, u.level)
	u.err = fmt.Errorf("map update is finished: %w", block.ErrClosed)
	if err != nil || r.id == 0 {
		return Root{}, err
	}
	return Root{ID: r.id, Level: u.level, Birth: r.birth}, nil
}

// finish writes what is dirty under a slot, children first.
func (u *Update) finish(s *slot, level uint8) (ref, error) {
	switch {
	case level == 0 && s.page != nil:
		return u.finishPage(s.page)
	case s.node != nil:
		return u.finishNode(s.node)
	}
	return s.ref, nil
}

func (u *Update) finishNode(n *openNode) (ref, error) {
	if !n.dirty {
		return n.base, nil
	}
	children := false
	for i := range n.child {
		r, err := u.finish(&n.child[i], n.level-1)
		if err != nil {
			return ref{}, err
		}
		n.child[i] = slot{ref: r}
		children = children || r.id != 0
	}
	if !children {
		return ref{}, nil
	}
	r := ref{id: u.alloc(), birth: u.birth}
	s := Subtree{ID: r.id, Level: n.level, Region: n.region, Birth: r.birth}
	return r, u.write(r.id, NodeKey(r.id), EncodeNode(s, func(i int) (uint64, block.Epoch) {
		return n.child[i].ref.id, n.child[i].ref.birth
	}))
}

func (u *Update) write(id uint64, key, data []byte) error {
	if err := u.w.Set(key, data, nil); err != nil {
		return fmt.Errorf("write page or node %d: %w", id, err)
	}
	u.m.cache.add(id, data)
	return nil
}
