package blockstore

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

const (
	historyDir = "history"

	historyRootEvery = 15 * time.Minute
	historyTick      = 250 * time.Millisecond
	historyPause     = 10 * time.Second // after a gap
	orphansEvery     = 64               // steps
)

// historian copies what volumes under history did out of the log before it is released, makes the roots that bound how far back a moment has to look, and lets go what is too old or too much.
//
// A moment (Store.OpenPoint) is the newest root before it and, over that, a layer of the records since. The historian never makes a guest's write fail or wait for long: where it cannot go on, history has a gap, and what
// lies before the gap cannot be had any more.
//
// Locks: work, held over a whole pass, before Store.ops and Volume.mu; mu for instructions only.
type historian struct {
	s       *Store
	set     *history.Set
	wake    chan struct{}
	budget  *overlay.Budget // of the layers of moments that are open
	work    sync.Mutex
	holding atomic.Bool // some volume has history: the log waits
	held    atomic.Bool // Store.HoldHistory: nothing expires
	dropped atomic.Uint64
	steps   int // of work
	touched int // of work: regions in all stretches

	mu struct {
		sync.Mutex
		volumes  map[block.VolumeID]*volumeHistory
		nextFile uint32 // first file of the log that may have records to copy
		seq      uint64 // all up to it are copied
		saved    uint32 // nextFile of the state that is durable: the log is kept from there on, as the next open goes on there
	}
}

// volumeHistory is the history of one volume.
type volumeHistory struct {
	id     block.VolumeID
	v      *Volume
	stream *history.Stream

	policy HistoryPolicy // guarded by historian.mu, with the rest up to gaps; as the user gave it
	since  uint64        // nothing up to that sequence number can be had
	noted  uint64        // since, as it is in the state that is durable
	// lastSeq is durable in the stream.
	lastSeq   uint64
	suspended bool   // no room, or nobody may have it: records are let go
	why       string // of the last gap
	gaps      uint64

	rootAt   time.Time // of work, as the next ones
	gapAt    time.Time // of the last gap
	rootSeen bool      // there is one of the volume's map epoch
	rootSeq  uint64    // of the last root
	stretch  stretch   // behind it, or one before as long as nothing was copied behind it
	// rooted is what written was at the last root.
	rooted  int64
	dueAt   atomic.Int64  // of written, at which a root is due
	written atomic.Int64  // bytes that guests wrote since the open
	last    atomic.Uint64 // last record of a guest

	barriers barriers
}

func newHistorian(s *Store) *historian {
	h := &historian{s: s, wake: make(chan struct{}, 1)}
	h.mu.volumes = map[block.VolumeID]*volumeHistory{}
	h.held.Store(s.opts.HoldHistory)
	h.budget = overlay.NewBudget(h.momentsMost())
	return h
}

// open reads what an earlier run left, before the log is opened.
func (h *historian) open() error {
	st, err := h.readState()
	if notDamage(err) {
		return err
	}
	if err != nil { // whose history is whose is not known any more
		h.s.reportCorruption(fmt.Errorf("history cannot be had any more: %w", err))
		st = historyState{}
	}
	set, bad, err := history.Open(history.Options{FS: h.s.fs, Dir: h.s.path(historyDir), StoreID: h.s.super.StoreID, Keys: h.s.keys.logKeys(), Now: h.s.opts.Now, Damaged: h.s.keeper.kick})
	if err != nil {
		return err
	}
	h.set = set
	h.mu.nextFile, h.mu.saved, h.mu.seq = st.NextFile, st.NextFile, st.Seq
	for _, row := range st.Volumes {
		if err := bad[row.ID]; notDamage(err) {
			return fmt.Errorf("of volume %d: %w", row.ID, err)
		}
		v := &volumeHistory{id: row.ID, policy: row.Policy, since: row.Since, noted: row.Since, lastSeq: row.LastSeq, stream: set.Stream(row.ID), rootAt: h.s.opts.Now()}
		switch {
		case bad[row.ID] != nil:
			v.why = bad[row.ID].Error()
		case row.LastSeq > row.Since && (v.stream == nil || v.stream.LastSeq() < row.LastSeq):
			v.why = fmt.Sprintf("its history ends before record %d, which was synced", row.LastSeq)
		}
		h.mu.volumes[row.ID] = v
	}
	h.holding.Store(len(st.Volumes) > 0)
	for _, id := range slices.Concat(set.Volumes(), slices.Collect(maps.Keys(bad))) {
		if h.mu.volumes[id] == nil { // a death came before the files of an ended history were gone
			h.s.report("remove the files of a history that has ended", set.Remove(id))
		}
	}
	return nil
}

