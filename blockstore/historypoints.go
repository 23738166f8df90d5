package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// maxBarriers bounds the flushes of a volume that are kept until they are written down; beyond, the oldest are forgotten. They are points to name, not data.
const maxBarriers = 16 << 10

// barrier is a flush of a volume.
type barrier struct {
	seq uint64
	at  int64 // ns since the epoch
}

// barriers gathers the flushes of one volume.
type barriers struct {
	mu  sync.Mutex
	all []barrier
}

// note adds a flush that made everything up to seq durable, unless nothing was written since the last one.
func (b *barriers) note(seq uint64, at int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := len(b.all)
	if seq == 0 || n > 0 && b.all[n-1].seq >= seq {
		return
	}
	if n >= maxBarriers {
		b.all = slices.Delete(b.all, 0, n/2)
	}
	b.all = append(b.all, barrier{seq, at})
}

// take removes and returns those up to seq. One stays behind, to compare the next with.
func (b *barriers) take(seq uint64) (got []barrier) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, _ := slices.BinarySearchFunc(b.all, seq+1, func(x barrier, seq uint64) int { return cmp.Compare(x.seq, seq) })
	if n == 0 {
		return nil
	}
	got = slices.Clone(b.all[:n])
	b.all = slices.Delete(b.all, 0, n)
	return got
}

// noteFlush notes a flush of a volume that has history. last is what it made durable: of the volume's records that were there when it began, the last.
func (v *Volume) noteFlush(last uint64) {
	if vh := v.history.Load(); vh != nil && last > 0 {
		vh.barriers.note(last, v.s.opts.Now().UnixNano())
	}
}

// lastWritten is the volume's last record, 0 without history.
func (v *Volume) lastWritten() uint64 {
	if vh := v.history.Load(); vh != nil {
		return vh.last.Load()
	}
	return 0
}

// wrote tells history of records that are in the log.
func (v *Volume) wrote(seq uint64, bytes int64) {
	vh := v.history.Load()
	if vh == nil {
		return
	}
	if now := vh.written.Add(max(1, bytes)); now >= vh.dueAt.Load() && now-bytes < vh.dueAt.Load() {
		v.s.historian.kick()
	}
	for {
		old := vh.last.Load()
		if old >= seq || vh.last.CompareAndSwap(old, seq) {
			return
		}
	}
}

// HistoryInfo describes the history of a volume.
type HistoryInfo struct {
	Policy HistoryPolicy // BudgetBytes is what holds
	// FirstSeq and First are the oldest moment that can be had; zero while there is none.
	FirstSeq uint64
	First    time.Time
	LastSeq  uint64 // of the store's log: the newest moment
	Bytes    int64  // on disk
	Roots    int
	Gaps     uint64 // since the store was opened
	LastGap  string // why; empty: none
	Stopped  bool   // nothing is kept at the moment
	// WholeSeq and Whole are the end of what was thinned: of what lies before, points can be had (HistoryPoints), and every write behind it; a time between it and the next write may be that of an earlier point. They are those of First where nothing was thinned.
	WholeSeq uint64
	Whole    time.Time
}

// History describes the history of a volume; ErrNotFound if it has none.
func (s *Store) History(volume string) (HistoryInfo, error) {
	vh, err := s.historyOf(volume)
	if err != nil {
		return HistoryInfo{}, err
	}
	h := s.historian
	h.mu.Lock()
	i := HistoryInfo{Policy: vh.policy, Gaps: vh.gaps, LastGap: vh.why, Stopped: vh.suspended}
	since := vh.since
	h.mu.Unlock()
	i.Policy.BudgetBytes, i.Bytes = uint64(h.budgetOf(vh)), vh.stream.Bytes()
	i.LastSeq, _ = s.log.Last()
	for _, n := range h.rootsOf(vh.v) {
		if n.closed < since {
			continue
		}
		if i.Roots++; i.Roots == 1 {
			i.FirstSeq, i.First = n.closed, time.Unix(0, n.created).UTC()
		}
	}
	if i.FirstSeq > 0 {
		i.WholeSeq, i.Whole = i.FirstSeq, i.First
		if seq, at := vh.stream.WholeFrom(); seq > i.FirstSeq {
			i.WholeSeq, i.Whole = seq, time.Unix(0, at).UTC()
		}
	}
	return i, nil
}

