package blockstore

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// isRoot reports whether a node is a root of history.
func (n *node) isRoot() bool {
	return n.flags&nodeClosed != 0 && n.flags&nodeDeleted == 0 && strings.HasPrefix(n.name, rootPrefix)
}

// rootsOf lists the roots of a volume, oldest first.
func (h *historian) rootsOf(v *Volume) []*node {
	h.s.tree.RLock()
	defer h.s.tree.RUnlock()
	return h.rootsLocked(v)
}

// rootsLocked is rootsOf under Store.tree.
func (h *historian) rootsLocked(v *Volume) []*node {
	var roots []*node
	for _, n := range v.nodes { // not those of the store: this is asked for each volume, several times a second
		if n.isRoot() {
			roots = append(roots, n)
		}
	}
	slices.SortFunc(roots, func(a, b *node) int { return cmp.Compare(a.closed, b.closed) })
	return roots
}

// root freezes the volume as it is, as a snapshot that no user sees. It waits for nothing: an error that wraps errLogFull means later. h.work is held, which what makes room in the log may wait for.
func (h *historian) root(vh *volumeHistory) error {
	v := vh.v
	o, err := h.s.tryOp([]*Volume{v}, func() (*op, error) {
		if v.gone.Load() {
			return nil, block.ErrNotFound
		}
		return &op{Kind: opSnapshot, Volume: v.id, Name: rootPrefix + uuid.NewString()}, nil
	})
	if err != nil {
		return err
	}
	vh.rootAt, vh.rooted, vh.rootSeq = h.s.opts.Now(), vh.written.Load(), o.Seq
	most := h.s.opts.historyRootBytes
	if most == 0 {
		most = min(historyRootWrites, h.budgetOf(vh)/historyRootMost)
	}
	vh.dueAt.Store(vh.rooted + most)
	return nil
}

// rootIfDue makes a root of a volume that was written to since the last one, by time or amount. h.work is held.
func (h *historian) rootIfDue(vh *volumeHistory) error {
	fresh := vh.written.Load() - vh.rooted
	if vh.v == nil || vh.suspended || fresh == 0 && vh.rootSeen {
		return nil
	}
	if !vh.rootSeen { // a death may have come between a rollback and the root that follows it
		h.s.tree.RLock()
		roots, epoch := h.rootsLocked(vh.v), vh.v.mapEpoch
		h.s.tree.RUnlock()
		vh.rootSeen = true
		if n := len(roots); n == 0 || roots[n-1].mapEpoch != epoch || roots[n-1].closed < vh.since {
			fresh = math.MaxInt64
		}
	}
	if !h.rootDue(vh, fresh) && h.s.opts.Now().Sub(vh.rootAt) < min(historyRootEvery, max(time.Second, h.policyOf(vh).whole()/4)) {
		return nil
	}
	err := h.root(vh)
	if notNow(err) {
		return nil
	}
	if err != nil {
		h.gap(vh, err)
	}
	return nil
}

// rootAfterRollback makes the root that moments after a rollback begin with. Until it is there they cannot be had.
func (h *historian) rootAfterRollback(v *Volume) error {
	vh := v.history.Load()
	if vh == nil {
		return nil
	}
	h.work.Lock()
	defer h.work.Unlock()
	if vh.suspended || h.of(v.id) != vh {
		return nil
	}
	switch err := h.root(vh); {
	case notNow(err):
		vh.rootSeen = false // the next step makes it
	case err != nil:
		h.gap(vh, err)
	}
	return nil
}

// notNow reports whether a root could not be made now, and may be the next time: the log is full, the store closes, or the volume is gone.
func notNow(err error) bool {
	return errors.Is(err, errLogFull) || errors.Is(err, block.ErrClosed) || errors.Is(err, block.ErrNotFound)
}

// dropRoot deletes a root. ErrInUse says that a moment stands on it.
func (h *historian) dropRoot(n *node) error {
	_, err := h.s.tryOp(nil, func() (*op, error) {
		if n.users > 0 {
			return nil, block.ErrInUse
		}
		if h.s.nodes[n.id] != n || n.flags&nodeDeleted != 0 {
			return nil, block.ErrNotFound
		}
		return &op{Kind: opDeleteSnapshot, Volume: n.volume.id, Node: n.id}, nil
	})
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	return err
}

