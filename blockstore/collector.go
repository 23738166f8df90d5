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
)

// collector is garbage collection as a whole: whether it is paused, the segment that is being emptied (reclaim.go), the segments that are put off, and the audits that files
// of dead segments wait for (audit.go). The worker empties segments, between its other steps; audits have a goroutine of their own, and one runs at a time.
type collector struct {
	s    *Store
	wake chan struct{}

	budget    gcBudget   // of the worker
	current   collection // of the worker
	coldMoves *cooling   // of the worker: scratch

	auditing sync.Mutex // held by the audit that runs; comes before mu
	readers  gcBudget   // of the audit that runs
	noting   sync.Mutex // orders writes of the record; comes before mu
	counts   collectedCounts
	urgent   atomic.Bool   // somebody waits for the next audit
	asked    atomic.Int32  // collections under way that somebody asked for
	deadMost atomic.Uint64 // raw bytes that were dead in sealed segments at most since they began

	mu struct {
		sync.Mutex
		paused bool
		audits uint64 // in the life of the store
		last   AuditReport
		next   time.Time // when another audit may begin by itself
		putOff map[block.SegmentID]*putOff
		// Of the audit that runs, in bytes of rows.
		running           bool
		auditDone, toDo   uint64
		auditWaitsForever bool // the last one found that something is missing
	}
}

// collectedCounts are figures since the open.
type collectedCounts struct {
	segments, freed, moved atomic.Uint64 // segments given back; bytes of these; bytes moved out of some
}

// putOff is a segment that could not be emptied.
type putOff struct {
	until time.Time
	tries int
	err   error
}

const (
	collectorTick = time.Second
	// auditAfterBytes and auditAfterParts say how much may wait for an audit: so many bytes, or so large a part of the store.
	auditAfterBytes = 256 << 20
	auditAfterParts = 64
	// auditAfter is how long a file may wait for one.
	auditAfter = 30 * time.Second
	// auditRest is how many times as long as an audit took none begins by itself.
	auditRest = 9
	// auditRetry is how long none begins by itself after one that failed.
	auditRetry = 5 * time.Minute
	// putOffFirst and putOffMost are how long a segment that could not be emptied is left alone: twice as long with each time.
	putOffFirst, putOffMost = 10 * time.Second, time.Hour
)

func newCollector(s *Store) *collector {
	c := &collector{s: s, wake: make(chan struct{}, 1)}
	c.budget.s, c.readers.s = s, s
	c.mu.putOff = map[block.SegmentID]*putOff{}
	return c
}

func (c *collector) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// hasten has the next audit begin at once.
func (c *collector) hasten() {
	if !c.urgent.Swap(true) {
		c.kick()
	}
}

// run audits what waits for it until ctx ends.
func (c *collector) run(ctx context.Context) {
	tick := time.NewTicker(collectorTick)
	defer tick.Stop()
	for ctx.Err() == nil {
		if c.auditDue(time.Now()) {
			_, err := c.audit(ctx, true)
			c.urgent.Store(false)
			if ctx.Err() != nil {
				return
			}
			c.s.report("audit", errors.Join(err, c.s.checkpoints.letGo()))
			c.s.checkpoints.kick()
		}
		select {
		case <-ctx.Done():
		case <-c.wake:
		case <-tick.C:
		}
	}
}

// auditDue reports whether files of dead segments have waited enough.
func (c *collector) auditDue(now time.Time) bool {
	files := c.s.checkpoints.files.unproven()
	if len(files) == 0 {
		return false
	}
	c.mu.Lock()
	paused, next := c.mu.paused, c.mu.next
	c.mu.Unlock()
	short := SpaceState(c.s.space.state.Load())
	urgent := c.urgent.Load() || short == SpaceFull
	if paused || now.Before(next) && (!urgent || c.failed()) {
		return false
	}
	bytes, oldest := uint64(0), now
	for i := range files {
		bytes += files[i].size
		if files[i].since.Before(oldest) {
			oldest = files[i].since
		}
	}
	return urgent || short != SpaceOK || now.Sub(oldest) >= auditAfter || bytes >= max(auditAfterBytes, c.s.counted.Load().Unique/auditAfterParts)
}

// failed reports whether the last audit let nothing, or not all, go: another one by itself would not be of more use.
func (c *collector) failed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.auditWaitsForever
}

// mayFree reports whether an audit may still let files go that wait for one.
func (c *collector) mayFree() bool {
	c.mu.Lock()
	held := c.mu.paused || c.mu.auditWaitsForever
	c.mu.Unlock()
	return !held && len(c.s.checkpoints.files.unproven()) > 0
}

// errPaused says what to do about a pause.
var errPaused = fmt.Errorf("garbage collection is paused, and nothing is given back until store gc resume: %w", block.ErrInUse)

func (c *collector) paused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.paused
}

