package backup

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

const (
	// joinSpans is how far apart, in bytes, two changes may be that are read, and stored, as one.
	joinSpans = 4 << 10
	// crowdWindow is, in average chunks, how long the windows are that are cut anew when slices crowd in them, and crowded how many extents in one are too many for each average chunk.
	crowdWindow, crowded = 4, 3
	// crowdShare is which part of what is read because it changed may be read besides, for windows that are crowded, and remnantsShare the same for remnants.
	crowdShare, remnantsShare = 8, 16
	// remnantShare is which part of a chunk is too little to keep it for: what a change leaves less of is read and stored anew.
	remnantShare = 4
)

// RangesSource is a RangeSource of which many ranges can be asked for at once.
type RangesSource interface {
	RangeSource
	// ReadRanges fills p with the bytes of ranges, one after the other.
	ReadRanges(ctx context.Context, p []byte, ranges []block.Range) error
}

// readRanges fills p with the bytes of ranges of any source.
func readRanges(ctx context.Context, src RangeSource, p []byte, ranges []block.Range) error {
	if all, ok := src.(RangesSource); ok {
		return all.ReadRanges(ctx, p, ranges)
	}
	for _, r := range ranges {
		if err := src.ReadRange(ctx, p[:r.Len], r.Off); err != nil {
			return err
		}
		p = p[r.Len:]
	}
	return nil
}

// span is a part of a region, in bytes.
type span struct{ begin, end int }

// sliceRegion makes the new extents of a region in a repository that has slices: what changed is read and cut, and of old extents stays what did not change (docs/rfc/0035-slices.md).
type sliceRegion struct {
	*updater
	region *updatedRegion
	length int
	old    *page
}

func (u *sliceRegion) all(ctx context.Context) error {
	spans := u.changed()
	spans = joined(append(spans, u.crowded(spans)...))
	for more := u.remnants(spans); len(more) > 0; more = u.remnants(spans) { // what lies between two spans may be joined with them, and leave too little of another chunk
		spans = joined(append(spans, more...))
	}
	ranges := make([]block.Range, len(spans))
	total := 0
	for i, s := range spans {
		ranges[i] = block.Range{Off: u.region.n*RegionSize + uint64(s.begin), Len: uint64(s.end - s.begin)}
		total += s.end - s.begin
	}
	data := u.region.buffer[:total]
	if err := readRanges(ctx, u.src, data, ranges); err != nil {
		return fmt.Errorf("read %d B in %d ranges of the 16 MiB at %d: %w", total, len(ranges), u.region.n*RegionSize, err)
	}
	u.region.readBytes = uint64(total)
	u.pieces(spans, u.region.add, func(s span) {
		u.cut(data[:s.end-s.begin], s.begin)
		data = data[s.end-s.begin:]
	})
	return nil
}

// changed returns what must be read: what changed, and what is in chunks that are not to be relied on.
func (u *sliceRegion) changed() (spans []span) {
	for at := u.region.changed.next(0); at < u.length; {
		end := min(u.region.changed.end(at), u.length)
		spans = append(spans, span{at, end})
		at = u.region.changed.next(end)
	}
	for i := range u.old.extents {
		if e := &u.old.extents[i]; !e.isZero() && !u.w.Has(e.id) {
			spans = append(spans, span{int(u.old.starts[i]), int(u.old.starts[i] + e.length)})
		}
	}
	spans = joined(spans)
	for _, s := range spans {
		u.spareWindows.Add(int64(s.end-s.begin) / crowdShare)
		u.spareRemnants.Add(int64(s.end-s.begin) / remnantsShare)
	}
	return spans
}

// joined returns spans in order, those that overlap or are near each other as one.
func joined(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int { return cmp.Compare(a.begin, b.begin) })
	out := spans[:0]
	for _, s := range spans {
		if last := len(out) - 1; last >= 0 && s.begin <= out[last].end+joinSpans {
			out[last].end = max(out[last].end, s.end)
		} else {
			out = append(out, s)
		}
	}
	return out
}

// remnants returns what is left in the region of chunks of which spans leave too little. A prune keeps a chunk whole as long as a backup has a slice of it, so a few bytes would keep all of it for ever. What is read for that is less than a
// third of what has changed in the same chunk since it was stored, and at most what the share for it allows.
func (u *sliceRegion) remnants(spans []span) (found []span) {
	type rest struct {
		bytes int
		less  bool // than before
	}
	rests := make(map[block.Hash]rest)
	at := 0
	for i := range u.old.extents {
		e, begin := &u.old.extents[i], int(u.old.starts[i])
		end := begin + int(e.length)
		for at < len(spans) && spans[at].end <= begin {
			at++
		}
		if e.isZero() {
			continue
		}
		left := rests[e.id]
		left.bytes += end - begin
		for j := at; j < len(spans) && spans[j].begin < end; j++ {
			left.bytes -= min(end, spans[j].end) - max(begin, spans[j].begin)
			left.less = true
		}
		rests[e.id] = left
	}
	for i := range u.old.extents {
		e := &u.old.extents[i]
		if left := rests[e.id]; left.less && left.bytes > 0 && left.bytes*remnantShare < int(e.of) && take(&u.spareRemnants, int(e.length)) {
			found = append(found, span{int(u.old.starts[i]), int(u.old.starts[i] + e.length)})
		}
	}
	return found
}

// crowded returns windows with so many extents that reading them would be slow for ever, as far as the share that is for them goes.
func (u *sliceRegion) crowded(spans []span) (windows []span) {
	length := crowdWindow * int(u.cutter.Params().Avg)
	counts := make([]int, (u.length+length-1)/length)
	at := 0
	u.pieces(spans, func(e extent, _ []byte) {
		if !e.isZero() {
			counts[at/length]++
		}
		at += int(e.length)
	}, func(s span) {
		counts[at/length]++
		at = s.end
	})
	for i, n := range counts {
		if n >= crowded*crowdWindow && take(&u.spareWindows, length) {
			windows = append(windows, span{i * length, min((i+1)*length, u.length)})
		}
	}
	return windows
}

// take takes bytes from what is left of a share, if there are so many.
func take(share *atomic.Int64, bytes int) bool {
	for {
		left := share.Load()
		if left < int64(bytes) {
			return false
		}
		if share.CompareAndSwap(left, left-int64(bytes)) {
			return true
		}
	}
}

// pieces calls keep with what stays of old extents between spans, and read with each span, in order.
func (u *sliceRegion) pieces(spans []span, keep func(e extent, data []byte), read func(span)) {
	at, i := 0, 0
	keepTo := func(end int) {
		for at < end {
			e, begin := &u.old.extents[i], int(u.old.starts[i])
			until := min(end, begin+int(e.length))
			if until > at {
				keep(e.slice(at-begin, until-at), nil)
				at = until
			}
			if at == begin+int(e.length) {
				i++
			}
		}
	}
	for _, s := range spans {
		keepTo(s.begin)
		read(s)
		at = s.end
		for i < len(u.old.extents) && int(u.old.starts[i]+u.old.extents[i].length) <= at {
			i++
		}
	}
	keepTo(u.length)
}

// cut adds what was read at an offset of the region.
func (u *sliceRegion) cut(p []byte, at int) {
	for len(p) > 0 {
		n := u.cutter.Next(p, uint64(at), true)
		if piece := p[:n]; dedup.IsZero(piece) {
			u.region.add(zeroes(uint32(n)), nil)
		} else {
			u.region.add(wholeChunk(u.hasher.Sum(piece), uint32(n)), piece)
		}
		p, at = p[n:], at+n
	}
}
