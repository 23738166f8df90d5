package blockstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
	"github.com/hyper-nixos/hyper-nixos/dedup"
)

// destager moves what has been in the log long enough into segments: one goroutine that decides, one that reads, cuts and hashes the next region meanwhile.
type destager struct {
	s       *Store
	wake    chan struct{}
	pace    atomic.Int64 // bytes of the log destaged a second, smoothed
	all     atomic.Int32 // settles that want everything down
	timesMu sync.Mutex
	times   []timeMark    // positions of the log by time, oldest first; guarded by timesMu
	works   []*regionWork // buffers, reused
}

// timeMark says how far the log had come at a moment.
type timeMark struct {
	at  time.Time
	pos journal.Pos
}

const (
	destageTick   = 500 * time.Millisecond
	firstPace     = 100 << 20
	regionsABatch = 64
)

func newDestager(s *Store) *destager {
	d := &destager{s: s, wake: make(chan struct{}, 1)}
	d.pace.Store(firstPace)
	for range 2 {
		d.works = append(d.works, &regionWork{buf: make([]byte, block.RegionSize), hasher: dedup.NewHasher(s.domain)})
	}
	return d
}

func (d *destager) kick() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// run works until ctx ends.
func (d *destager) run(ctx context.Context) {
	tick := time.NewTicker(destageTick)
	defer tick.Stop()
	for ctx.Err() == nil {
		did, err := d.once(ctx)
		if err != nil {
			d.s.report("destage", err)
		}
		if did && err == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-d.wake:
		case <-tick.C:
		}
		if err != nil {
			sleep(ctx, destageTick) // do not spin on a lasting fault, such as a full disk
		}
	}
}