// prove audits if files of dead segments wait for that, and returns an error when some of them must stay.
func (c *collector) prove(ctx context.Context) error {
	if len(c.s.checkpoints.files.unproven()) == 0 {
		return nil
	}
	if c.paused() {
		return errPaused
	}
	_, err := c.audit(ctx, true)
	return err
}

// lastAuditMost bounds the audit of a close. What it does not come to is audited after the next start.
const lastAuditMost = 2 * time.Second

// lastAudit lets the files go that wait for an audit when the store is closed, if that does not take long. It comes after the worker has stopped, which could drop a segment
// until then.
func (c *collector) lastAudit() {
	if !c.mayFree() {
		return
	}
	c.s.thorough.Add(1)
	defer c.s.enough()
	ctx, cancel := context.WithTimeout(context.Background(), lastAuditMost)
	defer cancel()
	if _, err := c.auditUntil(ctx, true); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		c.s.report("audit", err)
	}
}

// Audit marks every chunk that can be reached and compares that with what the metadata says (audit.go), beside everything else that goes on. The error is the end of ctx, or
// that of rows that could not be read; what was found wrong is in the report, and then it matches block.ErrCorrupt. progress may be nil; it is told bytes of rows.
func (s *Store) Audit(ctx context.Context, progress func(done, total uint64)) (AuditReport, error) {
	c := s.collector
	stop := make(chan struct{})
	defer close(stop)
	if progress != nil {
		go func() {
			tick := time.NewTicker(settlePoll)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					progress(c.auditProgress())
				}
			}
		}()
	}
	return c.audit(ctx, false)
}

func (c *collector) auditProgress() (done, total uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.auditDone, max(c.mu.auditDone, c.mu.toDo)
}

// audit does one that ends when the store is closed. With onlyIfNeeded it does none when, by the time that it could begin, no file waits for one any more.
func (c *collector) audit(ctx context.Context, onlyIfNeeded bool) (AuditReport, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.s.ctx, func() { cancel(block.ErrClosed) })()
	return c.auditUntil(ctx, onlyIfNeeded)
}

// auditUntil is audit that only ctx ends.
func (c *collector) auditUntil(ctx context.Context, onlyIfNeeded bool) (AuditReport, error) {
	s := c.s
	c.auditing.Lock()
	defer c.auditing.Unlock()
	if onlyIfNeeded && len(s.checkpoints.files.unproven()) == 0 {
		return AuditReport{}, nil
	}
	began := time.Now()
	c.beginProgress()
	a := s.newAuditing(ctx, func(ctx context.Context, n int) error {
		c.mu.Lock()
		c.mu.auditDone += uint64(n)
		c.mu.Unlock()
		return c.readers.wait(ctx, n)
	})
	err := errors.Join(a.run(), a.end())
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	a.report.Took, a.report.EndedAt = time.Since(began), s.opts.Now()
	if err == nil {
		s.at(afterMark)
		a.judge()
		if !a.report.Passed() {
			err = a.report.problem()
		}
	} else {
		a.report = AuditReport{Took: a.report.Took, EndedAt: a.report.EndedAt, Error: err.Error(), FilesKept: uint64(len(a.files))}
	}
	c.endAudit(&a.report, errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, block.ErrClosed))
	if err != nil {
		err = fmt.Errorf("audit: %w", err)
	}
	return a.report, err
}

// problem says what was found and what to do next.
func (r *AuditReport) problem() error {
	what := fmt.Sprintf("%d chunks that volumes or snapshots need are in no segment", r.Missing)
	if r.Missing == 0 {
		what = "the counts of references are not what the maps have"
	}
	return fmt.Errorf("%s; %d files of segments that were given up stay, and nothing is deleted for good; stop the daemon and run store check, which names what is wrong: %w", what, r.FilesKept, block.ErrCorrupt)
}

