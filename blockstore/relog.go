package blockstore

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// flagMoved marks a write record that repeats what the volume held already, so that older files of the log can be released. It changes nothing.
const flagMoved = 1 << 0

const (
	// The old end is one part in relogWindow of the log's files.
	relogWindow = 16
	// relogBatch is how many blocks are moved under one hold of the volume's lock, which takes some 50 µs.
	relogBatch = 64
)

// relogger moves old blocks of hot regions to the end of the log. It belongs to the destager's goroutine.
type relogger struct {
	s     *Store
	keep  hotSet
	moved atomic.Int64 // blocks since the store was opened

	snap overlay.RegionSnapshot
	old  []overlay.Slot
	buf  []byte
	recs []journal.Record
	data [][]byte
	runs []overlay.Run
	sums []uint32
	held [relogBatch]uint32 // sums of recs
}

func newRelogger(s *Store) relogger {
	return relogger{s: s, keep: newHotSet(s)}
}

// sort decides which of the candidates stay in the log and have blocks in its old end, and which go down. The others have time. limit is the position up to which data is
// due; old is where the old end ends.
func (r *relogger) sort(all []candidate, limit journal.Pos) (stays, down []candidate, old journal.Pos) {
	s := r.s
	now, end := time.Now(), s.log.NextPos()
	old = min(r.oldEnd(), limit)
	r.keep.goRound(end)
	everything := SpaceState(s.space.state.Load()) != SpaceOK || s.destager.all.Load() > 0
	for _, c := range all {
		v := goDown
		if !everything && c.n.volume.head.Load() == c.n {
			v = r.keep.judge(c, old, end, now)
		}
		switch v {
		case stay:
			stays = append(stays, c)
		case goDown:
			r.keep.gone(c)
			down = append(down, c)
		}
	}
	return stays, down, old
}

// keepHot moves what is old of regions that stay. It reports whether anything was moved, and returns those that cannot stay after all.
func (r *relogger) keepHot(ctx context.Context, stays []candidate, old, maxPos journal.Pos) (down []candidate, moved bool, err error) {
	for _, c := range stays {
		if ctx.Err() != nil {
			return down, moved, nil
		}
		switch ok, err := r.moveOld(c, old, maxPos); {
		case errors.Is(err, block.ErrCorrupt): // destage knows what to do with it
			down = append(down, c)
		case err != nil:
			return down, moved, fmt.Errorf("move hot blocks of region %d of volume %d: %w", c.info.Region, c.n.volume.id, err)
		case ok:
			moved = true
		default:
			down = append(down, c)
		}
	}
	return down, moved, nil
}

// oldEnd is the first position behind the old end of the log. Files that only wait for a checkpoint do not count: no region has anything in them, and there may be more of
// them than the old end is long.
func (r *relogger) oldEnd() journal.Pos {
	u := r.s.log.Usage()
	first := max(u.Oldest.File(), r.s.watermark().File())
	files := u.Files - int(first-u.Oldest.File())
	return journal.Pos(first+uint32(max(1, files/relogWindow))) << 32
}

// moveOld moves what a region has before a position. It returns false when that cannot be done now, or the region is not what it was taken for.
func (r *relogger) moveOld(c candidate, before, maxPos journal.Pos) (bool, error) {
	c.n.layer.SnapshotRegion(c.info.Region, uint64(maxPos), &r.snap)
	if r.snap.Zeroed != 0 {
		return false, nil
	}
	r.old = r.old[:0]
	for _, slot := range r.snap.Slots {
		if slot.Pos >= uint64(before) {
			continue
		}
		if slot.Kind != overlay.Data {
			return false, nil
		}
		r.old = append(r.old, slot)
	}
	pin := r.s.log.Pin()
	defer pin.Release()
	r.s.fetchPieces(r.old)
	return r.move(c.n)
}

// move logs the gathered blocks anew, as far as they are still what the region holds. It returns false when the log has no room for them now.
func (r *relogger) move(n *node) (bool, error) {
	pin := r.s.log.Pin()
	defer pin.Release()
	if r.buf == nil {
		r.buf = make([]byte, relogBatch*block.Size)
	}
	for rest := r.old; len(rest) > 0; {
		part := rest[:min(len(rest), relogBatch)]
		rest = rest[len(part):]
		for i, slot := range part {
			if err := r.s.log.ReadMapped(r.buf[i*block.Size:(i+1)*block.Size], journal.Pos(slot.Pos), []uint32{slot.Sum}); err != nil {
				return false, err
			}
		}
		if ok, err := r.append(n, part); !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// append logs a part, whose bytes are in buf, and publishes it. While it holds the volume's lock no write is under way, so what it repeats is what the volume holds.
func (r *relogger) append(n *node, part []overlay.Slot) (bool, error) {
	v := n.volume
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone.Load() || v.head.Load() != n {
		return false, nil
	}
	r.recs, r.data = r.recs[:0], r.data[:0]
	base := r.snap.Region * block.BlocksPerRegion
	for i, slot := range part {
		b := base + uint64(slot.Block)
		r.runs, r.sums = n.layer.LookupInto(r.runs[:0], r.sums[:0], b, 1)
		if len(r.runs) != 1 || r.runs[0].Kind != overlay.Data || r.runs[0].Pos != slot.Pos {
			continue // rewritten meanwhile
		}
		r.data = append(r.data, r.buf[i*block.Size:(i+1)*block.Size])
		k := len(r.recs)
		r.held[k] = slot.Sum // it was just read by it; computed anew, it would vouch for whatever memory has made of the bytes since
		r.recs = append(r.recs, journal.Record{Kind: journal.Write, Flags: flagMoved, Volume: v.id, MapEpoch: v.mapEpoch, Off: b * block.Size, Len: block.Size, Sums: r.held[k : k+1 : k+1], Summed: true})
	}
	if len(r.recs) == 0 {
		return true, nil
	}
	for i := range r.recs {
		r.recs[i].Payload = r.data[i : i+1]
	}
	if err := r.s.log.TryAppend(r.recs); err != nil {
		if errors.Is(err, block.ErrWouldBlock) || errors.Is(err, block.ErrNoSpace) {
			return false, nil
		}
		return false, err
	}
	v.s.at(afterAppend)
	for i := range r.recs {
		rec := &r.recs[i]
		n.layer.PublishMoved(rec.Off/block.Size, uint64(rec.Pos), rec.Sums)
		rec.Payload = nil
	}
	r.moved.Add(int64(len(r.recs)))
	return true, nil
}
