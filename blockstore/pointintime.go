package blockstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// Moment says which state of a volume is meant: after the record Seq, or at the time At if Seq is 0, or as it was at the mark or snapshot Label, the newest of that name.
type Moment struct {
	Seq   uint64
	At    time.Time
	Label string
}

// catchUp brings everything that was written before the call into a volume's history, durably, and pins it until release.
func (h *historian) catchUp(ctx context.Context, vh *volumeHistory) (seq uint64, release func(), err error) {
	if err := h.s.log.Sync(ctx); err != nil {
		return 0, nil, err
	}
	seq, _ = h.s.log.Durable()
	h.work.Lock()
	defer h.work.Unlock()
	if err := h.harvest(ctx, seq, true); err != nil {
		return 0, nil, err
	}
	return seq, vh.stream.Pin(0, ^uint64(0)), nil
}

// point is what a device of a moment holds on to.
type point struct {
	root    *node
	layer   *overlay.Layer
	release func()
	seq     uint64
	at      time.Time
	thinned bool // what lies between it and what was asked for was thinned
}

// OpenPoint opens a moment of a volume's history, to read it. It reads indexes and no payload; while the device is open, nothing that it needs goes. ErrNotFound, with the reason, where the moment cannot be had.
func (s *Store) OpenPoint(ctx context.Context, volume string, m Moment) (*Device, error) {
	vh, err := s.historyOf(volume)
	if err != nil {
		return nil, fmt.Errorf("open a moment: %w", err)
	}
	d, err := s.historian.openPoint(ctx, vh, m)
	if err != nil {
		return nil, fmt.Errorf("open a moment of volume %q: %w", volume, err)
	}
	return d, nil
}

func (h *historian) openPoint(ctx context.Context, vh *volumeHistory, m Moment) (_ *Device, err error) {
	seq, release, err := h.catchUp(ctx, vh)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			release()
		}
	}()
	if m.Label != "" {
		if m.Seq, err = h.labelled(vh, m.Label); err != nil {
			return nil, err
		}
	}
	switch {
	case m.Seq > seq:
		return nil, fmt.Errorf("record %d is not written yet, the last one is %d: %w", m.Seq, seq, block.ErrNotFound)
	case m.Seq == 0 && m.At.After(h.s.opts.Now()):
		return nil, fmt.Errorf("%s is in the future: %w", m.At.Format(time.RFC3339Nano), block.ErrInvalid)
	}
	root, err := h.takeRoot(vh, m)
	if err != nil {
		return nil, err
	}
	h.s.at(afterTakeRoot)
	p := &point{root: root, seq: root.closed, at: time.Unix(0, root.created)}
	n, err := h.build(vh, p, &m)
	if err != nil {
		p.drop(vh.v)
		return nil, err
	}
	p.release = vh.stream.Pin(root.closed+1, p.seq) // what it does not need may go
	release()
	return &Device{v: vh.v, n: n, point: p}, nil
}

// labelled finds the newest moment of a name.
func (h *historian) labelled(vh *volumeHistory, label string) (seq uint64, err error) {
	err = vh.stream.Each(vh.sinceNow(h)+1, ^uint64(0), func(r *history.Record) error {
		if r.Label == label {
			seq = r.Seq
		}
		return nil
	})
	if err == nil && seq == 0 {
		err = fmt.Errorf("no mark or snapshot %q in its history: %w", label, block.ErrNotFound)
	}
	return seq, err
}

func (vh *volumeHistory) sinceNow(h *historian) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return vh.since
}

// takeRoot finds the newest root at or before a moment, and keeps it and the volume from going.
func (h *historian) takeRoot(vh *volumeHistory, m Moment) (*node, error) {
	since := vh.sinceNow(h)
	h.s.tree.Lock()
	defer h.s.tree.Unlock()
	var root, first *node
	for _, n := range h.rootsLocked(vh.v) {
		if n.closed < since {
			continue
		}
		if first == nil {
			first = n
		}
		if m.Seq != 0 && n.closed <= m.Seq || m.Seq == 0 && n.created <= m.At.UnixNano() {
			root = n
		}
	}
	switch {
	case vh.v.gone.Load():
		return nil, fmt.Errorf("it was deleted: %w", block.ErrNotFound)
	case first == nil:
		return nil, fmt.Errorf("its history has not begun: %w", block.ErrNotFound)
	case root == nil:
		return nil, fmt.Errorf("its history begins with record %d at %s: %w", first.closed, time.Unix(0, first.created).UTC().Format(time.RFC3339Nano), block.ErrNotFound)
	}
	root.users++
	vh.v.users++ // from here on: what is built takes a while, and deleting the volume would take the root
	return root, nil
}

