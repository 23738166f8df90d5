package extentmap

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Cursor is a position in a walk, to go on after a stop or a restart. Zero is the start. It may be stored: it stays valid as long as what lies after it does.
type Cursor uint64

const cursorLevelBits = 3

// cursorAfter is the position behind all of a subtree. Children end before or with their parent and have a lower level, so positions grow along a walk.
func cursorAfter(s Subtree) Cursor {
	return Cursor((s.Region+s.Span())<<cursorLevelBits | uint64(s.Level))
}

// CursorAt returns the position before the page that holds the byte at off.
func CursorAt(off uint64) Cursor {
	return Cursor(regionOf(off)<<cursorLevelBits | (1<<cursorLevelBits - 1))
}

// Visitor takes the steps of a walk. Each function may be nil, and stops the walk by returning false; its own step then counts as done.
type Visitor struct {
	// Page is called with each page, in order. A page may hold extents that are older than it is.
	Page func(p Page) bool
	// Recent says that extents born at or before the walk's least birth are not wanted: pages lack the parts that hold nothing else, which are not read.
	Recent bool
	// Node is called with each node after all that is under it, so what is visited may be freed at once and the walk still be taken up again later.
	Node func(s Subtree) bool
	// Older is called in place of descending, with each subtree that was born at or before the walk's least birth.
	Older func(s Subtree) bool
}

// Walk visits the pages and nodes under s that were born after minBirth, beginning behind from. Older subtrees are skipped unread. It returns the position behind the
// last step, also when it fails, and whether the walk is complete. It holds one node for each level and does not fill the cache.
func (m *Map) Walk(ctx context.Context, s Subtree, minBirth block.Epoch, from Cursor, v Visitor) (next Cursor, done bool, err error) {
	w := walk{m: m, ctx: ctx, minBirth: minBirth, at: from, v: v}
	if s.ID == 0 {
		return from, true, nil
	}
	done, err = w.subtree(s)
	return w.at, done, err
}

type walk struct {
	m        *Map
	ctx      context.Context // lives as long as the walk
	minBirth block.Epoch
	at       Cursor
	v        Visitor
}

// subtree reports whether the walk is to go on.
func (w *walk) subtree(s Subtree) (more bool, err error) {
	end := cursorAfter(s)
	if end <= w.at {
		return true, nil
	}
	switch {
	case s.Birth <= w.minBirth:
		more = w.v.Older == nil || w.v.Older(s)
	case s.Level == 0:
		more, err = w.page(s)
	default:
		if more, err = w.children(s); !more {
			return false, err
		}
		more = w.v.Node == nil || w.v.Node(s)
	}
	if err != nil {
		return false, err
	}
	w.at = end
	return more, nil
}

func (w *walk) page(s Subtree) (more bool, err error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	p, d, err := w.m.pageRow(s, false)
	if err == nil && d.data != nil {
		p, err = w.m.assemble(s, d, func(p Part) bool { return w.v.Recent && p.Birth <= w.minBirth }, false)
	}
	if err != nil {
		return false, err
	}
	return w.v.Page == nil || w.v.Page(p), nil
}

func (w *walk) children(s Subtree) (more bool, err error) {
	if err := w.ctx.Err(); err != nil {
		return false, err
	}
	n, err := w.m.node(s, false)
	if err != nil {
		return false, err
	}
	for i := n.next(0); i < Fanout; i = n.next(i + 1) {
		if more, err := w.subtree(childAt(s.Level, s.Region, i, n.child(i))); err != nil || !more {
			return false, err
		}
	}
	return true, nil
}
