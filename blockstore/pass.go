package blockstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

const (
	// passTime is how long a pass begins new regions, at most: what else the destager does waits for its end.
	passTime = 250 * time.Millisecond
	// passGroups bounds the regions of a pass, in groups.
	passGroups = 4
)

// pass takes regions down, as an assembly line of three goroutines: one reads them from the log, cuts and hashes them, as far ahead as there are buffers; one decides which
// chunks are new, packs these and commits group by group, in order; one releases the files of the log that a group has emptied. So the cores have work while a device syncs.
type pass struct {
	d       *destager
	maxPos  journal.Pos // what lies behind it stays
	free    chan *regionWork
	loaded  chan *regionWork
	emptied chan struct{} // capacity 1: a group is in maps
	time    time.Duration // how long new regions are begun
	beside  *atomic.Bool  // or while this is set

	// The group that is being packed.
	m     *metaBatch // nil if there is none
	edits map[*node]*mapEdit
	snaps []dropLater
	bytes int64 // raw
}

// dropLater is a region whose slots go once its page is published.
type dropLater struct {
	n    *node
	snap overlay.RegionSnapshot
}

// pass destages the given regions, one at least, and as many of the others as it comes to in its time, or while something beside it goes on that its caller will wait for anyway.
func (d *destager) pass(ctx context.Context, regions []candidate, maxPos journal.Pos, beside *atomic.Bool) error {
	share := d.feedback.start(ctx)
	defer d.feedback.stop()
	p := &pass{d: d, maxPos: maxPos, time: time.Duration(share * float64(passTime)), beside: beside, free: make(chan *regionWork, len(d.works)), loaded: make(chan *regionWork), emptied: make(chan struct{}, 1)}
	for _, w := range d.works {
		d.buffers.lend(w)
		p.free <- w
	}
	loadCtx, stop := context.WithCancel(ctx)
	defer stop()
	var others sync.WaitGroup
	var loadErr, releaseErr error
	others.Go(func() {
		defer close(p.loaded)
		loadErr = p.load(loadCtx, regions)
	})
	others.Go(func() { releaseErr = p.release(ctx) })
	var err error
	for w := range p.loaded {
		if err == nil {
			if err = p.pack(w); err != nil {
				stop()
			}
		}
		p.free <- w
	}
	if err == nil {
		err = p.commit()
	}
	p.abort()
	close(p.emptied)
	others.Wait()
	if err != nil && errors.Is(loadErr, context.Canceled) {
		loadErr = nil
	}
	return errors.Join(err, loadErr, releaseErr)
}

// load reads, cuts and hashes regions, one after the other.
func (p *pass) load(ctx context.Context, regions []candidate) error {
	began := time.Now()
	for i, c := range regions {
		if i > 0 && time.Since(began) > p.time && (p.time < passTime || !p.beside.Load()) {
			return nil
		}
		var w *regionWork
		select {
		case w = <-p.free:
		case <-ctx.Done():
			return ctx.Err()
		}
		some, err := p.loadRegion(w, c)
		if err != nil || !some {
			p.free <- w
			if err != nil {
				return err
			}
			continue
		}
		select {
		case p.loaded <- w:
		case <-ctx.Done():
			p.free <- w
			return ctx.Err()
		}
	}
	return nil
}

// loadRegion fills w with a region, or reports that there is nothing to do for it.
func (p *pass) loadRegion(w *regionWork, c candidate) (bool, error) {
	s := p.d.s
	pin := s.log.Pin()
	defer pin.Release()
	w.n = c.n
	c.n.layer.SnapshotRegion(c.info.Region, uint64(p.maxPos), &w.snap)
	if w.snap.Empty() {
		return false, nil
	}
	err := w.load(s)
	if errors.Is(err, block.ErrNotFound) && s.removed(c.n) {
		return false, nil // the map went with its node
	}
	return err == nil, err
}

// pack puts a region into the group, and commits that if it is full.
func (p *pass) pack(w *regionWork) error {
	s := p.d.s
	if p.m == nil {
		p.m, p.edits = s.beginMeta(), make(map[*node]*mapEdit)
	}
	e, known := p.edits[w.n]
	if !known {
		e = p.m.edit(w.n)
		p.edits[w.n] = e
	}
	if e == nil {
		return nil
	}
	if err := s.packer.region(p.m, e, w); err != nil {
		return err
	}
	for i := range w.chunks {
		p.bytes += int64(len(w.chunks[i].raw))
	}
	p.snaps = append(p.snaps, dropLater{w.n, w.snap})
	w.snap = overlay.RegionSnapshot{}
	if p.bytes < s.plan.group() {
		return nil
	}
	return p.commit()
}

// commit makes the group durable, first the frames and then what refers to them, publishes it, and drops from the log's overlays what has not changed since.
func (p *pass) commit() error {
	if p.m == nil {
		return nil
	}
	if err := finishAll(p.m, p.edits); err != nil {
		return err
	}
	m := p.m
	p.m, p.edits, p.bytes = nil, nil, 0
	if err := m.commit(); err != nil {
		return err
	}
	p.d.s.at(afterPublishRoots)
	for i := range p.snaps {
		p.snaps[i].n.layer.DropRegion(&p.snaps[i].snap)
	}
	p.snaps = nil
	select {
	case p.emptied <- struct{}{}:
	default:
	}
	return nil
}

// abort forgets the group that is being packed, if there is one.
func (p *pass) abort() {
	if p.m != nil {
		p.d.s.forgetPacked()
		p.m.abort()
		p.m = nil
	}
}

// release lets the files of the log go that groups have emptied, until the pass ends.
func (p *pass) release(ctx context.Context) (err error) {
	for range p.emptied {
		if err == nil {
			err = p.d.s.releaseLog(ctx)
		}
	}
	return err
}

// finishAll writes what the edits changed, after making the frames they refer to durable.
func finishAll(m *metaBatch, edits map[*node]*mapEdit) error {
	if err := m.s.packer.sync(m); err != nil {
		return err
	}
	for _, e := range edits {
		if e == nil {
			continue
		}
		if err := e.finish(); err != nil {
			return err
		}
	}
	return nil
}
