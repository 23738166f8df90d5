package blockstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

const (
	// settlePoll is how often a settle looks how far it is.
	settlePoll = 20 * time.Millisecond
	// settleRounds is how often a settle begins to reclaim anew at most: on a full disk a checkpoint makes the room that the next round needs.
	settleRounds = 3
	// stuckAfter is how long background work may fail before whoever waits for it is told. It is tried several times in that while.
	stuckAfter = 5 * time.Second
	// stallAfter is how long nothing may change, without a fault, before a settle gives up: nobody shall wait for ever for what never comes.
	stallAfter = 2 * time.Minute
)

// Settle brings everything down that is in the log when it begins and gives back everything that is dead by then, and returns when both is done: sizes can be compared
// then, if nobody writes. What is written meanwhile it does not wait for, so it ends under constant writes too. When background work fails for some seconds it returns that
// error; the work goes on trying. progress may be nil.
func (s *Store) Settle(ctx context.Context, progress func(SettleProgress)) error {
	return s.settle(ctx, false, progress)
}

// SettleCold is Settle, and between its two parts it rewrites all that is stored into cold segments: densely packed, in the order of volumes and offsets.
func (s *Store) SettleCold(ctx context.Context, progress func(SettleProgress)) error {
	return s.settle(ctx, true, progress)
}

