package blockstore

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// recuts are the regions that lie in many pieces: small overwrites went down one by one while the log was filling up. A piece holds all of the chunk it is a part of, so what was
// overwritten there is held for nothing, and each read meets many frames. When such a region has cooled, and destage has nothing else to do, it is read, cut anew and mapped
// as it would have been (recutOne). They are found as they come about, and by audits, which read all maps, so a restart may forget them.
type recuts struct {
	mu     sync.Mutex
	due    map[recutRegion]recutDue
	busy   int      // regions that were taken and are not done
	budget gcBudget // of the destager
}

type recutRegion struct {
	n      *node
	region uint64
}

// recutDue says when a region was found, and whether it was looked for: then fewer pieces are enough, and it is cut anew if that stores less than it frees.
type recutDue struct {
	at   time.Time
	deep bool
}

// recutsMost bounds the regions that are remembered; further ones are found again.
const recutsMost = 4096

// recutOwn is which part of a region's chunk extents, in percent, must be its state's own for it to be worth it: what a snapshot holds stays where it is, and would be there twice.
const recutOwn = 75

// piecesMost is how many extents a region may lie in, twice what its cut would make.
func piecesMost(cut cdc.Params) int { return 2 * block.RegionSize / int(max(cut.Avg, block.Size)) }

// note remembers a region that is, or will be, in pieces.
func (r *recuts) note(n *node, region uint64) { r.noteAs(n, region, false) }

// noteAs remembers a region, and reports whether there was room for it.
func (r *recuts) noteAs(n *node, region uint64, deep bool) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.due == nil {
		r.due = map[recutRegion]recutDue{}
	}
	if len(r.due) >= recutsMost {
		return false
	}
	r.due[recutRegion{n, region}] = recutDue{time.Now(), deep}
	return true
}

// len is how many regions are known to be in pieces, the one that is being cut anew included.
func (r *recuts) len() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.due) + r.busy
}

// take returns a region that was found before a moment and forgets it. The caller calls done.
func (r *recuts) take(before time.Time) (c recutRegion, deep, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, due := range r.due {
		if due.at.Before(before) {
			delete(r.due, c)
			r.busy++
			return c, due.deep, true
		}
	}
	return recutRegion{}, false, false
}

// done says that a region that was taken is cut anew, or will not be.
func (r *recuts) done() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.busy--
}

// recutIdle cuts a region anew that is in pieces and has cooled, and reports whether there was one. The destager calls it when it has nothing else to do.
func (d *destager) recutIdle(ctx context.Context) (bool, error) {
	s := d.s
	before := time.Now()
	if d.all.Load() == 0 {
		before = before.Add(-s.opts.DestageAfter)
	}
	if s.space.fill.Load() >= fillDestage || SpaceState(s.space.state.Load()) != SpaceOK || s.collector.paused() || s.recuts.budget.pause() > 0 {
		return false, nil
	}
	c, deep, ok := s.recuts.take(before)
	if !ok {
		return false, nil
	}
	defer s.recuts.done()
	if !s.recuttable(c.n) {
		return true, nil
	}
	return true, d.recutOne(ctx, c, deep)
}

// recuttable reports whether a state is the head of a volume, and all below it is in maps: the map of another one must not change, as others may stand on it, and that of a head
// begins as the map of what it stands on.
func (s *Store) recuttable(n *node) bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return s.nodes[n.id] == n && n.readyLocked() && n.flags&(nodeClosed|nodeDeleted|nodeResolved) == 0 && n.children == 0
}

// recutHead returns the state with an id if it is one that may be cut anew.
func (s *Store) recutHead(id nodeID) *node {
	s.tree.RLock()
	n := s.nodes[id]
	s.tree.RUnlock()
	if n == nil || !s.recuttable(n) {
		return nil
	}
	return n
}

// inPieces reports whether a page has twice as many extents as it should, most of them of its own state.
func inPieces(p extentmap.Page, bound block.Epoch, cut cdc.Params) bool {
	if p.Len() <= piecesMost(cut) {
		return false
	}
	own, chunks := 0, 0
	for i := range p.Len() {
		if x := p.Extent(i); x.Kind == extentmap.KindChunk {
			if chunks++; x.Birth > bound {
				own++
			}
		}
	}
	return own*100 >= chunks*recutOwn
}