// HistoryPolicyOf returns what was set; the zero value where there is none.
func (s *Store) HistoryPolicyOf(volume string) HistoryPolicy {
	vh, err := s.historyOf(volume)
	if err != nil {
		return HistoryPolicy{}
	}
	s.historian.mu.Lock()
	defer s.historian.mu.Unlock()
	return vh.policy
}

// historyOf returns the history of a volume.
func (s *Store) historyOf(volume string) (*volumeHistory, error) {
	v, err := s.lookupVolume(volume)
	if err != nil {
		return nil, err
	}
	vh := v.history.Load()
	if vh == nil {
		return nil, fmt.Errorf("volume %q keeps no history; set a window for it: %w", volume, block.ErrNotFound)
	}
	return vh, nil
}

// Point is a moment of a volume that has a name of its own.
type Point struct {
	Seq   uint64
	At    time.Time
	Kind  string // "flush", "snapshot", "mark", "resize", "rollback", or "write" of one that thinning left
	Label string // of a snapshot or a mark
}

// PointQuery chooses points.
type PointQuery struct {
	After    uint64 // only those with a higher sequence number
	Limit    int    // at most so many, 1 to MaxPoints
	Labelled bool   // without flushes
}

// MaxPoints bounds a page of points.
const MaxPoints = 1000

// HistoryPoints lists the moments of a volume that can be had and have a name of their own, oldest first, a page at a time. Every other write behind HistoryInfo.WholeSeq is a moment, too; before it these are all, with the roots.
func (s *Store) HistoryPoints(ctx context.Context, volume string, q PointQuery) (points []Point, err error) {
	if q.Limit < 1 || q.Limit > MaxPoints {
		return nil, fmt.Errorf("points of volume %q: %d at once, want 1 to %d: %w", volume, q.Limit, MaxPoints, block.ErrInvalid)
	}
	vh, err := s.historyOf(volume)
	if err != nil {
		return nil, err
	}
	_, release, err := s.historian.catchUp(ctx, vh)
	if err != nil {
		return nil, fmt.Errorf("points of volume %q: %w", volume, err)
	}
	defer release()
	info, err := s.History(volume)
	if err != nil || info.FirstSeq == 0 {
		return nil, err
	}
	err = vh.stream.Each(max(q.After+1, info.FirstSeq+1), ^uint64(0), func(r *history.Record) error {
		kind := pointKind(r.Kind)
		if kind == "" || r.Thinned && !r.Kind.Point() || q.Labelled && (r.Kind == history.Barrier || r.Kind == history.Kept) {
			return nil
		}
		if len(points) >= q.Limit && points[len(points)-1].Seq != r.Seq { // those of one number are on one page, or the next could not begin behind them
			return errEnough
		}
		points = append(points, Point{Seq: r.Seq, At: time.Unix(0, r.Time).UTC(), Kind: kind, Label: r.Label})
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return points, err
}

var errEnough = errors.New("enough")

func pointKind(k history.Kind) string {
	switch k {
	case history.Barrier:
		return "flush"
	case history.Kept:
		return "write"
	case history.Snapshot:
		return "snapshot"
	case history.Mark:
		return "mark"
	case history.Resize:
		return "resize"
	case history.Rollback:
		return "rollback"
	}
	return ""
}

// MarkHistory names the present moment of a volume, durably.
func (s *Store) MarkHistory(ctx context.Context, volume, label string) (Point, error) {
	fail := func(err error) (Point, error) {
		return Point{}, fmt.Errorf("mark volume %q: %w", volume, err)
	}
	if label == "" {
		return fail(fmt.Errorf("an empty label: %w", block.ErrInvalid))
	}
	vh, err := s.historyOf(volume)
	if err != nil {
		return Point{}, err
	}
	h := s.historian
	seq, release, err := h.catchUp(ctx, vh)
	if err != nil {
		return fail(err)
	}
	defer release()
	h.work.Lock()
	defer h.work.Unlock()
	if vh.suspended {
		return fail(fmt.Errorf("its history has stopped: %s: %w", vh.why, block.ErrNoSpace))
	}
	seq = max(seq, vh.stream.LastSeq())
	p := Point{Seq: seq, At: s.opts.Now().UTC(), Kind: "mark", Label: label}
	if err := vh.stream.Append(&history.Record{Kind: history.Mark, Seq: seq, Time: p.At.UnixNano(), Label: label}); err != nil {
		return fail(err)
	}
	if err := vh.stream.Sync(); err != nil {
		h.gap(vh, err)
		return fail(err)
	}
	return p, nil
}