func sleep(ctx context.Context, t time.Duration) {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// candidate is a region that may be destaged.
type candidate struct {
	n    *node
	info overlay.RegionInfo
}

// once destages one batch and reports whether there was anything to do.
func (d *destager) once(ctx context.Context) (bool, error) {
	s := d.s
	limit := d.limit()
	if limit == 0 {
		return false, nil
	}
	maxPos, err := s.settledPos(ctx, d.all.Load() > 0)
	if err != nil {
		return false, err
	}
	began := time.Now()
	nodes := s.readyNodes()
	did := false
	tombs, err := d.detachRanges(nodes, maxPos)
	did = tombs > 0
	if err != nil {
		return did, err
	}
	batch := d.pick(nodes, limit, maxPos)
	bytes := int64(0)
	if len(batch) > 0 {
		if bytes, err = d.batch(ctx, batch, maxPos); err != nil {
			return did, err
		}
		did = did || bytes >= 0
	}
	if n, err := s.resolveNodes(nodes); err != nil {
		return did, err
	} else if n > 0 {
		did = true
	}
	if err := s.releaseLog(ctx); err != nil {
		return did, err
	}
	if took := time.Since(began); bytes > 0 && took > 0 {
		now := int64(float64(bytes) / took.Seconds())
		d.pace.Store(max(1<<20, (3*d.pace.Load()+now)/4))
	}
	return did, nil
}

// limit returns the position up to which data shall be destaged now; 0 for none. When the log or the overlays are filling up, or somebody settles, that is everything;
// else what has been there for DestageAfter.
func (d *destager) limit() journal.Pos {
	now, next := time.Now(), d.s.log.NextPos()
	d.timesMu.Lock()
	defer d.timesMu.Unlock()
	if len(d.times) == 0 || now.Sub(d.times[len(d.times)-1].at) >= destageTick {
		d.times = append(d.times, timeMark{now, next})
	}
	d.s.space.measure()
	if d.all.Load() > 0 || d.s.space.fill.Load() >= fillDestage {
		return next
	}
	var old journal.Pos
	cut := now.Add(-d.s.opts.DestageAfter)
	k := 0
	for k < len(d.times) && d.times[k].at.Before(cut) {
		old = d.times[k].pos
		k++
	}
	if k > 1 {
		d.times = slices.Delete(d.times, 0, k-1)
	}
	return old
}

// settledPos returns a position up to which every record is durable and published: what may be destaged. It syncs the log only when somebody wants all of it down; else
// the log's own syncs set the pace.
func (s *Store) settledPos(ctx context.Context, all bool) (journal.Pos, error) {
	// Of the last durable record only the first sector's position is known; when nothing at all is unsynced, the rest of it counts too.
	next := s.log.NextPos()
	_, durable := s.log.Durable()
	if all || s.log.Usage().Unsynced == 0 {
		durable = next - 1
	}
	if all {
		if err := s.log.Sync(ctx); err != nil {
			return 0, fmt.Errorf("sync the log before destage: %w", err)
		}
	}
	// Whoever appended a record up to there and has not published it yet holds its volume's lock.
	s.drainWriters()
	return durable, nil
}

// drainWriters returns when every write that was between append and publish when it was called has been published.
func (s *Store) drainWriters() {
	s.tree.RLock()
	all := make([]*Volume, 0, len(s.volumes))
	for _, v := range s.volumes {
		all = append(all, v)
	}
	s.tree.RUnlock()
	for _, v := range all {
		v.mu.Lock()
		//lint:ignore SA2001 the lock is only waited for
		v.mu.Unlock()
	}
}

// readyNodes returns the nodes that may be destaged: something is in their layer, and all below it is in maps.
func (s *Store) readyNodes() []*node {
	s.tree.RLock()
	defer s.tree.RUnlock()
	var ready []*node
	for _, n := range s.nodes {
		if n.readyLocked() && n.flags&nodeResolved == 0 && !n.abandonedLocked() && (!n.layer.Empty() || n.flags&nodeClosed != 0) {
			ready = append(ready, n)
		}
	}
	return ready
}

// pick chooses the regions of one batch, those with the oldest data first, as many as the memory plan allows.
func (d *destager) pick(nodes []*node, limit, maxPos journal.Pos) []candidate {
	var all []candidate
	var infos []overlay.RegionInfo
	for _, n := range nodes {
		infos = n.layer.OldestRegions(regionsABatch, infos[:0])
		for _, info := range infos {
			if info.OldestPos <= uint64(min(limit, maxPos)) {
				all = append(all, candidate{n, info})
			}
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.info.OldestPos, b.info.OldestPos) })
	bytes := int64(0)
	for i, c := range all {
		bytes += int64(c.info.Blocks) * block.Size
		if i+1 == regionsABatch || bytes >= d.s.plan.batch {
			return all[:i+1]
		}
	}
	return all
}

// detachRanges applies the tombstones that cover many regions: each is a cut in the map, whatever lay below it.
func (d *destager) detachRanges(nodes []*node, maxPos journal.Pos) (int, error) {
	count := 0
	for _, n := range nodes {
		var tombs []overlay.Tombstone
		for _, t := range n.layer.Tombstones(nil) {
			if t.Pos <= uint64(maxPos) {
				tombs = append(tombs, t)
			}
		}
		if len(tombs) == 0 {
			continue
		}
		count += len(tombs)
		m := d.s.beginMeta()
		e := m.edit(n)
		if e == nil {
			m.abort()
			continue
		}
		for _, t := range tombs {
			if err := e.detach(t.First*block.RegionSize, t.N*block.RegionSize); err != nil {
				m.abort()
				return count, err
			}
		}
		if err := e.finish(); err != nil {
			m.abort()
			return count, err
		}
		if err := m.commit(); err != nil {
			return count, err
		}
		d.s.at(afterPublishRoots)
		for _, t := range tombs {
			n.layer.DropTombstone(t)
		}
	}
	if count > 0 {
		d.s.worker.kick()
	}
	return count, nil
}