func (c *collector) beginProgress() {
	total := uint64(0)
	for _, table := range []byte{keyPage, keyChunk, keyRef} {
		if n, err := c.s.db.EstimateDiskUsage([]byte{table}, []byte{table + 1}); err == nil {
			total += n
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.running, c.mu.auditDone, c.mu.toDo = true, 0, total
}

// endAudit keeps what an audit found. One that was cancelled found nothing.
func (c *collector) endAudit(r *AuditReport, cancelled bool) {
	now := time.Now()
	c.mu.Lock()
	c.mu.running = false
	if cancelled {
		c.mu.Unlock()
		return
	}
	c.mu.audits++
	c.mu.last, c.mu.next = *r, now.Add(auditRest*r.Took)
	if c.mu.auditWaitsForever = !r.Passed(); c.mu.auditWaitsForever {
		c.mu.next = now.Add(auditRetry)
	}
	c.mu.Unlock()
	c.s.report("note the audit", c.note(func(*collectRecord) {}))
}

// skips reports whether a segment is put off.
func (c *collector) skips(id block.SegmentID, now time.Time) bool {
	p := c.mu.putOff[id]
	return p != nil && now.Before(p.until)
}

// later puts a segment off that could not be emptied, and others go on.
func (c *collector) later(id block.SegmentID, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.mu.putOff[id]
	if p == nil {
		p = &putOff{}
		c.mu.putOff[id] = p
	}
	p.until, p.err = time.Now().Add(min(putOffMost, putOffFirst<<min(p.tries, 16))), err
	p.tries++
}

// forget takes a segment off the list of those put off: it is gone, or was mended.
func (c *collector) forget(id block.SegmentID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.putOff, id)
}

// PauseGC stops that segments are emptied and given back, after the batch that is under way, across restarts. What guests delete is noted all the same, and nothing of it
// comes back until ResumeGC.
func (s *Store) PauseGC() (GCStatus, error) { return s.pauseGC(true) }

// ResumeGC ends a pause.
func (s *Store) ResumeGC() (GCStatus, error) { return s.pauseGC(false) }

func (s *Store) pauseGC(paused bool) (GCStatus, error) {
	c := s.collector
	if err := c.note(func(r *collectRecord) { r.Paused = paused }); err != nil {
		return GCStatus{}, fmt.Errorf("note the pause: %w", err)
	}
	s.worker.kick()
	c.kick()
	return s.GC(), nil
}

// CollectGarbage gives back all that is dead when it begins, as Settle does, of what is in segments, and returns when its files are gone.
func (s *Store) CollectGarbage(ctx context.Context, progress func(SettleProgress)) error {
	s.thorough.Add(1)
	defer s.enough()
	if s.collector.asked.Add(1) == 1 {
		s.collector.deadMost.Store(0)
	}
	defer s.collector.asked.Add(-1)
	tick := time.NewTicker(settlePoll)
	defer tick.Stop()
	p := &settling{s: s, ctx: ctx, tick: tick, began: time.Now(), progress: progress}
	if err := p.collect(); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

// GCState is what garbage collection is at.
type GCState string

// States of garbage collection.
const (
	GCIdle       GCState = "idle"
	GCCollecting GCState = "collecting"
	GCAuditing   GCState = "auditing"
	GCPaused     GCState = "paused"
)

// GCStatus is how garbage collection is doing. Counts are since the open.
type GCStatus struct {
	State             GCState
	HeldUnusedBytes   uint64 // in segments, in proportion
	RegionsInPieces   int    // that are known and will be cut anew when they have cooled
	Victims           int    // segments that are worth emptying now
	VictimBytes       uint64 // of these, what is dead
	WaitingFiles      int    // of dead segments, for an audit or a checkpoint
	WaitingBytes      uint64
	SegmentsFreed     uint64
	FreedBytes        uint64 // of the files of these
	MovedBytes        uint64 // raw, out of segments that were emptied
	PutOff            []PutOffSegment
	BytesPerSecond    int64 // budget
	RequestsPerSecond int64
	Audits            uint64
	Audit             *AuditReport // the last one; nil if there was none
	AuditDone         uint64       // bytes of rows of the one that runs
	AuditTotal        uint64
}

// PutOffSegment is a segment that could not be emptied and is tried again later.
type PutOffSegment struct {
	Segment block.SegmentID
	Tries   int
	Until   time.Time
	Reason  string
}

// GC returns how garbage collection is doing. It reads nothing from any device.
func (s *Store) GC() GCStatus {
	c := s.collector
	st := GCStatus{
		State: GCIdle, HeldUnusedBytes: s.heldUnused(), SegmentsFreed: c.counts.segments.Load(), FreedBytes: c.counts.freed.Load(), MovedBytes: c.counts.moved.Load(),
		RegionsInPieces: s.recuts.len(), BytesPerSecond: s.opts.GCBytesPerSecond, RequestsPerSecond: s.opts.GCRequestsPerSecond,
	}
	for _, id := range s.victims() {
		if r, ok := s.segments.get(id); ok {
			st.Victims, st.VictimBytes = st.Victims+1, st.VictimBytes+r.Size-min(r.Size, r.liveBytes())
		}
	}
	st.WaitingFiles, st.WaitingBytes = s.checkpoints.files.waitingNow()
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.mu.putOff {
		st.PutOff = append(st.PutOff, PutOffSegment{Segment: id, Tries: p.tries, Until: p.until, Reason: p.err.Error()})
	}
	slices.SortFunc(st.PutOff, func(a, b PutOffSegment) int { return cmp.Compare(a.Segment, b.Segment) })
	if st.Audits = c.mu.audits; st.Audits > 0 {
		last := c.mu.last
		st.Audit = &last
	}
	switch {
	case c.mu.running:
		st.State, st.AuditDone, st.AuditTotal = GCAuditing, c.mu.auditDone, max(c.mu.auditDone, c.mu.toDo)
	case c.mu.paused:
		st.State = GCPaused
	case st.Victims > 0:
		st.State = GCCollecting
	}
	return st
}