// recutOne reads what a region has in the map, cuts it and puts that in its place: the same bytes, so nothing else needs to know. Only the destager changes what maps of heads
// say, and the joiner alone which of two equal chunks they name, so the bytes stay what it read; a region with something in the log is left to the destage of that.
func (d *destager) recutOne(ctx context.Context, c recutRegion, deep bool) error {
	s, w := d.s, d.works[0]
	root := c.n.effectiveRoot()
	page, err := s.maps.Region(root, c.region)
	if errors.Is(err, block.ErrNotFound) { // something was joined meanwhile
		s.awaitPublished()
		s.recuts.noteAs(c.n, c.region, deep)
		return nil
	}
	bound := block.Epoch(c.n.boundNow(s))
	if err != nil || !deep && !inPieces(page, bound, c.n.volume.cut) {
		return err
	}
	d.buffers.lend(w)
	w.n, w.pieces, w.chunks, w.data = c.n, w.pieces[:0], w.chunks[:0], 0
	c.n.layer.SnapshotRegion(c.region, ^uint64(0), &w.snap)
	if !w.snap.Empty() || w.snap.Void() {
		return nil
	}
	if err := w.loadWhole(s, c.region*block.RegionSize); err != nil {
		if errors.Is(err, block.ErrNotFound) {
			s.recuts.noteAs(c.n, c.region, deep)
			return nil
		}
		if errors.Is(err, block.ErrCorrupt) {
			return nil // it stays as it is; whoever reads it learns that
		}
		return err
	}
	w.hash()
	m := s.beginMeta()
	written := s.bytesOut.Load()
	e := (*mapEdit)(nil)
	if s.recuttable(c.n) {
		e = m.edit(c.n)
	}
	if e == nil {
		m.abort()
		return nil
	}
	if deep {
		if pays, err := recutPays(m, page, bound, w); !pays || err != nil {
			m.abort()
			return err
		}
	}
	if err = s.packer.region(m, e, w); err == nil {
		err = finishAll(m, map[*node]*mapEdit{c.n: e})
	}
	if err != nil {
		s.forgetPacked()
		m.abort()
		return err
	}
	if err := m.commit(); err != nil {
		return err
	}
	s.recuts.budget.book(block.RegionSize+int(s.bytesOut.Load()-written), 2*block.RegionSize/requestBytes)
	s.at(afterRecut)
	s.worker.kick()
	return ctx.Err()
}

// recutPays reports whether a cut of a region makes clearly fewer extents, and stores clearly less than what it frees: the chunks of it that nobody has yet, and the extents of its own state that it replaces.
func recutPays(m *metaBatch, page extentmap.Page, bound block.Epoch, w *regionWork) (bool, error) {
	own, fresh := 0, 0
	if len(w.chunks)*10 > page.Len()*9 {
		return false, nil
	}
	for i := range page.Len() {
		if x := page.Extent(i); x.Kind == extentmap.KindChunk && x.Birth > bound {
			own += int(x.Len)
		}
	}
	for i := range w.pieces {
		for j := range w.pieces[i].chunks {
			c := &w.pieces[i].chunks[j]
			if c.zero {
				continue
			}
			switch _, err := m.known([16]byte(c.hash[:16]), len(c.raw)); {
			case errors.Is(err, block.ErrNotFound), err == errNotLooked:
				fresh += len(c.raw)
			case err != nil:
				return false, err
			}
		}
	}
	return fresh < own*3/4, nil
}

// noteLoose remembers the regions of all heads that are loose, but for those that were tried, and returns how many.
func (s *Store) noteLoose(ctx context.Context, tried map[recutRegion]bool) (found int, err error) {
	s.tree.RLock()
	var heads []*node
	for _, n := range s.nodes {
		if n.flags&(nodeClosed|nodeDeleted|nodeResolved) == 0 && !n.abandonedLocked() {
			heads = append(heads, n)
		}
	}
	s.tree.RUnlock()
	for _, n := range heads {
		bound := block.Epoch(n.boundNow(s))
		for region := range (n.volume.size.Load() + block.RegionSize - 1) / block.RegionSize {
			if err := ctx.Err(); err != nil {
				return found, err
			}
			page, err := s.maps.Region(n.effectiveRoot(), region)
			if errors.Is(err, block.ErrNotFound) { // it is being replaced
				continue
			}
			if err != nil {
				return found, err
			}
			if c := (recutRegion{n, region}); !tried[c] && isLoose(page, bound, n.volume.cut) {
				if !s.recuts.noteAs(n, region, true) {
					return found, nil
				}
				tried[c] = true
				found++
			}
		}
	}
	return found, nil
}

// looseFrom is how many chunk extents a region must have to be looked at.
const looseFrom = 64

// isLoose reports whether a page has a quarter more chunk extents than the cut of that much data has on average, some of them of its own state.
func isLoose(p extentmap.Page, bound block.Epoch, cut cdc.Params) bool {
	own, chunks, bytes := false, 0, 0
	for i := range p.Len() {
		if x := p.Extent(i); x.Kind == extentmap.KindChunk {
			own = own || x.Birth > bound
			chunks, bytes = chunks+1, bytes+int(x.Len)
		}
	}
	return own && chunks >= looseFrom && chunks*int(max(cut.Avg, block.Size))*4 > bytes*5
}

// boundNow is the bound of a node.
func (n *node) boundNow(s *Store) nodeID {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return n.bound
}