// notDamage reports whether an error of a file says nothing of its bytes: another program reads them, or this one at another time. What is damaged is given up, but not this.
func notDamage(err error) bool {
	if errors.Is(err, block.ErrVersion) || errors.Is(err, block.ErrNoSpace) {
		return true
	}
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.EACCES, syscall.EPERM, syscall.ENOSPC, syscall.EDQUOT, syscall.EROFS, syscall.EINTR} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// retain bounds from below the position that the log must be kept from; 0: no bound.
func (h *historian) retain(from journal.Pos) journal.Pos {
	if !h.holding.Load() || h.mu.nextFile == 0 {
		return from
	}
	pos := max(1, journal.Pos(h.mu.nextFile)<<32)
	if from == 0 {
		return pos
	}
	return min(from, pos)
}

// releasable bounds a position before which log files may go.
func (h *historian) releasable(low journal.Pos) journal.Pos {
	if !h.holding.Load() {
		return low
	}
	h.mu.Lock()
	pos := journal.Pos(h.mu.saved) << 32
	h.mu.Unlock()
	if pos < low {
		h.kick()
	}
	return min(low, pos)
}

func (h *historian) kick() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// begin finds the volumes, when the log has been replayed.
func (h *historian) begin() error {
	h.work.Lock()
	defer h.work.Unlock()
	lacks := h.logLacks()
	for _, vh := range h.all() {
		if vh.why == "" {
			vh.why = lacks
		}
		h.s.tree.RLock()
		vh.v = h.s.volumes[vh.id]
		h.s.tree.RUnlock()
		if vh.v == nil {
			h.s.report("give up the history of a volume that is gone", h.end(vh))
			continue
		}
		vh.v.history.Store(vh)
		if vh.why != "" {
			why := vh.why
			h.s.reportCorruption(fmt.Errorf("the history of volume %q begins anew: %s: %w", vh.name(), why, block.ErrCorrupt))
			if vh.stream == nil || vh.stream.LastSeq() < vh.lastSeq {
				if err := h.set.Remove(vh.id); err != nil {
					return err
				}
				vh.stream = nil
			}
			h.gap(vh, errors.New(why))
		}
		if vh.stream == nil {
			stream, err := h.set.Create(vh.id)
			if err != nil {
				return err
			}
			vh.stream = stream
		}
		h.mu.Lock()
		vh.lastSeq = vh.stream.LastSeq() // more may be durable than the state says
		h.mu.Unlock()
		if roots := h.rootsOf(vh.v); len(roots) > 0 {
			vh.rootSeq = roots[len(roots)-1].closed
		}
		if vh.lastSeq > vh.rootSeq { // from here on it counts: how often the same blocks were written before is not known
			vh.stretch.root = vh.rootSeq
		}
	}
	return nil
}

// logLacks says which records are neither copied nor in the log any more, as after damage of a file that only history waited for; empty if there are none.
func (h *historian) logLacks() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	files := h.s.log.LiveFiles()
	first, last := files[0], files[len(files)-1]
	switch {
	case !h.holding.Load():
	case last.ID < h.mu.nextFile:
		lacks := fmt.Sprintf("the log ends with file %08x, and %08x is the first that may have records which are not copied", last.ID, h.mu.nextFile)
		h.mu.nextFile, h.mu.saved = first.ID, first.ID
		return lacks
	case first.ID > h.mu.nextFile && first.FirstSeq > h.mu.seq+1:
		return fmt.Sprintf("the log begins with record %d, and those from %d on are not copied", first.FirstSeq, h.mu.seq+1)
	}
	return ""
}

// all lists the volumes that have history.
func (h *historian) all() []*volumeHistory {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]*volumeHistory, 0, len(h.mu.volumes))
	for _, v := range h.mu.volumes {
		all = append(all, v)
	}
	return all
}

