package blockstore

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// errHistoryRead is why history is not given up that somebody reads.
var errHistoryRead = fmt.Errorf("somebody reads it; detach that first: %w", block.ErrInUse)

// HistoryLoss is what another policy would give up of a volume's history.
type HistoryLoss struct {
	// FirstSeq and First are the oldest moment that there is; zero while there is none, and then nothing is lost.
	FirstSeq uint64
	First    time.Time
	// UntilSeq and Until are the moment with which history would begin; those of First where none goes. Where all go, Until is now, and no record has UntilSeq.
	UntilSeq uint64
	Until    time.Time
	// OverBudget says that more goes than is too old.
	OverBudget bool
	// Bytes are those of the files that would go with the moments before Until. What thinning gives back is not in it.
	Bytes int64
	// Points are the moments among them that have a name of their own (HistoryPoints), Labelled those of these that are marks or snapshots.
	Points, Labelled uint64
	// Whole is until when only points would be left where every write can be had now; zero: nowhere.
	Whole time.Time
	// Thinned are the points that would go behind Until, as others of their minute, or hour, stand for them.
	Thinned uint64
}

// HistoryLoss tells what SetHistory with a policy would give up of what there is, at once or soon, and changes nothing. It reads the indexes of the history. ErrNotFound if there is none; ErrInUse if that is why SetHistory would refuse.
func (s *Store) HistoryLoss(ctx context.Context, volume string, p HistoryPolicy) (l HistoryLoss, err error) {
	vh, err := s.historyOf(volume)
	if err != nil {
		return l, err
	}
	fail := func(err error) (HistoryLoss, error) {
		return HistoryLoss{}, fmt.Errorf("what history of volume %q would lose: %w", volume, err)
	}
	if err := p.Validate(); err != nil {
		return fail(err)
	}
	if p.None() && vh.stream.InUse() {
		return fail(errHistoryRead)
	}
	h := s.historian
	_, release, err := h.catchUp(ctx, vh)
	if err != nil {
		return fail(err)
	}
	defer release() // until then no file goes
	info, err := s.History(volume)
	if err != nil || info.FirstSeq == 0 {
		return l, err
	}
	now := s.opts.Now()
	l.FirstSeq, l.First, l.UntilSeq, l.Until = info.FirstSeq, info.First, info.FirstSeq, info.First
	if p.None() {
		l.UntilSeq, l.Until, l.Bytes = math.MaxUint64, now.UTC(), info.Bytes
	} else {
		h.cutLoss(vh, p, &l, now)
	}
	if whole := now.Add(-p.whole()).UTC(); p.Thins() && whole.After(info.Whole) && whole.After(l.Until) {
		l.Whole = whole
	}
	w := &lossWalk{HistoryLoss: &l, policy: p, now: now}
	err = vh.stream.Each(info.FirstSeq+1, math.MaxUint64, func(r *history.Record) error {
		w.record(r)
		return ctx.Err()
	})
	if err != nil {
		return fail(err)
	}
	return l, nil
}

// cutLoss finds with which root history would begin, as expire does, as if nobody read what is to go.
func (h *historian) cutLoss(vh *volumeHistory, p HistoryPolicy, l *HistoryLoss, now time.Time) {
	roots := slices.DeleteFunc(h.rootsOf(vh.v), func(n *node) bool { return n.closed < l.FirstSeq })
	used, budget := h.firstUsed(roots), h.budgetFor(p)
	oldest := min(oldestBefore(roots, now.Add(-p.Window)), used)
	for ; len(roots) > 0; oldest++ {
		if oldest < len(roots) {
			l.UntilSeq, l.Until = roots[oldest].closed, time.Unix(0, roots[oldest].created).UTC()
		}
		l.Bytes = vh.stream.Expirable(l.UntilSeq)
		if vh.stream.Bytes()-l.Bytes <= budget || oldest >= used {
			return
		}
		l.OverBudget = true
		if oldest+1 >= len(roots) { // with another root, all before it goes
			l.UntilSeq, l.Until = math.MaxUint64, now.UTC()
			l.Bytes = vh.stream.Expirable(l.UntilSeq)
			return
		}
	}
}

// lossWalk counts points that would go, over the records in order.
type lossWalk struct {
	*HistoryLoss
	policy HistoryPolicy
	now    time.Time

	width, stretch int64 // of the last point that may be thinned: the length of its stretch of time in ns, and its number
	flush, kept    bool  // what that stretch has so far
}

func (w *lossWalk) record(r *history.Record) {
	if pointKind(r.Kind) == "" || r.Thinned && !r.Kind.Point() {
		return
	}
	label := r.Kind == history.Mark || r.Kind == history.Snapshot
	switch {
	case r.Seq <= w.UntilSeq:
		if w.Points++; label {
			w.Labelled++
		}
	case w.policy.Thins() && !label && r.Kind.Point():
		w.thin(r)
	}
}

// thin counts a flush, or a write that thinning has left, if another one of its stretch stands for it: the last flush, or the last write of one without a flush.
func (w *lossWalk) thin(r *history.Record) {
	width := int64(time.Minute)
	switch w.policy.level(w.now.Sub(time.Unix(0, r.Time))) {
	case history.Whole, history.Flushes:
		return
	case history.Hours:
		width = int64(time.Hour)
	case history.Minutes:
	}
	if stretch := r.Time / width; width != w.width || stretch != w.stretch {
		w.width, w.stretch, w.flush, w.kept = width, stretch, false, false
	}
	flush := r.Kind == history.Barrier
	if w.flush || w.kept {
		w.Thinned++
	}
	w.kept = !flush && !w.flush
	w.flush = w.flush || flush
}

// oldestBefore is the index of the root that the moment at a time stands on, or of the first one.
func oldestBefore(roots []*node, at time.Time) int {
	oldest := 0
	for oldest+1 < len(roots) && roots[oldest+1].created <= at.UnixNano() {
		oldest++
	}
	return oldest
}
