package api

import (
	"github.com/hyper-nixos/hyper-nixos/api/generated"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control"
)

func volumeOf(v control.Volume) generated.Volume {
	mode := generated.WriteModeWriteback
	if v.Mode == blockstore.ModeDurable.String() {
		mode = generated.WriteModeDurable
	}
	var limits *generated.VolumeLimits
	if l := v.Limits; !l.Unlimited() {
		limits = &generated.VolumeLimits{
			ReadIops: l.ReadIOPS, WriteIops: l.WriteIOPS, ReadBytes: l.ReadBytes, WriteBytes: l.WriteBytes, BurstSeconds: l.Burst.Seconds(),
		}
	}
	var quota *generated.VolumeQuota
	if q := v.Quota; !q.None() {
		quota = &generated.VolumeQuota{ReferencedBytes: q.ReferencedBytes, ReservedBytes: q.ReservedBytes, UniqueBytes: q.UniqueBytes, State: v.QuotaState}
		if use := v.Unique; !use.MeasuredAt.IsZero() {
			quota.Unique = &use
		}
	}
	return generated.Volume{
		Name: v.Name, UUID: v.UUID, SizeBytes: v.SizeBytes, Chunking: v.Chunking, Mode: mode, CreatedAt: v.CreatedAt,
		SnapshotCount: v.SnapshotCount, Bitmaps: append([]string{}, v.Bitmaps...), OriginVolume: v.OriginVolume, OriginSnapshot: v.OriginSnapshot, Attachment: v.Attachment,
		Limits: limits, UndestagedBytes: v.UndestagedBytes,
		Quota: quota, ReferencedBytes: v.ReferencedBytes, Restoring: v.Restoring,
	}
}

func scheduleOf(s control.Schedule) generated.Schedule {
	out := generated.Schedule{Target: s.Target, EverySeconds: uint64(s.Every.Seconds()), Keep: &s.Keep, NextRun: s.NextRun.UTC(), Error: s.Error}
	if !s.LastRun.IsZero() {
		out.LastRun = &s.LastRun
	}
	return out
}

func modeText(m generated.WriteMode) string {
	if m == generated.WriteModeDurable {
		return blockstore.ModeDurable.String()
	}
	return blockstore.ModeWriteback.String()
}

func statsOf(s blockstore.Stats) generated.Stats {
	out := generated.Stats{
		Volumes: s.Volumes, Snapshots: s.Snapshots,
		LogicalBytes: s.LogicalBytes, NonZeroBytes: s.NonZeroBytes, UniqueBytes: s.UniqueBytes, SharedBytes: s.SharedBytes,
		StoredBytes: s.StoredBytes, HeldUnusedBytes: s.HeldUnusedBytes, MetadataBytes: s.MetadataBytes,
		ParityBytes: s.ParityBytes, GuardedBytes: s.GuardedBytes, UnguardedBytes: s.UnguardedBytes,
		ColdBytes: s.ColdBytes, CoolingBytes: s.CoolingBytes, CooledBytes: s.CooledBytes,
		SimilarBytes: s.SimilarBytes, SimilarSavedBytes: s.SimilarSaved, SimilarSeconds: s.SimilarWorkerFor.Seconds(),
		DamageFound: s.DamageFound, DamageMended: s.DamageMended, DamageLost: s.DamageLost, InlineRepairs: s.InlineRepairs, SecondCopyBytes: s.SecondCopyBytes, HistoryBytes: s.HistoryBytes, HistoryParityBytes: s.HistoryParityBytes, HistoryDropped: s.HistoryDropped,
		DedupRatio: ratio(s.NonZeroBytes, s.UniqueBytes), CompressionRatio: ratio(s.UniqueBytes, s.StoredBytes),
		Space: s.Space.String(), FreeBytes: s.FreeBytes, ReserveBytes: s.ReserveBytes,
		LogCapBytes: s.LogCapBytes, LogUsedBytes: s.LogUsedBytes, StreamUsedBytes: s.StreamUsedBytes, StreamRoomBytes: s.StreamRoomBytes, LogFill: ratio(s.LogUsedBytes, s.LogCapBytes),
		UndestagedBytes: s.UndestagedBytes, DestageLagSeconds: s.DestageLag.Seconds(),
		GuestReadBytes: s.GuestReadBytes, GuestWrittenBytes: s.GuestWrittenBytes, DiskWrittenBytes: s.DiskWrittenBytes,
		Syncs: s.Syncs, WriteAmplification: ratio(s.DiskWrittenBytes, s.GuestWrittenBytes),
		Caches: make([]generated.Cache, 0, len(s.Caches)), Memory: make([]generated.MemoryPart, 0, len(s.Memory)),
	}
	for _, c := range s.Caches {
		out.Caches = append(out.Caches, generated.Cache{Name: c.Name, Hits: c.Hits, Misses: c.Misses, HitRate: ratio(c.Hits, c.Hits+c.Misses)})
	}
	for _, m := range s.Memory {
		out.Memory = append(out.Memory, generated.MemoryPart{Name: m.Name, UsedBytes: m.UsedBytes, BudgetBytes: m.BudgetBytes})
	}
	return out
}

// ratio is 0 where there is nothing to compare with.
func ratio(a, b uint64) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
