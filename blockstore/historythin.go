package blockstore

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

const (
	thinTick = time.Second
	// thinRest is how long nothing of a volume is thinned after an error, as of a disk that is full.
	thinRest = time.Minute
	// idleEvery is after how many passes roots are looked at, even if nothing was thinned: a log that was full kept some.
	idleEvery = 60
)

// thinner makes history less dense as it grows old, as the policies of volumes say, and gives up roots that no moment stands on any more. It works beside guests within the budget of garbage collection (gcBudget), rests while that is paused or history is
// held, and takes no lock that a guest, an attach or the copy of the log waits for while it reads or writes payload.
//
// Locks: busy before historian.work, which is held for the removal of roots, and to end the file of an idle volume.
type thinner struct {
	s      *Store
	wake   chan struct{}
	busy   sync.Mutex // held over a pass
	budget gcBudget   // of busy
	files  atomic.Uint64
	freed  atomic.Int64                 // bytes
	rounds int                          // of busy
	rests  map[block.VolumeID]time.Time // of busy: of volumes that had an error, until when
	step   func(history.ThinStep)
}

func newThinner(s *Store) *thinner {
	t := &thinner{s: s, wake: make(chan struct{}, 1), rests: map[block.VolumeID]time.Time{}}
	t.budget.s = s
	return t
}

// run works until ctx ends.
func (t *thinner) run(ctx context.Context) {
	tick := time.NewTicker(thinTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.wake:
		case <-tick.C:
		}
		for ctx.Err() == nil {
			more, err := t.pass(ctx)
			if err != nil && ctx.Err() == nil && !errors.Is(err, block.ErrClosed) {
				t.s.report("thin history", err)
			}
			if !more {
				break
			}
		}
	}
}

// pass thins a stretch of each volume that has one which is due, and reports whether there was any. It needs room before it gives any back, so nothing is thinned while the disk is short of it. A volume that had an error rests.
func (t *thinner) pass(ctx context.Context) (more bool, err error) {
	t.busy.Lock()
	defer t.busy.Unlock()
	h := t.s.historian
	if SpaceState(t.s.space.state.Load()) >= SpaceCritical {
		return false, nil
	}
	for _, vh := range h.all() {
		if time.Now().Before(t.rests[vh.id]) {
			continue
		}
		delete(t.rests, vh.id)
		if vh.v == nil || vh.v.gone.Load() || h.held.Load() || t.s.collector.paused() || ctx.Err() != nil {
			continue
		}
		did, e := t.thin(ctx, vh)
		if e != nil {
			t.rests[vh.id] = time.Now().Add(thinRest)
			did = false
		}
		more, err = more || did, errors.Join(err, e)
	}
	t.rounds++
	return more, err
}

// room reports whether so many bytes may be written and leave the disk below its second mark.
func (t *thinner) room(bytes int64) bool {
	usage, err := t.s.diskUsage()
	if err != nil {
		return true // what cannot be known the writes will tell
	}
	mark := usage.TotalBytes / 100 * uint64(t.s.opts.Marks.space().critical)
	return t.s.space.free.Load() > bytes && (usage.TotalBytes == 0 || usage.UsedBytes+uint64(bytes) < mark)
}

// policyOf is the policy of a history as it is set.
func (h *historian) policyOf(vh *volumeHistory) HistoryPolicy {
	h.mu.Lock()
	defer h.mu.Unlock()
	return vh.policy
}

// thin thins a stretch of a volume, and gives up the roots that nothing stands on since.
func (t *thinner) thin(ctx context.Context, vh *volumeHistory) (bool, error) {
	h, p := t.s.historian, t.s.historian.policyOf(vh)
	stream := vh.stream
	if stream == nil {
		return false, nil
	}
	roots := h.rootsOf(vh.v)
	did, err := false, error(nil)
	now := t.s.opts.Now().UnixNano()
	if p.Thins() {
		if err := t.sealIdle(ctx, vh, roots, now-int64(p.whole())); err != nil {
			return false, err
		}
	}
	roots = copiedRoots(roots, h.copied())
	if p.Thins() {
		th := &history.Thinning{Step: t.step}
		for _, n := range roots {
			th.Roots = append(th.Roots, history.Root{Seq: n.closed, Time: n.created})
		}
		th.Level = func(newest int64) history.Level { return p.level(time.Duration(now - newest)) }
		th.Pace = func(n int) error {
			if err := t.budget.wait(ctx, n); err != nil {
				return err
			}
			if h.held.Load() || t.s.collector.paused() || h.policyOf(vh) != p { // the next pass goes by the new policy
				return block.ErrInUse
			}
			return nil
		}
		th.Room = t.room
		var done history.Thinned
		if done, did, err = stream.Thin(th); errors.Is(err, block.ErrInUse) && !errors.Is(err, block.ErrCorrupt) {
			err = nil // somebody reads it, garbage collection was paused meanwhile, or the policy is another
		}
		t.files.Add(uint64(done.Files))
		t.freed.Add(done.Before - done.After)
	}
	if err != nil || !did && t.rounds%idleEvery != 0 {
		return did, err
	}
	return did, t.dropIdle(vh, stream, roots)
}

// copied is up to which record of the log all are in history.
func (h *historian) copied() uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.seq
}

// copiedRoots are the roots, of all, before which nothing of the volume is in the log only. A root is there as soon as it is made, but what lies before a later one may not have been copied yet: what was copied would be thinned as if that were all.
func copiedRoots(roots []*node, copied uint64) []*node {
	for n := len(roots); n > 0; n-- {
		if roots[n-1].closed <= copied {
			return roots[:n]
		}
	}
	return nil
}

// sealIdle ends the file that is being filled of a volume that nobody has written to since its last root, before a time: it would else stay whole. What is in the log only is copied first: no guest may fill the file that it is in for long.
func (t *thinner) sealIdle(ctx context.Context, vh *volumeHistory, roots []*node, before int64) error {
	if len(roots) == 0 || roots[len(roots)-1].created > before {
		return nil
	}
	h, last := t.s.historian, roots[len(roots)-1].closed
	if h.copied() < last {
		if err := h.s.log.SyncThrough(ctx, last); err != nil {
			return err
		}
		durable, _ := h.s.log.Durable()
		h.work.Lock()
		err := h.harvest(ctx, durable, true)
		h.work.Unlock()
		if err != nil {
			return err
		}
	}
	h.work.Lock()
	defer h.work.Unlock()
	if h.copied() < last || vh.stream.LastSeq() >= last {
		return nil
	}
	return vh.stream.Roll()
}

// dropIdle gives up roots that no moment stands on, but for the newest, and the oldest: with that history begins, so that every moment of the window is one at or behind a point.
func (t *thinner) dropIdle(vh *volumeHistory, stream *history.Stream, roots []*node) (err error) {
	h := t.s.historian
	since := vh.sinceNow(h)
	begun := false
	for i := 0; i+1 < len(roots); i++ {
		n := roots[i]
		if first := n.closed >= since && !begun; first {
			begun = true
			continue
		}
		if n.closed < since || !stream.Idle(n.closed, roots[i+1].closed) {
			continue
		}
		if h.held.Load() {
			return err
		}
		h.work.Lock()
		e := h.dropRoot(n)
		h.work.Unlock()
		if e != nil && !errors.Is(e, block.ErrInUse) && !errors.Is(e, errLogFull) && !errors.Is(e, block.ErrClosed) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// kick lets the thinner look now.
func (t *thinner) kick() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}