func (s *Store) settle(ctx context.Context, cold bool, progress func(SettleProgress)) error {
	defer s.hurry()()
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	p := &settling{s: s, ctx: ctx, tick: tick, began: time.Now(), progress: progress}
	if err := p.destage(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	if err := p.index(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	if err := p.recut(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	if cold {
		if err := p.recutLoose(); err != nil {
			return fmt.Errorf("settle: %w", err)
		}
		if err := p.cool(); err != nil {
			return fmt.Errorf("settle: %w", err)
		}
	}
	if err := p.collect(); err != nil {
		return fmt.Errorf("settle: %w", err)
	}
	if cold {
		p.report("compact", 0, 0)
		if err := s.compactMeta(ctx); err != nil {
			return fmt.Errorf("settle: %w", err)
		}
	}
	return s.log.Sync(ctx)
}

// recut waits until what lies in pieces is cut anew, unless somebody writes meanwhile: then there is always more.
func (p *settling) recut() error {
	s, began := p.s, p.s.log.NextPos()
	first := int64(s.recuts.len()) * block.RegionSize
	for s.recuts.len() > 0 && s.log.NextPos() == began && SpaceState(s.space.state.Load()) == SpaceOK && !s.collector.paused() {
		p.report("recut", first, int64(s.recuts.len())*block.RegionSize)
		s.destager.kick()
		if err := p.wait(&s.destager.fault); err != nil {
			return err
		}
	}
	return nil
}

// recutLoose cuts regions anew that lie in a few pieces too many, where that pays: before data goes cold, and while nobody writes.
func (p *settling) recutLoose() error {
	tried := map[recutRegion]bool{}
	for p.s.recuts.len() == 0 {
		found, err := p.s.noteLoose(p.ctx, tried)
		if found == 0 || err != nil {
			return err
		}
		if err := p.recut(); err != nil {
			return err
		}
	}
	return nil
}

// collect gives back what is dead now, audits what that was, and lets the files go.
func (p *settling) collect() error {
	s := p.s
	for range settleRounds {
		if s.collector.paused() {
			return errPaused
		}
		if err := p.reclaim(); err != nil {
			return err
		}
		p.report("audit", 0, 0)
		if err := s.collector.prove(p.ctx); err != nil {
			return err
		}
		p.report("checkpoint", 0, 0)
		if err := s.checkpoints.delta(); err != nil {
			return err
		}
		_, more := s.victim()
		if waiting, _ := s.checkpoints.files.waitingNow(); !more && waiting == 0 { // a segment that was given up since the audit began waits for another
			break
		}
	}
	return nil
}

// hurry has everything in the log destaged and reclaim go further, until the function that it returns is called.
func (s *Store) hurry() (enough func()) {
	s.destager.all.Add(1)
	s.thorough.Add(1)
	return func() {
		s.destager.all.Add(-1)
		s.enough()
	}
}

// enough ends that reclaim goes further.
func (s *Store) enough() {
	if s.thorough.Add(-1) == 0 {
		s.dueFirst.nothing()
	}
}

// settling is one settle on its way.
type settling struct {
	s        *Store
	ctx      context.Context // of the one call of Settle
	tick     *time.Ticker
	began    time.Time
	progress func(SettleProgress)

	phase string
	seen  *counters // of the last batch of metadata
	moved time.Time // when there was a newer one than before
}

// wait pauses until it is time to look again, or fails with what ends the settle.
func (p *settling) wait(f *fault) error {
	if err := f.lasting(stuckAfter, p.began); err != nil {
		return stuck(err)
	}
	if err := p.stalled(time.Now(), stallAfter); err != nil {
		return err
	}
	select {
	case <-p.ctx.Done():
		return p.ctx.Err()
	case <-p.s.ctx.Done():
		return fmt.Errorf("the store is closing: %w", block.ErrClosed)
	case <-p.tick.C:
		return nil
	}
}

// stalled returns an error when no batch of metadata came for d.
func (p *settling) stalled(now time.Time, d time.Duration) error {
	if seen := p.s.counted.Load(); seen != p.seen {
		p.seen, p.moved = seen, now
	}
	if now.Sub(p.moved) < d {
		return nil
	}
	return fmt.Errorf("nothing has moved for %v while it waited for %s, and nothing says why; the log of the daemon and store check may; the work goes on trying", d, p.phase)
}

// stuck says what a lasting fault of background work means and what to do next.
func stuck(err error) error {
	next := "find out why the disk fails"
	switch {
	case errors.Is(err, block.ErrNoSpace):
		next = "make room: delete or trim something, or make the file system larger"
	case errors.Is(err, block.ErrCorrupt):
		next = "stop the daemon and check the store"
	}
	return fmt.Errorf("background work does not get on, what it has not done stays in the log; %s: %w", next, err)
}

func (p *settling) report(phase string, first, left int64) {
	p.phase = phase
	if p.progress != nil {
		p.progress(SettleProgress{Phase: phase, DoneBytes: uint64(max(0, first-left)), LeftBytes: uint64(max(0, left))})
	}
}

// destage waits until what is in the log now is in maps.
func (p *settling) destage() error {
	s := p.s
	mark := s.logMark()
	first := s.undestaged()
	left := first
	for {
		if s.downTo(mark) {
			return nil
		}
		left = min(left, s.undestaged(), s.logDistance(s.oldestLayerPos(mark.next), mark.next))
		p.report("destage", first, left)
		s.destager.kick()
		if err := p.wait(&s.destager.fault); err != nil {
			return err
		}
	}
}

// index waits until the index has every chunk that is there now, and what is there twice then is joined.
func (p *settling) index() error {
	mark := p.s.counted.Load().NextChunk
	if err := p.indexUntil(func() bool { return p.s.Index().Indexed >= mark }); err != nil {
		return err
	}
	return p.indexUntil(p.s.indexer.joinedSince())
}

func (p *settling) indexUntil(done func() bool) error {
	s := p.s
	first := s.Index()
	for last := first; !done(); {
		i := s.Index()
		if i != last {
			last, p.moved = i, time.Now()
		}
		p.report("index", int64(i.Chunks-min(i.Chunks, first.Indexed))*indexedBytes, int64(i.Chunks-min(i.Chunks, i.Indexed))*indexedBytes)
		s.indexer.kick()
		if err := p.wait(&s.indexer.fault); err != nil {
			return err
		}
	}
	return nil
}

// indexedBytes is the length of the row of a chunk that the index is made of: a settle counts in bytes.
const indexedBytes = chunkRowSize

// cool rewrites everything into cold segments.
func (p *settling) cool() error {
	s := p.s
	s.cooler.settles.Add(1)
	defer s.cooler.settles.Add(-1)
	first := int64(0)
	for _, r := range s.segments.all() {
		if r.Class == segment.Warm {
			first += int64(r.LiveRaw)
		}
	}
	left := first
	p.report("cool", first, left)
	c := cooling{s: s, ctx: p.ctx, moved: func(raw int64) {
		left -= raw
		p.report("cool", first, left)
	}}
	for range coolRetries {
		if err := c.run(); err != nil {
			return err
		}
		if c.missed == 0 {
			break
		}
	}
	return s.sealWarm()
}

// logMark is how far the log has come at a moment.
type logMark struct {
	seq  uint64
	next journal.Pos // every record so far lies before it
}

func (s *Store) logMark() logMark {
	seq, _ := s.log.Last()
	return logMark{seq, s.log.NextPos()}
}

// downTo reports whether all that was in the log at a mark is in maps.
func (s *Store) downTo(mark logMark) bool {
	return s.oldestLayerPos(mark.next) >= mark.next && s.resolvedTo(mark.seq)
}

// logDistance is how many bytes of the log lie between two positions.
func (s *Store) logDistance(from, to journal.Pos) int64 {
	return int64(to.File()-from.File())*s.opts.LogFileBytes + to.Offset() - from.Offset()
}

// resolvedTo reports whether every snapshot whose record is not after seq is in maps with all that lies below it.
func (s *Store) resolvedTo(seq uint64) bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	for _, n := range s.nodes {
		if !n.abandonedLocked() && n.flags&(nodeClosed|nodeResolved) == nodeClosed && n.closed <= seq {
			return false
		}
	}
	return true
}

// reclaim waits until what is dead now is given back: until a round of the worker finds nothing left, or, as such a round may never come while others go on deleting and
// overwriting, until what was due at the beginning of each of its stages is done.
func (p *settling) reclaim() error {
	s := p.s
	kick := s.worker.kick()
	began := s.log.NextPos()
	first := int64(s.heldUnused())
	lastSeq, _ := s.log.Last()
	s.dueFirst.upTo(s.counted.Load(), lastSeq)
	stages := []func() func() (bool, error){s.purgesDue, s.jobsDue, s.victimsDue}
	var done func() (bool, error)
	for !s.worker.idleSince(kick) {
		if done == nil && len(stages) > 0 {
			done, stages = stages[0](), stages[1:]
		}
		ended := false
		if done != nil {
			var err error
			if ended, err = done(); err != nil {
				return err
			}
		}
		switch {
		case ended:
			done = nil
			continue
		case done == nil && s.log.NextPos() != began:
			return nil
		}
		p.report("reclaim", first, int64(s.heldUnused()))
		if err := p.wait(&s.worker.fault); err != nil {
			return err
		}
	}
	return nil
}

// purgesDue returns a function that reports whether the nodes that can go now are gone.
func (s *Store) purgesDue() func() (bool, error) {
	due := s.purgeableNodes(nil)
	return func() (bool, error) {
		due = s.purgeableNodes(due)
		return len(due) == 0, nil
	}
}

// purgeableNodes returns the deleted nodes that can go, of those given or, without any, of all.
func (s *Store) purgeableNodes(of map[*node]bool) map[*node]bool {
	s.tree.RLock()
	defer s.tree.RUnlock()
	due := make(map[*node]bool)
	for _, n := range s.nodes {
		if (of == nil || of[n]) && n.purgeableLocked() {
			due[n] = true
		}
	}
	return due
}

// jobsDue returns a function that reports whether the subtrees that are cut off now are freed.
func (s *Store) jobsDue() func() (bool, error) {
	last := s.counted.Load().NextRow
	return func() (bool, error) {
		done := true
		err := extentmap.ScanJobs(s.db, 0, func(_ block.VolumeID, n uint64, _ extentmap.Job) (bool, error) {
			done = n > last
			return done, nil
		})
		return done, err
	}
}

// victimsDue returns a function that reports whether the segments that are worth reclaiming now are gone.
func (s *Store) victimsDue() func() (bool, error) {
	due := s.victims()
	return func() (bool, error) {
		worth := make(map[block.SegmentID]bool)
		for _, id := range s.victims() {
			worth[id] = true
		}
		for _, id := range due {
			if worth[id] {
				return false, nil
			}
		}
		return true, nil
	}
}
