package extentmap

import (
	"context"
)

// NewPages calls visit, in order, for each page of a map that another one, its base, does not have at the same place, until visit returns an error, which it returns. What
// both have under one id is skipped unread; unless whole is set, visited pages lack the parts that the page of the base has, too. It looks at no birth, so what it finds does
// not depend on births being right. It does not fill the cache.
func (m *Map) NewPages(ctx context.Context, base, of Root, whole bool, visit func(p Page) error) error {
	n := newPages{diff: diff{m: m, ctx: ctx}, whole: whole, visitPage: visit}
	return n.subtrees(base.Subtree(), of.Subtree(), max(base.Level, of.Level))
}

type newPages struct {
	diff
	whole     bool
	visitPage func(p Page) error
}

// subtrees visits what of b is not in a. Both are children of a common level, or lower; see diff.subtrees.
func (n *newPages) subtrees(a, b Subtree, level uint8) error {
	if b.ID == 0 || a.ID == b.ID {
		return nil
	}
	if err := n.ctx.Err(); err != nil {
		return err
	}
	if level == 0 {
		if n.whole {
			a = Subtree{}
		}
		p, err := n.m.beyond(a, b)
		if err != nil {
			return err
		}
		return n.visitPage(p)
	}
	na, err := n.children(a, level)
	if err != nil {
		return err
	}
	nb, err := n.children(b, level)
	if err != nil {
		return err
	}
	for i := range Fanout {
		if err := n.subtrees(na.at(i), nb.at(i), level-1); err != nil {
			return err
		}
	}
	return nil
}