func (h *historian) of(id block.VolumeID) *volumeHistory {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.mu.volumes[id]
}

// run works until ctx ends.
func (h *historian) run(ctx context.Context) {
	tick := time.NewTicker(historyTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-h.wake:
		case <-tick.C:
		}
		if err := h.step(ctx); err != nil && !errors.Is(err, block.ErrClosed) {
			h.s.report("keep history", err)
		}
	}
}

// step copies the files of the log that are full, makes the roots that are due, and lets go what is due.
func (h *historian) step(ctx context.Context) error {
	h.work.Lock()
	defer h.work.Unlock()
	if !h.holding.Load() {
		return h.dropOrphans()
	}
	var all []error
	if h.steps++; h.steps%orphansEvery == 0 {
		all = append(all, h.dropOrphans())
	}
	for _, vh := range h.all() {
		if vh.v == nil || vh.v.gone.Load() {
			all = append(all, h.end(vh))
		}
	}
	for _, vh := range h.all() {
		if vh.suspended && h.s.opts.Now().Sub(vh.gapAt) >= historyPause {
			all = append(all, h.resume(vh))
		}
		all = append(all, h.rootIfDue(vh))
	}
	seq, _ := h.s.log.Durable()
	all = append(all, h.harvest(ctx, seq, false))
	for _, vh := range h.all() {
		all = append(all, h.expire(vh))
	}
	return errors.Join(all...)
}

// SetHistory says how much of a volume's past can be had again, durably. What is there already and within the new bounds stays; none gives all of it up. Nothing before the call can be had.
func (s *Store) SetHistory(ctx context.Context, volume string, p HistoryPolicy) error {
	err := p.Validate()
	if err == nil {
		err = s.historian.setPolicy(ctx, volume, p)
	}
	if err != nil {
		return fmt.Errorf("set the history of volume %q: %w", volume, err)
	}
	return nil
}

func (h *historian) setPolicy(ctx context.Context, volume string, p HistoryPolicy) error {
	v, err := h.s.lookupVolume(volume)
	if err != nil {
		return err
	}
	h.work.Lock()
	defer h.work.Unlock()
	vh := h.of(v.id)
	switch {
	case p.None() && vh == nil:
		return nil
	case p.None():
		return h.end(vh)
	case vh != nil:
		h.mu.Lock()
		vh.policy = p
		h.mu.Unlock()
		if err := h.save(); err != nil {
			return err
		}
		h.s.thinner.kick()
		return h.expire(vh)
	}
	return h.start(ctx, v, p)
}

// start begins the history of a volume: from the moment that the log waits for it, and with a root.
func (h *historian) start(ctx context.Context, v *Volume, p HistoryPolicy) error {
	if len(h.all()) >= maxHistories {
		return fmt.Errorf("%d volumes have history, at most %d: %w", maxHistories, maxHistories, block.ErrInvalid)
	}
	if err := h.s.addROCompat(roCompatHistory); err != nil {
		return err
	}
	stream, err := h.set.Create(v.id)
	if err != nil {
		return err
	}
	vh := &volumeHistory{id: v.id, v: v, stream: stream, policy: p, lastSeq: stream.LastSeq(), rootAt: h.s.opts.Now()}
	h.mu.Lock()
	if !h.holding.Load() {
		h.holding.Store(true) // from here on nothing is released that could have a record after the next line
		files := h.s.log.LiveFiles()
		h.mu.nextFile, h.mu.seq = files[len(files)-1].ID, 0
		h.mu.saved = h.mu.nextFile
	}
	h.mu.Unlock()
	if vh.since, err = h.durableLast(ctx); err != nil {
		h.holding.Store(len(h.all()) > 0)
		return err
	}
	h.mu.Lock()
	h.mu.volumes[v.id] = vh
	h.mu.Unlock()
	v.history.Store(vh)
	err = h.save()
	if err == nil {
		err = h.root(vh)
	}
	if err != nil {
		return errors.Join(err, h.end(vh))
	}
	return nil
}

// durableLast is the number of the last record, which is durable when it returns: none up to it is ever given again, so it can be kept as a bound.
func (h *historian) durableLast(ctx context.Context) (uint64, error) {
	last, _ := h.s.log.Last()
	return last, h.s.log.SyncThrough(ctx, last)
}

