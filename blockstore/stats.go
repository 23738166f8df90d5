package blockstore

import (
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Stats returns counters and sizes. It reads nothing from any device.
func (s *Store) Stats() Stats {
	c := *s.counted.Load()
	u := s.log.Usage()
	st := Stats{
		UniqueBytes: c.Unique, SharedBytes: c.Shared,
		Space: SpaceState(s.space.state.Load()), FreeBytes: uint64(s.space.free.Load()),
		LogCapBytes: uint64(u.Cap), LogUsedBytes: uint64(u.Charged), StreamUsedBytes: uint64(u.Live - u.Charged), StreamRoomBytes: uint64(s.opts.StreamBytes), Syncs: u.Syncs, Corruptions: s.corruptions.Load(),
		UndestagedBytes: uint64(s.undestaged()),
		HeldUnusedBytes: s.heldUnused(),
	}
	checkpoints := uint64(0)
	for _, r := range s.segments.all() {
		switch n := uint64(erasure.SidecarSize(r.Parity, int64(r.Size))); {
		case r.State != segmentSealed:
		case s.stripes != nil && s.stripes.Striped(r.Placement[0].Key):
			st.ParityBytes, st.GuardedBytes = st.ParityBytes+r.Size*uint64(s.opts.Stripe.Parity)/uint64(max(1, s.opts.Stripe.Data)), st.GuardedBytes+r.Size
		case n > 0:
			st.ParityBytes, st.GuardedBytes = st.ParityBytes+n, st.GuardedBytes+r.Size
		default:
			st.UnguardedBytes += r.Size
		}
		if r.Class == segment.Cold {
			st.ColdBytes += r.LiveRaw
		}
		if isMetadata(&r) {
			checkpoints += r.Size
		} else {
			st.StoredBytes += r.Size
		}
	}
	st.StoredBytes -= min(st.StoredBytes, st.HeldUnusedBytes)
	if usage, err := s.diskUsage(); err == nil {
		st.ReserveBytes = uint64(s.reserve(usage.TotalBytes))
	}
	metrics := s.db.Metrics()
	index := s.Index()
	st.MetadataBytes = metrics.DiskSpaceUsage() + index.DiskBytes + checkpoints
	st.DiskWrittenBytes = uint64(u.Appended) + uint64(s.bytesOut.Load()) + metrics.WAL.BytesWritten + index.WrittenBytes
	for i := range metrics.Levels {
		st.DiskWrittenBytes += metrics.Levels[i].TableBytesFlushed + metrics.Levels[i].TableBytesCompacted
	}
	k := &s.keeper.counts
	st.DamageFound, st.DamageMended, st.DamageLost, st.InlineRepairs = k.found.Load(), k.mended.Load(), k.lost.Load(), k.inline.Load()+s.historian.set.InlineRepairs()
	st.HistoryParityBytes = s.historyParity("")
	st.HistoryBytes, st.HistoryDropped = uint64(s.historian.set.Bytes()), s.historian.dropped.Load()
	st.SecondCopyBytes = s.keeper.seconds.bytes()
	st.DiskWrittenBytes += uint64(k.written.Load())
	cool := s.Cooling()
	st.CoolingBytes, st.CooledBytes, st.SimilarBytes, st.SimilarSaved, st.SimilarWorkerFor = cool.LeftBytes, cool.MovedBytes, cool.SimilarBytes, cool.SavedBytes, cool.Sketching
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
	frames := s.chunks.frames.Stats()
	part := func(name string, used, budget int64) {
		st.Memory = append(st.Memory, MemoryPart{name, uint64(max(0, used)), uint64(budget)})
	}
	pages := s.pages.Stats()
	part("overlay", s.budget.Used(), s.plan.overlay)
	part("frames", frames.Bytes, s.plan.frames)
	part("pages", pages.Bytes, s.plan.pages)
	part("metadata cache", pebbleCache, s.plan.pebble)
	part("metadata tables", memtables, 3*s.plan.memtbl)
	part("index filter", int64(s.index.shown.Load().FilterBytes), s.plan.hints)
	part("moments", s.historian.budget.Used(), s.historian.momentsMost())
	part("destage buffers", s.destager.buffers.held.Load(), int64(s.plan.regions)*block.RegionSize)
	st.Caches = append(st.Caches,
		CacheStats{"frames", frames.Hits, frames.Misses},
		CacheStats{"pages", uint64(pages.Hits), uint64(pages.Misses)})
}

// appliedSeqNow is the sequence number of the last control record in the tree.
func (s *Store) appliedSeqNow() uint64 {
	s.tree.RLock()
	defer s.tree.RUnlock()
	return s.appliedSeq
}

// IndexBytes is what so many chunks and mentions of them in maps need: memory, for the filters that dedup asks first, and rows on disk, before compression of these. The memory is taken from the engine's budget.
func IndexBytes(chunks, mentions uint64) (memory, disk uint64) {
	const (
		rows    = 9 + chunkRowSize + 17 + 8 // chunk row and hint, with their keys
		mention = 40                        // an extent of a page
	)
	return hintRoom(chunks) + chunks/8, chunks*rows + mentions*mention
}