// batch destages the given regions in one metadata batch and returns how many bytes of the log that was.
func (d *destager) batch(ctx context.Context, batch []candidate, maxPos journal.Pos) (int64, error) {
	s := d.s
	pin := s.log.Pin()
	defer pin.Release()

	loaded := make(chan *regionWork)
	free := make(chan *regionWork, len(d.works))
	for _, w := range d.works {
		free <- w
	}
	loadCtx, stop := context.WithCancel(ctx)
	loadErr := make(chan error, 1)
	go func() {
		defer close(loaded)
		loadErr <- d.loadAll(loadCtx, batch, maxPos, free, loaded)
	}()

	m := s.beginMeta()
	edits := make(map[*node]*mapEdit)
	var snaps []dropLater
	bytes, err := int64(0), error(nil)
	for w := range loaded {
		if err == nil {
			e, known := edits[w.n]
			if !known {
				e = m.edit(w.n)
				edits[w.n] = e
			}
			if e != nil {
				err = s.packer.region(m, e, w)
				bytes += w.data
				snaps = append(snaps, dropLater{w.n, w.snap})
				w.snap = overlay.RegionSnapshot{}
			}
		}
		if err != nil {
			stop()
		}
		free <- w
	}
	stop()
	err = errors.Join(err, <-loadErr)
	if err == nil {
		err = finishAll(m, edits)
	}
	if err != nil {
		s.packer.forget()
		m.abort()
		return bytes, err
	}
	if err := m.commit(); err != nil {
		return bytes, err
	}
	s.at(afterPublishRoots)
	for i := range snaps {
		snaps[i].n.layer.DropRegion(&snaps[i].snap)
	}
	return bytes, nil
}

// dropLater is a region whose slots go once its page is published.
type dropLater struct {
	n    *node
	snap overlay.RegionSnapshot
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

// loadAll reads, cuts and hashes the regions of a batch, one after the other, each while the one before is being packed.
func (d *destager) loadAll(ctx context.Context, batch []candidate, maxPos journal.Pos, free, loaded chan *regionWork) error {
	for _, c := range batch {
		var w *regionWork
		select {
		case w = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		w.n = c.n
		c.n.layer.SnapshotRegion(c.info.Region, uint64(maxPos), &w.snap)
		if w.snap.Empty() {
			free <- w
			continue
		}
		if err := w.load(d.s); err != nil {
			free <- w
			if errors.Is(err, block.ErrNotFound) && d.s.removed(c.n) {
				continue // the map went with its node
			}
			return err
		}
		select {
		case loaded <- w:
		case <-ctx.Done():
			free <- w
			return ctx.Err()
		}
	}
	return nil
}

// resolveNodes marks closed nodes whose layer is empty: all of them is in the map, and their children may be destaged.
func (s *Store) resolveNodes(nodes []*node) (int, error) {
	if len(s.emptied(nodes)) == 0 {
		return 0, nil
	}
	m := s.beginMeta()
	done := s.emptied(nodes) // again, now that none can be purged: the row of one that was must not come back
	if len(done) == 0 {
		m.abort()
		return 0, nil
	}
	for _, n := range done {
		if n.root.Load() == nil {
			m.roots[n] = n.effectiveRoot()
			m.grown[n] = 0
		}
	}
	s.tree.Lock()
	for _, n := range done {
		n.flags |= nodeResolved
		s.touchNodeLocked(n)
	}
	s.tree.Unlock()
	return len(done), m.commit()
}

// emptied returns those of the nodes that are closed, were not known to be resolved, and have nothing left in the log.
func (s *Store) emptied(nodes []*node) (done []*node) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, n := range nodes {
		if s.nodes[n.id] == n && n.flags&nodeClosed != 0 && n.flags&nodeResolved == 0 && !n.abandonedLocked() && n.layer.Empty() {
			done = append(done, n)
		}
	}
	return done
}

// ageOf says how long ago a position was written, to the precision of a destage tick.
func (d *destager) ageOf(pos journal.Pos, now time.Time) time.Duration {
	d.timesMu.Lock()
	defer d.timesMu.Unlock()
	for i := len(d.times) - 1; i >= 0; i-- {
		if d.times[i].pos <= pos {
			return now.Sub(d.times[i].at)
		}
	}
	if len(d.times) > 0 {
		return now.Sub(d.times[0].at)
	}
	return 0
}
