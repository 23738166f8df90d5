package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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
	// relogGroup is about how many blocks of a head's regions are taken together and sorted by position, so that the log is read in the order in which it was written.
	relogGroup = 8192
)

// relogger moves old blocks of hot regions to the end of the log. It belongs to the destager's goroutine.
type relogger struct {
	s     *Store
	keep  hotSet
	moved atomic.Int64 // blocks since the store was opened

	snap overlay.RegionSnapshot
	old  []oldBlock
	buf  []byte
	recs []journal.Record
	data [][]byte
	runs []overlay.Run
	sums []uint32
	held [relogBatch]uint32 // sums of recs
}

// oldBlock is a block in the log's old end.
type oldBlock struct {
	block uint64
	pos   journal.Pos // 0: it cannot be read
	sum   uint32      // crc32c
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
	slices.SortStableFunc(stays, func(a, b candidate) int { return cmp.Compare(a.n.id, b.n.id) })
	for len(stays) > 0 && ctx.Err() == nil {
		n, cannot, did, err := r.moveGroup(stays, old, maxPos)
		for _, c := range stays[:n] {
			if slices.Contains(cannot, c.info.Region) {
				down = append(down, c)
			}
		}
		moved = moved || did
		if err != nil {
			return down, moved, fmt.Errorf("move hot blocks of volume %d: %w", stays[0].n.volume.id, err)
		}
		stays = stays[n:]
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

// moveGroup moves what the first regions have before a position, all of one head, in the order in which it lies in the log. It returns how many regions that were, and which of them cannot stay: those for which
// the log has no room now, that are not what they were taken for, or in which something cannot be read, with which destage knows what to do.
func (r *relogger) moveGroup(stays []candidate, before, maxPos journal.Pos) (n int, cannot []uint64, moved bool, err error) {
	pin := r.s.log.Pin()
	defer pin.Release()
	head := stays[0].n
	for r.old = r.old[:0]; n < len(stays) && stays[n].n == head && len(r.old) < relogGroup; n++ {
		if region := stays[n].info.Region; !r.gather(head, region, before, maxPos) {
			cannot = append(cannot, region)
		}
	}
	slices.SortFunc(r.old, func(a, b oldBlock) int { return cmp.Compare(a.pos, b.pos) })
	if r.buf == nil {
		r.buf = make([]byte, relogBatch*block.Size)
	}
	for rest := r.old; len(rest) > 0; {
		part := rest[:min(len(rest), relogBatch)]
		bad, err := r.read(part)
		if err != nil {
			return n, cannot, moved, err
		}
		cannot = append(cannot, bad...)
		ok, err := r.append(head, part)
		if err != nil {
			return n, cannot, moved, err
		}
		if !ok {
			for i := range rest {
				cannot = append(cannot, rest[i].block/block.BlocksPerRegion)
			}
			return n, cannot, moved, nil
		}
		moved, rest = true, rest[len(part):]
	}
	return n, cannot, moved, nil
}

// gather adds what a region has before a position to the blocks that are to be moved. It returns false, having added nothing, if there is more than data.
func (r *relogger) gather(n *node, region uint64, before, maxPos journal.Pos) bool {
	n.layer.SnapshotRegion(region, uint64(maxPos), &r.snap)
	if r.snap.Zeroed != 0 {
		return false
	}
	had := len(r.old)
	slots := r.snap.Slots[:0]
	for _, slot := range r.snap.Slots {
		if slot.Pos >= uint64(before) {
			continue
		}
		if slot.Kind != overlay.Data {
			r.old = r.old[:had]
			return false
		}
		slots = append(slots, slot)
		r.old = append(r.old, oldBlock{block: region*block.BlocksPerRegion + uint64(slot.Block), pos: journal.Pos(slot.Pos), sum: slot.Sum})
	}
	r.s.fetchPieces(slots)
	return true
}

// read fills buf with the bytes of a part. It returns the regions of blocks that are damaged; these have no position any more.
func (r *relogger) read(part []oldBlock) (bad []uint64, err error) {
	for i := range part {
		o := &part[i]
		switch err := r.s.log.ReadMapped(r.buf[i*block.Size:(i+1)*block.Size], o.pos, []uint32{o.sum}); {
		case errors.Is(err, block.ErrCorrupt):
			bad = append(bad, o.block/block.BlocksPerRegion)
			o.pos = 0
		case err != nil:
			return bad, err
		}
	}
	return bad, nil
}

// append logs a part, whose bytes are in buf, and publishes it. While it holds the volume's lock no write is under way, so what it repeats is what the volume holds. It returns false when the log has no room for it
// now, or the head is closed.
func (r *relogger) append(n *node, part []oldBlock) (bool, error) {
	v := n.volume
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone.Load() || v.head.Load() != n {
		return false, nil
	}
	r.recs, r.data = r.recs[:0], r.data[:0]
	for i := range part {
		o := &part[i]
		if o.pos == 0 {
			continue
		}
		r.runs, r.sums = n.layer.LookupInto(r.runs[:0], r.sums[:0], o.block, 1)
		if len(r.runs) != 1 || r.runs[0].Kind != overlay.Data || r.runs[0].Pos != uint64(o.pos) {
			continue // rewritten meanwhile
		}
		r.data = append(r.data, r.buf[i*block.Size:(i+1)*block.Size])
		k := len(r.recs)
		r.held[k] = o.sum // it was just read by it; computed anew, it would vouch for whatever memory has made of the bytes since
		r.recs = append(r.recs, journal.Record{Kind: journal.Write, Flags: flagMoved, Volume: v.id, MapEpoch: v.mapEpoch, Off: o.block * block.Size, Len: block.Size, Sums: r.held[k : k+1 : k+1], Summed: true})
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
