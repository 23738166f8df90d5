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

// destager moves what has been in the log long enough into segments, pass by pass.
type destager struct {
	s       *Store
	wake    chan struct{}
	pace    atomic.Int64 // bytes of the log that are released a second while it fills up, smoothed
	all     atomic.Int32 // settles that want everything down
	timesMu sync.Mutex
	times   []timeMark    // positions of the log by time, oldest first; guarded by timesMu
	works   []*regionWork // reused; regionBuffers has their buffers
	buffers regionBuffers
	fault   fault
	relog   relogger

	over    bool        // what streams have left is due
	streams bool        // and of all else what lies before aged
	aged    journal.Pos // what lies before it has been in the log for DestageAfter

	feedback feedback
	paced    struct { // what the pace was last measured from
		at      time.Time
		emptied int64 // bytes appended to the log and not live any more
	}
}

// timeMark says how far the log had come at a moment.
type timeMark struct {
	at  time.Time
	pos journal.Pos
}

const (
	destageTick   = 500 * time.Millisecond
	paceWindow    = time.Second
	firstPace     = 100 << 20
	regionsABatch = 64
	// regionsForStreams is among how many regions of a node those are looked for that a stream went over.
	regionsForStreams = 1024
)

func newDestager(s *Store) *destager {
	d := &destager{s: s, wake: make(chan struct{}, 1), relog: newRelogger(s), feedback: feedback{s: s}}
	d.pace.Store(firstPace)
	for range s.plan.regions {
		w := &regionWork{}
		for range s.opts.Workers {
			w.hashers = append(w.hashers, dedup.NewHasher(s.domain))
		}
		d.works = append(d.works, w)
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
		d.fault.note(err)
		if err != nil {
			d.s.report("destage", err)
		}
		if did && err == nil {
			continue
		}
		d.buffers.idle(d.works, time.Now())
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
	nodes := s.readyNodes()
	did := false
	tombs, err := d.detachRanges(nodes, maxPos)
	did = tombs > 0
	if err != nil {
		return did, err
	}
	stays, down, old := d.relog.sort(d.pick(nodes, limit, maxPos), limit)
	batch, full := s.space.fitting(d.upTo(down, passGroups*s.plan.group()))
	if full != nil {
		batch, full = s.space.fitting(d.upTo(down, s.plan.batch))
	}
	moved, err := d.handle(ctx, stays, batch, old, maxPos)
	did = did || moved
	if err != nil {
		return did, err
	}
	if n, err := s.resolveNodes(nodes); err != nil {
		return did, err
	} else if n > 0 {
		did = true
	}
	if err := s.releaseLog(ctx); err != nil {
		return did, err
	}
	d.measurePace()
	if !did && full == nil {
		did, err = d.recutIdle(ctx)
	}
	return did, errors.Join(err, full)
}

// handle moves what is old of the regions that stay in the log while it destages the others: the one mostly copies, the other also waits for the device. It reports whether
// there was anything to do.
func (d *destager) handle(ctx context.Context, stays, batch []candidate, old, maxPos journal.Pos) (did bool, err error) {
	var moving sync.WaitGroup
	var cannot []candidate
	var moved bool
	var moveErr error
	var beside atomic.Bool
	if len(stays) > 0 {
		beside.Store(true)
		moving.Go(func() {
			defer beside.Store(false)
			cannot, moved, moveErr = d.relog.keepHot(ctx, stays, old, maxPos)
		})
	}
	if len(batch) > 0 {
		err = d.pass(ctx, batch, maxPos, &beside)
	}
	moving.Wait()
	for _, c := range cannot {
		d.relog.keep.cool(c) // there is no room in the log, or it is not what it was, or damaged
	}
	return moved || len(batch) > 0, errors.Join(err, moveErr)
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
	d.s.space.measure()
	d.aged, d.over = old, d.s.streamDue(d.s.log.Usage())
	full := d.all.Load() > 0 || d.s.space.fill.Load() >= fillDestage
	if d.streams = d.over && !full; d.streams || full {
		return next
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

// pick returns the regions that are due, those with the oldest data first, at most regionsABatch.
func (d *destager) pick(nodes []*node, limit, maxPos journal.Pos) []candidate {
	var all []candidate
	var infos []overlay.RegionInfo
	most := regionsABatch
	if d.streams {
		most = regionsForStreams
	}
	for _, n := range nodes {
		infos = n.layer.OldestRegions(most, infos[:0])
		for _, info := range infos {
			c := candidate{n, info}
			if info.OldestPos <= uint64(min(limit, maxPos)) && (!d.streams || d.s.afterStream(&c) || info.OldestPos <= uint64(d.aged)) {
				all = append(all, c)
			}
		}
	}
	slices.SortFunc(all, func(a, b candidate) int { return cmp.Compare(a.info.OldestPos, b.info.OldestPos) })
	return all[:min(len(all), regionsABatch)]
}

// upTo returns the first of the candidates, as many as hold so many bytes, and one at least.
func (d *destager) upTo(all []candidate, most int64) []candidate {
	bytes := int64(0)
	for i, c := range all {
		bytes += int64(c.info.Blocks) * block.Size
		if bytes >= most {
			return all[:i+1]
		}
	}
	return all
}

// measurePace keeps the figure of how fast the log is emptied while it is filling up.
func (d *destager) measurePace() {
	now, u := time.Now(), d.s.log.Usage()
	emptied := u.Appended - u.Live
	took := now.Sub(d.paced.at)
	if took < paceWindow {
		return
	}
	if freed := emptied - d.paced.emptied; freed > 0 && took < 4*paceWindow && d.s.space.fill.Load() >= fillDestage {
		d.pace.Store(max(1<<20, (d.pace.Load()+int64(float64(freed)/took.Seconds()))/2))
	}
	d.paced.at, d.paced.emptied = now, emptied
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
		for _, r := range joinTombstones(tombs) {
			if err := e.detach(r.Off, r.Len); err != nil {
				m.abort()
				return count, err
			}
		}
		for _, t := range tombs {
			m.touchRegions(n, t.First, t.N)
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

// joinTombstones returns the bytes that tombstones cover, which come by ascending region: a client trims a large volume in many requests, and what is cut off in one piece is one job.
func joinTombstones(tombs []overlay.Tombstone) (all []block.Range) {
	for _, t := range tombs {
		off, n := t.First*block.RegionSize, t.N*block.RegionSize
		if k := len(all); k > 0 && all[k-1].End() == off {
			all[k-1].Len += n
		} else {
			all = append(all, block.Range{Off: off, Len: n})
		}
	}
	return all
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
	if err := m.commit(); err != nil {
		return 0, err
	}
	for _, n := range done {
		n.layer.Release() // what an empty layer holds on to counts, and there is one for each snapshot
	}
	return len(done), nil
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
