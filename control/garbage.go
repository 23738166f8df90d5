package control

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Garbage is how garbage collection is doing. Counts are since hvd was started.
type Garbage struct {
	State             string // "idle", "collecting", "auditing" or "paused"
	HeldUnusedBytes   uint64
	RegionsInPieces   int    // that will be cut anew when they have cooled
	Victims           int    // segments that are worth emptying now
	VictimBytes       uint64 // of these, what is dead
	WaitingFiles      int    // of segments that were given up, for an audit or a checkpoint
	WaitingBytes      uint64
	SegmentsFreed     uint64
	FreedBytes        uint64
	MovedBytes        uint64
	BytesPerSecond    uint64 // budget
	RequestsPerSecond uint64 // budget
	PutOff            []PutOffSegment
	Audits            uint64 // in the life of the store
	Audit             *Audit // the last one
	Job               GarbageJob
}

// PutOffSegment is a segment that could not be emptied and is tried again later.
type PutOffSegment struct {
	Segment uint64
	Tries   int
	Until   time.Time
	Reason  string
}

// Audit is what an audit found.
type Audit struct {
	EndedAt          time.Time
	TookSeconds      float64
	Passed           bool
	Error            string // why it could not be done; else empty
	Chunks           uint64
	References       uint64
	Unreachable      uint64
	UnreachableBytes uint64
	Missing          uint64
	WrongReferences  bool
	WrongSegments    uint64
	Passes           int
	MemoryBytes      uint64
	FilesProven      uint64
	FilesKept        uint64
}

// GarbageJob is a collection or an audit that somebody asked for.
type GarbageJob struct {
	Kind      string // "run" or "audit"; empty: there was none since hvd was started
	Run       uint64 // its number, from 1 on
	Running   bool
	Phase     string
	DoneBytes uint64
	LeftBytes uint64
	Error     string // why it ended badly; else empty
}

// collecting runs one job at a time.
type collecting struct {
	mu     sync.Mutex
	job    GarbageJob
	cancel context.CancelFunc // of the job that runs
}

// Garbage returns how garbage collection is doing.
func (c *Control) Garbage() Garbage {
	st := c.engine.GC()
	g := Garbage{
		State: string(st.State), HeldUnusedBytes: st.HeldUnusedBytes, RegionsInPieces: st.RegionsInPieces, Victims: st.Victims, VictimBytes: st.VictimBytes, WaitingFiles: st.WaitingFiles, WaitingBytes: st.WaitingBytes,
		SegmentsFreed: st.SegmentsFreed, FreedBytes: st.FreedBytes, MovedBytes: st.MovedBytes, BytesPerSecond: uint64(st.BytesPerSecond), RequestsPerSecond: uint64(st.RequestsPerSecond),
		PutOff: []PutOffSegment{}, Audits: st.Audits,
	}
	for _, p := range st.PutOff {
		g.PutOff = append(g.PutOff, PutOffSegment{Segment: uint64(p.Segment), Tries: p.Tries, Until: p.Until, Reason: p.Reason})
	}
	if a := st.Audit; a != nil {
		g.Audit = &Audit{
			EndedAt: a.EndedAt, TookSeconds: a.Took.Seconds(), Passed: a.Passed(), Error: a.Error, Chunks: a.Chunks, References: a.References, Unreachable: a.Unreachable, UnreachableBytes: a.UnreachableBytes,
			Missing: a.Missing, WrongReferences: a.WrongReferences, WrongSegments: a.WrongSegments, Passes: a.Passes, MemoryBytes: a.MemoryBytes, FilesProven: a.FilesProven, FilesKept: a.FilesKept,
		}
	}
	c.collect.mu.Lock()
	defer c.collect.mu.Unlock()
	g.Job = c.collect.job
	return g
}

// CollectGarbage begins to give back all that is dead now. A job that runs is block.ErrInUse.
func (c *Control) CollectGarbage() (Garbage, error) {
	return c.startGarbage("run", func(ctx context.Context, at func(string, uint64, uint64)) error {
		return c.engine.CollectGarbage(ctx, func(p blockstore.SettleProgress) { at(p.Phase, p.DoneBytes, p.LeftBytes) })
	})
}

// AuditGarbage begins to prove that nothing which is about to be deleted is needed. A job that runs is block.ErrInUse.
func (c *Control) AuditGarbage() (Garbage, error) {
	return c.startGarbage("audit", func(ctx context.Context, at func(string, uint64, uint64)) error {
		_, err := c.engine.Audit(ctx, func(done, total uint64) { at("audit", done, total-done) })
		return err
	})
}

func (c *Control) startGarbage(kind string, work func(ctx context.Context, at func(phase string, done, left uint64)) error) (Garbage, error) {
	g := &c.collect
	g.mu.Lock()
	if g.job.Running {
		g.mu.Unlock()
		return Garbage{}, fmt.Errorf("garbage collection is busy with %q: %w", g.job.Kind, block.ErrInUse)
	}
	done, err := c.begin()
	if err != nil {
		g.mu.Unlock()
		return Garbage{}, err
	}
	ctx, cancel := context.WithCancel(c.background)
	g.job, g.cancel = GarbageJob{Kind: kind, Run: g.job.Run + 1, Running: true, Phase: "start"}, cancel
	g.mu.Unlock()
	go func() {
		defer done()
		defer cancel()
		err := work(ctx, func(phase string, done, left uint64) {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.job.Phase, g.job.DoneBytes, g.job.LeftBytes = phase, done, left
		})
		if err != nil && !errors.Is(err, context.Canceled) {
			c.log.Error("garbage collection failed", "job", kind, "error", err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		g.job.Running = false
		switch {
		case errors.Is(err, context.Canceled):
			g.job.Error = "it was cancelled"
		case err != nil:
			g.job.Error = err.Error()
		}
	}()
	return c.Garbage(), nil
}

// CancelGarbage ends the job that runs, after the batch it is at; what it did stays done. Without one it changes nothing.
func (c *Control) CancelGarbage() (Garbage, error) {
	c.collect.mu.Lock()
	if c.collect.cancel != nil {
		c.collect.cancel()
	}
	c.collect.mu.Unlock()
	return c.Garbage(), nil
}

// PauseGarbage stops that space is given back, across restarts, and ends the job that runs.
func (c *Control) PauseGarbage() (Garbage, error) {
	if _, err := c.engine.PauseGC(); err != nil {
		return Garbage{}, err
	}
	return c.CancelGarbage()
}

// ResumeGarbage ends a pause.
func (c *Control) ResumeGarbage() (Garbage, error) {
	_, err := c.engine.ResumeGC()
	return c.Garbage(), err
}