// dropRoots deletes the roots of a volume that were closed before seq, but for those in use.
func (h *historian) dropRoots(v *Volume, seq uint64) (err error) {
	for _, n := range h.rootsOf(v) {
		if n.closed >= seq {
			break
		}
		if e := h.dropRoot(n); e != nil && !errors.Is(e, block.ErrInUse) && !errors.Is(e, errLogFull) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// dropOrphans deletes the roots of volumes that have no history: of such whose state was lost, or whose history ended while one was in use. h.work is held.
func (h *historian) dropOrphans() (err error) {
	h.s.tree.RLock()
	var orphans []*node
	for _, n := range h.s.nodes {
		if n.isRoot() && n.users == 0 && n.volume.history.Load() == nil {
			orphans = append(orphans, n)
		}
	}
	h.s.tree.RUnlock()
	for _, n := range orphans {
		if e := h.dropRoot(n); e != nil && !errors.Is(e, block.ErrInUse) && !errors.Is(e, errLogFull) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// budgetOf is what the history of a volume may take now, in bytes: less while the disk is near full.
func (h *historian) budgetOf(vh *volumeHistory) int64 {
	return h.budgetFor(h.policyOf(vh))
}

// budgetFor is budgetOf under another policy.
func (h *historian) budgetFor(p HistoryPolicy) int64 {
	budget := int64(p.BudgetBytes)
	if budget == 0 {
		budget = 10 << 30
		if usage, err := h.s.diskUsage(); err == nil && usage.TotalBytes > 0 {
			budget = min(budget, int64(usage.TotalBytes/20))
		}
	}
	if SpaceState(h.s.space.state.Load()) == SpaceNearFull {
		budget /= 2
	}
	return budget
}

func (h *historian) over(vh *volumeHistory) bool { return vh.stream.Bytes() > h.budgetOf(vh) }

// expire lets go what is too old, and what is too much. h.work is held.
func (h *historian) expire(vh *volumeHistory) error {
	if vh.v == nil || h.held.Load() {
		return nil
	}
	if SpaceState(h.s.space.state.Load()) >= SpaceCritical && !vh.suspended {
		h.gap(vh, errors.New("the disk is full"))
	}
	if vh.suspended {
		_, err := vh.stream.Expire(vh.since)
		return errors.Join(err, h.dropRoots(vh.v, vh.since))
	}
	roots := h.rootsOf(vh.v)
	used := h.firstUsed(roots) // what somebody's moment stands on stays, and so do the moments after it, whose files stay as well
	oldest := min(h.oldestWanted(vh, roots), used)
	over, budget := false, h.budgetOf(vh)
	for ; len(roots) > 0; oldest++ {
		if oldest < len(roots) {
			if err := h.letGo(vh, roots[oldest].closed); err != nil {
				return err
			}
		}
		if vh.stream.Bytes() <= budget {
			break
		}
		if oldest >= used || vh.stream.Held() { // to let more roots go would free nothing, and take from everybody what one reader keeps
			h.tooMuch(vh, budget)
			break
		}
		if oldest+1 >= len(roots) {
			return h.shorten(vh, budget)
		}
		over = true
	}
	if over {
		h.tellOver(vh)
	}
	return nil
}

// tooMuch makes history stop that is far over its budget, because somebody reads what would have to go.
func (h *historian) tooMuch(vh *volumeHistory, budget int64) bool {
	if vh.stream.Bytes() <= 2*budget {
		return false
	}
	h.gap(vh, errors.New("it is over its budget, and somebody reads what would have to go"))
	return true
}

// oldestWanted is the index of the root that the oldest moment of the window stands on.
func (h *historian) oldestWanted(vh *volumeHistory, roots []*node) int {
	return oldestBefore(roots, h.s.opts.Now().Add(-h.policyOf(vh).Window))
}

// firstUsed is the index of the first root that a moment is open on; that of none is the number of roots.
func (h *historian) firstUsed(roots []*node) int {
	h.s.tree.RLock()
	defer h.s.tree.RUnlock()
	for i, n := range roots {
		if n.users > 0 {
			return i
		}
	}
	return len(roots)
}

// letGo gives up what lies before the root that was closed at seq, as far as nobody reads it.
func (h *historian) letGo(vh *volumeHistory, seq uint64) error {
	h.mu.Lock()
	vh.since = max(vh.since, seq)
	fresh := vh.since > vh.noted // also after a save that failed
	h.mu.Unlock()
	if fresh { // an open that misses files knows then that they may be missing; and the root that takes their place is there
		if err := errors.Join(h.s.log.SyncThrough(h.s.ctx, seq), h.save()); err != nil {
			return err
		}
	}
	err := h.dropRoots(vh.v, seq)
	_, e := vh.stream.Expire(seq)
	return errors.Join(err, e)
}

// shorten makes room where all that is there lies behind one root: with another root, that goes; where somebody reads it, history stops.
func (h *historian) shorten(vh *volumeHistory, budget int64) error {
	if h.tooMuch(vh, budget) || vh.written.Load() == vh.rooted {
		return nil
	}
	err := h.root(vh)
	if notNow(err) {
		return nil
	}
	h.tellOver(vh)
	return err
}

// tellOver tells that history is shorter than the window asks for.
func (h *historian) tellOver(vh *volumeHistory) {
	h.dropped.Add(1)
	if f := h.s.opts.Events.HistoryDropped; f != nil {
		f(vh.name(), vh.stream.Bytes())
	}
}