// end gives up all history of a volume. One that somebody reads stays until it is not any more. h.work is held.
func (h *historian) end(vh *volumeHistory) error {
	if vh.stream != nil && vh.stream.InUse() {
		return errHistoryRead
	}
	if err := h.forget(vh); err != nil { // before the files go, or the next open would miss them
		return err
	}
	var err error
	if vh.v != nil {
		vh.v.history.Store(nil)
		err = h.dropRoots(vh.v, ^uint64(0))
	}
	return errors.Join(err, h.set.Remove(vh.id))
}

// forget takes a volume out of the state.
func (h *historian) forget(vh *volumeHistory) error {
	h.mu.Lock()
	delete(h.mu.volumes, vh.id)
	left := len(h.mu.volumes)
	h.mu.Unlock()
	if err := h.save(); err != nil {
		h.mu.Lock()
		h.mu.volumes[vh.id] = vh // it goes on, and its records are copied, or its moments would be others
		h.mu.Unlock()
		return err
	}
	h.restart(&vh.stretch, 0)
	if left == 0 {
		h.holding.Store(false)
	}
	return nil
}

// gap gives up what there is of a volume's history, because it cannot be continued. Nobody who reads it is disturbed. h.work is held.
func (h *historian) gap(vh *volumeHistory, cause error) {
	if vh.stream != nil {
		vh.stream.Abandon()
	}
	vh.gapAt = h.s.opts.Now()
	last, failed := h.durableLast(h.s.ctx)
	h.mu.Lock()
	vh.since, vh.suspended, vh.why = last, true, cause.Error()
	vh.gaps++
	if vh.stream != nil {
		vh.lastSeq = min(vh.lastSeq, vh.stream.LastSeq())
	} else {
		vh.lastSeq = 0
	}
	h.mu.Unlock()
	h.dropped.Add(1)
	if f := h.s.opts.Events.HistoryGap; f != nil {
		f(vh.name(), cause)
	}
	if failed != nil { // the next open finds a state that does not know of it, and makes it anew: nothing after that is released
		h.s.report("note a gap in the history of a volume", failed)
		return
	}
	h.s.report("note a gap in the history of a volume", h.save())
}

func (vh *volumeHistory) name() string {
	if vh.v == nil {
		return fmt.Sprint(vh.id)
	}
	vh.v.s.tree.RLock()
	defer vh.v.s.tree.RUnlock()
	return vh.v.name
}

// resume goes on with history after a gap, when there is room.
func (h *historian) resume(vh *volumeHistory) error {
	if !vh.suspended || SpaceState(h.s.space.state.Load()) >= SpaceCritical || h.over(vh) {
		return nil
	}
	since, err := h.durableLast(h.s.ctx)
	if err != nil {
		return err
	}
	h.mu.Lock()
	vh.since = since
	h.mu.Unlock()
	if err := h.save(); err != nil { // before anything is copied that would hide from the next open what was not
		return err
	}
	h.suspend(vh, false)
	err = h.root(vh)
	if err == nil {
		return nil
	}
	h.suspend(vh, true)
	vh.gapAt = h.s.opts.Now()
	if notNow(err) {
		return nil
	}
	return err
}

func (h *historian) suspend(vh *volumeHistory, on bool) {
	h.mu.Lock()
	vh.suspended = on
	h.mu.Unlock()
}

// HoldHistory lets no history expire from its return on, or lets it expire again: while an owner closes what was open, and opens it again in the next run (Options.HoldHistory), no moment must go that would be asked for.
func (s *Store) HoldHistory(hold bool) {
	h := s.historian
	h.held.Store(hold)
	if !hold {
		h.kick()
		return
	}
	h.work.Lock() // a pass that is under way ends
	//lint:ignore SA2001 the lock is only waited for
	h.work.Unlock()
	s.thinner.busy.Lock() // and one of the thinner; not under work, which that takes
	//lint:ignore SA2001 the lock is only waited for
	s.thinner.busy.Unlock()
}

// close ends history with the store.
func (h *historian) close() error {
	if h.set == nil {
		return nil
	}
	return h.set.Close()
}
