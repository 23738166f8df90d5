package control

import (
	"context"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// told is what the engine says of itself, as state wants it.
func (e *fakeEngine) told() (s blockstore.Stats, r blockstore.Redundancy, d []blockstore.Damage) {
	e.mu.Lock()
	defer e.mu.Unlock()
	s = e.statsLocked()
	if e.state != nil {
		e.state(&s, &r, &d)
	}
	return s, r, d
}

func (e *fakeEngine) Stats() blockstore.Stats {
	s, _, _ := e.told()
	return s
}

func (e *fakeEngine) statsLocked() blockstore.Stats {
	return blockstore.Stats{
		Volumes: len(e.volumes), NonZeroBytes: 300, UniqueBytes: 100, StoredBytes: 50, LogCapBytes: 200, LogUsedBytes: 50,
		DestageLag: 1500 * time.Millisecond, GuestWrittenBytes: 10, DiskWrittenBytes: 15,
		Caches: []blockstore.CacheStats{{Name: "frames", Hits: 3, Misses: 1}},
		Memory: []blockstore.MemoryPart{{Name: "overlay", UsedBytes: 1 << 20, BudgetBytes: 2 << 20}},
	}
}

func (e *fakeEngine) CollectGarbage(ctx context.Context, progress func(blockstore.SettleProgress)) error {
	progress(blockstore.SettleProgress{Phase: "reclaim", DoneBytes: 1, LeftBytes: 3})
	if e.collecting != nil {
		return e.collecting(ctx)
	}
	return nil
}
func (e *fakeEngine) Audit(_ context.Context, progress func(done, total uint64)) (blockstore.AuditReport, error) {
	progress(1, 4)
	return blockstore.AuditReport{Missing: 1}, fmt.Errorf("audit: 1 chunk is missing: %w", block.ErrCorrupt)
}
func (e *fakeEngine) PauseGC() (blockstore.GCStatus, error) {
	e.gcPaused.Store(true)
	return e.GC(), nil
}
func (e *fakeEngine) ResumeGC() (blockstore.GCStatus, error) {
	e.gcPaused.Store(false)
	return e.GC(), nil
}
func (e *fakeEngine) GC() blockstore.GCStatus {
	st := blockstore.GCStatus{State: blockstore.GCIdle, HeldUnusedBytes: 7, BytesPerSecond: 1 << 20, RequestsPerSecond: 10, Audits: 1, Audit: &blockstore.AuditReport{Chunks: 5}}
	if e.gcPaused.Load() {
		st.State = blockstore.GCPaused
	}
	return st
}

func (e *fakeEngine) StartScrub(findOnly bool) (blockstore.ScrubStatus, error) {
	return blockstore.ScrubStatus{State: blockstore.ScrubRunning, Run: 1, FindOnly: findOnly}, nil
}
func (e *fakeEngine) PauseScrub() (blockstore.ScrubStatus, error) {
	return blockstore.ScrubStatus{State: blockstore.ScrubPaused, Run: 1}, nil
}
func (e *fakeEngine) ResumeScrub() (blockstore.ScrubStatus, error) {
	return blockstore.ScrubStatus{State: blockstore.ScrubRunning, Run: 1}, nil
}
func (e *fakeEngine) CancelScrub() (blockstore.ScrubStatus, error) {
	return blockstore.ScrubStatus{State: blockstore.ScrubCancelled, Run: 1}, nil
}
func (e *fakeEngine) RebuildIndex() error { return nil }
func (e *fakeEngine) Index() blockstore.IndexInfo {
	return blockstore.IndexInfo{Indexed: 9, Chunks: 9, Doubles: 1}
}
func (e *fakeEngine) ProbeDisks()                       {}
func (e *fakeEngine) Redundancy() blockstore.Redundancy { _, r, _ := e.told(); return r }
func (e *fakeEngine) ReplaceDisk(old, path string) error {
	return fmt.Errorf("the store has one disk: %w", block.ErrInvalid)
}
func (e *fakeEngine) Scrub() blockstore.ScrubStatus { return blockstore.ScrubStatus{} }
func (e *fakeEngine) Repair(context.Context) error  { return nil }
func (e *fakeEngine) Damages() []blockstore.Damage  { _, _, d := e.told(); return d }
func (e *fakeEngine) LostChunks(context.Context, block.ChunkID) ([]blockstore.LostChunk, bool, error) {
	return nil, false, nil
}
func (e *fakeEngine) Heal(context.Context, []blockstore.ChunkBytes) ([]block.ChunkID, error) {
	return nil, nil
}

func (e *fakeEngine) Explain(ctx context.Context, volume string, _ func(string) bool, progress func(blockstore.ExplainProgress)) (*blockstore.Explanation, error) {
	progress(blockstore.ExplainProgress{DoneBytes: 1, TotalBytes: 2})
	if e.explaining != nil {
		if err := e.explaining(ctx); err != nil {
			return nil, err
		}
	}
	return &blockstore.Explanation{Volume: volume, SampledOneIn: 1}, nil
}

func (e *fakeEngine) Settle(_ context.Context, progress func(blockstore.SettleProgress)) error {
	progress(blockstore.SettleProgress{Phase: "destage", DoneBytes: 1, LeftBytes: 1})
	if e.settling != nil {
		return e.settling()
	}
	return nil
}

func (e *fakeEngine) SettleCold(ctx context.Context, progress func(blockstore.SettleProgress)) error {
	e.mu.Lock()
	e.colder++
	e.mu.Unlock()
	return e.Settle(ctx, progress)
}