// resolve finds the point that is meant where history was thinned: the newest that is left at or before the moment. Elsewhere it changes nothing.
func (h *historian) resolve(vh *volumeHistory, p *point, m *Moment) error {
	last := ^uint64(0)
	if m.Seq != 0 {
		last = m.Seq
	}
	if whole, _ := vh.stream.WholeFrom(); whole <= p.root.closed {
		return nil
	}
	seq, at := p.root.closed, p.root.created
	err := vh.stream.Each(p.root.closed+1, last, func(r *history.Record) error {
		switch {
		case m.Seq == 0 && r.Time > m.At.UnixNano() && r.Kind.Point(): // of another clock than the log's
		case m.Seq == 0 && r.Time > m.At.UnixNano(), r.Thinned && r.Kind == history.Rollback:
			return errEnough
		case !r.Thinned || r.Kind.Point():
			seq, at = r.Seq, r.Time
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) {
		return err
	}
	if seq == m.Seq || !vh.stream.ThinnedAt(seq+1) {
		return nil
	}
	p.thinned = true
	*m = Moment{Seq: seq}
	p.at = time.Unix(0, at)
	return nil
}

// build makes the state that lies over the root: a layer whose slots point into history.
func (h *historian) build(vh *volumeHistory, p *point, m *Moment) (*node, error) {
	if err := h.resolve(vh, p, m); err != nil {
		return nil, err
	}
	p.layer = overlay.NewLayer(h.budget)
	n := &node{volume: vh.v, mapEpoch: p.root.mapEpoch, layer: p.layer, size: p.root.size, flags: nodeClosed}
	n.parent.Store(p.root)
	last, limit := uint64(^uint64(0)), h.momentsMost()
	if m.Seq != 0 {
		last = m.Seq
	}
	err := vh.stream.Each(p.root.closed+1, last, func(r *history.Record) error {
		if m.Seq == 0 && r.Time > m.At.UnixNano() {
			if r.Kind.Point() { // of another clock than the log's
				return nil
			}
			return errEnough
		}
		if h.budget.Used() > limit {
			return fmt.Errorf("the moments that are open take more than %d B of memory; detach others: %w", limit, block.ErrNoSpace)
		}
		if p.seq = max(p.seq, r.Seq); !p.thinned {
			p.at = time.Unix(0, r.Time)
		}
		return n.replay(r)
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if m.Seq != 0 {
		p.seq = m.Seq
	}
	n.id, n.closed = nodeID(p.seq), p.seq
	p.at = p.at.UTC()
	return n, err
}

// momentsMost bounds what the layers of all moments that are open take, in bytes.
func (h *historian) momentsMost() int64 { return max(32<<20, h.s.plan.overlay) }

// replay brings one record into the layer of a moment.
func (n *node) replay(r *history.Record) error {
	first, count := r.Off/block.Size, r.Len/block.Size
	switch r.Kind {
	case history.Write, history.Trim, history.Zero, history.Resize:
		if r.MapEpoch != n.mapEpoch {
			return fmt.Errorf("record %d was written after a rollback that no root follows: %w", r.Seq, block.ErrNotFound)
		}
	}
	switch r.Kind {
	case history.Write:
		n.layer.PublishWrite(first, r.Pos, r.Sums)
	case history.Trim, history.Zero:
		n.layer.PublishZero(first, count, r.Pos)
	case history.Resize:
		n.size = r.Size
		n.layer.PublishZero(first, count, r.Pos)
	case history.Rollback:
		return fmt.Errorf("the volume was rolled back at record %d, and no root follows: %w", r.Seq, block.ErrNotFound)
	}
	return nil
}

// drop lets go what a moment of the volume held.
func (p *point) drop(v *Volume) {
	if p.layer != nil {
		p.layer.Release()
	}
	v.s.tree.Lock()
	p.root.users--
	v.users--
	v.s.tree.Unlock()
	if p.release != nil {
		p.release()
	}
}

// Thinned reports whether the device is of an earlier moment than the one that was asked for, because history was thinned there: it is the newest point that is left.
func (d *Device) Thinned() bool { return d.point != nil && d.point.thinned }

// Moment returns which moment the device is of; ok is false for a volume or a snapshot.
func (d *Device) Moment() (seq uint64, at time.Time, ok bool) {
	if d.point == nil {
		return 0, time.Time{}, false
	}
	return d.point.seq, d.point.at, true
}
