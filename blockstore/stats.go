package blockstore

import (
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Stats returns counters and sizes. It reads nothing from any device.
func (s *Store) Stats() Stats {
	c := *s.counted.Load()
	u := s.log.Usage()
	st := Stats{
		UniqueBytes: c.Unique, SharedBytes: c.Shared,
		Space: SpaceState(s.space.state.Load()), FreeBytes: uint64(s.space.free.Load()),
		LogCapBytes: uint64(u.Cap), LogUsedBytes: uint64(u.Live),
		UndestagedBytes: uint64(s.undestaged()),
		HeldUnusedBytes: s.heldUnused(),
	}
	for _, r := range s.segments.all() {
		st.StoredBytes += r.Size
	}
	st.StoredBytes -= min(st.StoredBytes, st.HeldUnusedBytes)
	if usage, err := s.fs.GetDiskUsage(s.opts.Dir); err == nil {
		st.ReserveBytes = uint64(s.reserve(usage.TotalBytes))
	}
	metrics := s.db.Metrics()
	st.MetadataBytes = metrics.DiskSpaceUsage()
	st.DiskWrittenBytes = uint64(u.Appended) + uint64(s.bytesOut.Load()) + metrics.WAL.BytesWritten
	for i := range metrics.Levels {
		st.DiskWrittenBytes += metrics.Levels[i].TableBytesFlushed + metrics.Levels[i].TableBytesCompacted
	}
	s.treeStats(&st)
	s.lagStats(&st)
	s.memoryStats(&st, metrics.BlockCache.Size, int64(metrics.MemTable.Size))
	return st
}

func (s *Store) treeStats(st *Stats) {
	s.tree.RLock()
	defer s.tree.RUnlock()
	st.Volumes = len(s.volumes)
	for _, v := range s.volumes {
		st.LogicalBytes += v.size.Load()
		st.NonZeroBytes += v.head.Load().mappedLocked()
		st.GuestReadBytes += uint64(v.counters.readBytes.Load())
		st.GuestWrittenBytes += uint64(v.counters.writeBytes.Load())
	}
	for _, n := range s.nodes {
		if n.visibleLocked() {
			st.Snapshots++
			st.NonZeroBytes += n.mappedLocked()
		}
	}
}

// lagStats says how old the oldest data is that is in the log alone.
func (s *Store) lagStats(st *Stats) {
	if st.UndestagedBytes == 0 {
		return
	}
	oldest := s.oldestLayerPos(s.log.NextPos())
	st.DestageLag = s.destager.ageOf(oldest, time.Now())
}

func (s *Store) memoryStats(st *Stats, pebbleCache, memtables int64) {
	frames := s.chunks.frames
	part := func(name string, used, budget int64) {
		st.Memory = append(st.Memory, MemoryPart{name, uint64(max(0, used)), uint64(budget)})
	}
	pages := s.pages.Stats()
	part("overlay", s.budget.Used(), s.plan.overlay)
	part("frames", int64(frames.WeightedSize()), s.plan.frames)
	part("pages", pages.Bytes, s.plan.pages)
	part("metadata cache", pebbleCache, s.plan.pebble)
	part("metadata tables", memtables, 3*s.plan.memtbl)
	part("destage buffers", int64(len(s.destager.works))*block.RegionSize, int64(len(s.destager.works))*block.RegionSize)
	fs := s.frameStats.Snapshot()
	st.Caches = append(st.Caches,
		CacheStats{"frames", fs.Hits, fs.Misses},
		CacheStats{"pages", uint64(pages.Hits), uint64(pages.Misses)})
}

// appliedSeqNow is the sequence number of the last control record in the tree.
func (s *Store) appliedSeqNow() uint64 {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return s.appliedSeq
}
