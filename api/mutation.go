package api

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/generated"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
)

type mutation struct{ *resolver }

func (m mutation) CreateVolume(ctx context.Context, in generated.CreateVolumeInput) (generated.Volume, error) {
	v, err := m.control.CreateVolume(ctx, control.VolumeSpec{
		Name: in.Name, SizeBytes: in.SizeBytes, Chunking: in.Chunking, Mode: modeText(in.Mode),
	})
	return volumeOf(v), err
}

func (m mutation) RenameVolume(ctx context.Context, name, newName string) (generated.Volume, error) {
	v, err := m.control.RenameVolume(ctx, name, newName)
	return volumeOf(v), err
}

func (m mutation) ResizeVolume(ctx context.Context, name string, spec control.ResizeSpec) (generated.Volume, error) {
	v, err := m.control.ResizeVolume(ctx, name, spec)
	return volumeOf(v), err
}

func (m mutation) SetVolumeLimits(ctx context.Context, name string, limits control.LimitsChange) (generated.Volume, error) {
	v, err := m.control.SetLimits(ctx, name, limits)
	return volumeOf(v), err
}

func (m mutation) ClearVolumeLimits(ctx context.Context, name string) (generated.Volume, error) {
	v, err := m.control.ClearLimits(ctx, name)
	return volumeOf(v), err
}

func (m mutation) SetVolumeQuota(ctx context.Context, name string, quota control.QuotaChange) (generated.Volume, error) {
	v, err := m.control.SetQuota(ctx, name, quota)
	return volumeOf(v), err
}

func (m mutation) ClearVolumeQuota(ctx context.Context, name string) (generated.Volume, error) {
	v, err := m.control.ClearQuota(ctx, name)
	return volumeOf(v), err
}

func (m mutation) SetVolumeHistory(ctx context.Context, name string, windowSeconds float64, budgetBytes uint64, everySeconds, flushesSeconds, minutesSeconds float64) (*control.History, error) {
	p, err := historyPolicy(windowSeconds, budgetBytes, everySeconds, flushesSeconds, minutesSeconds)
	if err != nil {
		return nil, err
	}
	return m.control.SetHistory(ctx, name, p)
}

// historyPolicy is the policy that those values mean; without a window, none.
func historyPolicy(windowSeconds float64, budgetBytes uint64, everySeconds, flushesSeconds, minutesSeconds float64) (blockstore.HistoryPolicy, error) {
	p := blockstore.HistoryPolicy{BudgetBytes: budgetBytes}
	for _, age := range []struct {
		of      string
		seconds float64
		to      *time.Duration
	}{{"window", windowSeconds, &p.Window}, {"every write", everySeconds, &p.Every}, {"flushes", flushesSeconds, &p.Flushes}, {"minutes", minutesSeconds, &p.Minutes}} {
		if !(age.seconds >= 0 && age.seconds <= blockstore.MaxHistoryWindow.Seconds()) {
			return p, fmt.Errorf("%s of %v seconds: want 0 to %v: %w", age.of, age.seconds, blockstore.MaxHistoryWindow.Seconds(), block.ErrInvalid)
		}
		*age.to = time.Duration(age.seconds * float64(time.Second))
	}
	if windowSeconds == 0 && (everySeconds > 0 || flushesSeconds > 0 || minutesSeconds > 0) { // none would give all of it up
		return p, fmt.Errorf("ages without a window, which is how far back history goes: %w", block.ErrInvalid)
	}
	switch {
	case windowSeconds == 0:
		p = blockstore.HistoryPolicy{}
	case p.None(): // less than a nanosecond
		return p, fmt.Errorf("window of %v seconds, which is none: %w", windowSeconds, block.ErrInvalid)
	}
	return p, nil
}

func (m mutation) MarkHistory(ctx context.Context, volume, label string) (control.HistoryPoint, error) {
	return m.control.MarkHistory(ctx, volume, label)
}

func (m mutation) AttachHistory(ctx context.Context, volume, at string) (control.HistoryMoment, error) {
	return m.control.AttachMoment(ctx, volume, at)
}

func (m mutation) DetachHistory(ctx context.Context, export string, force bool) (string, error) {
	return export, m.control.DetachMoment(ctx, export, force)
}

func (m mutation) RestoreHistory(ctx context.Context, volume, at, newName string, attach bool) (control.HistoryMoment, error) {
	return m.control.RestoreMoment(ctx, volume, at, newName, attach)
}

func (m mutation) DeleteVolume(ctx context.Context, name string) (string, error) {
	return name, m.control.DeleteVolume(ctx, name)
}

func (m mutation) CloneVolume(ctx context.Context, name string, snapshot *string, newName string) (generated.Volume, error) {
	from := ""
	if snapshot != nil {
		from = *snapshot
	}
	v, err := m.control.CloneVolume(ctx, name, from, newName)
	return volumeOf(v), err
}

func (m mutation) AttachVolume(ctx context.Context, in generated.AttachVolumeInput) (generated.Attached, error) {
	a, warning, err := m.control.Attach(ctx, control.AttachSpec{
		Volume: in.Name, OwnSocket: in.SocketPerVolume, Owner: in.Owner, Mode: in.Mode,
		TCP: in.TCP, TCPWriteback: in.TCPWriteback, Clients: in.Clients, ReadOnly: in.ReadOnly, Inject: in.Inject, Force: in.Force,
	})
	return generated.Attached{Attachment: &a, Warning: warning}, err
}

func (m mutation) DetachVolume(ctx context.Context, name string, force bool) (string, error) {
	return name, m.control.Detach(ctx, name, force)
}

func (m mutation) CreateSnapshot(ctx context.Context, volume, name string) (control.Snapshot, error) {
	return m.control.CreateSnapshot(ctx, volume, name)
}

func (m mutation) CreateSnapshots(ctx context.Context, snapshots []generated.SnapshotNameInput) ([]control.Snapshot, error) {
	names := make([]blockstore.StateName, 0, len(snapshots))
	for _, s := range snapshots {
		names = append(names, blockstore.StateName{Volume: s.Volume, Snapshot: s.Name})
	}
	return m.control.CreateSnapshots(ctx, names)
}

func (m mutation) SetVolumeGroup(_ context.Context, name string, volumes []string) (control.VolumeGroup, error) {
	return m.control.SetGroup(name, volumes)
}

func (m mutation) SetSchedule(_ context.Context, target string, everySeconds uint64, keep retention.Rules) (generated.Schedule, error) {
	if everySeconds > math.MaxInt64/uint64(time.Second) {
		return generated.Schedule{}, fmt.Errorf("every %d seconds is too long: %w", everySeconds, block.ErrInvalid)
	}
	s, err := m.control.SetSchedule(control.ScheduleSpec{Target: target, Every: time.Duration(everySeconds) * time.Second, Keep: keep})
	return scheduleOf(s), err
}

func (m mutation) DeleteSchedule(_ context.Context, target string) (string, error) {
	return target, m.control.DeleteSchedule(target)
}

func (m mutation) DeleteVolumeGroup(_ context.Context, name string) (string, error) {
	return name, m.control.DeleteGroup(name)
}

func (m mutation) CreateGroupSnapshot(ctx context.Context, group, name string) ([]control.Snapshot, error) {
	return m.control.CreateGroupSnapshot(ctx, group, name)
}

func (m mutation) RenameSnapshot(ctx context.Context, volume, name, newName string) (control.Snapshot, error) {
	return m.control.RenameSnapshot(ctx, volume, name, newName)
}

func (m mutation) ProtectSnapshot(ctx context.Context, volume, name string) (control.Snapshot, error) {
	return m.control.ProtectSnapshot(ctx, volume, name, true)
}

func (m mutation) UnprotectSnapshot(ctx context.Context, volume, name string) (control.Snapshot, error) {
	return m.control.ProtectSnapshot(ctx, volume, name, false)
}

func (m mutation) DeleteSnapshot(ctx context.Context, volume, name string) (string, error) {
	return name, m.control.DeleteSnapshot(ctx, volume, name)
}

func (m mutation) AddBitmap(ctx context.Context, volume, name string) (control.Bitmap, error) {
	return m.control.AddBitmap(ctx, volume, name)
}

func (m mutation) ClearBitmap(ctx context.Context, volume, name string) (control.Bitmap, error) {
	return m.control.ClearBitmap(ctx, volume, name)
}

func (m mutation) RemoveBitmap(ctx context.Context, volume, name string) (string, error) {
	return name, m.control.RemoveBitmap(ctx, volume, name)
}

func (m mutation) Rollback(ctx context.Context, volume, snapshot string) (generated.Volume, error) {
	if err := m.control.Rollback(ctx, volume, snapshot); err != nil {
		return generated.Volume{}, err
	}
	v, err := m.control.Volume(volume)
	return volumeOf(v), err
}

func (m mutation) Settle(_ context.Context, cold bool) (control.Settling, error) {
	return m.control.StartSettle(cold)
}

func (m mutation) CollectGarbage(context.Context) (control.Garbage, error) {
	return m.control.CollectGarbage()
}

func (m mutation) AuditGarbage(context.Context) (control.Garbage, error) {
	return m.control.AuditGarbage()
}

func (m mutation) CancelGarbage(context.Context) (control.Garbage, error) {
	return m.control.CancelGarbage()
}

func (m mutation) PauseGarbage(context.Context) (control.Garbage, error) {
	return m.control.PauseGarbage()
}

func (m mutation) ResumeGarbage(context.Context) (control.Garbage, error) {
	return m.control.ResumeGarbage()
}

func (m mutation) Explain(_ context.Context, volume *string) (control.Explaining, error) {
	name := ""
	if volume != nil {
		name = *volume
	}
	return m.control.StartExplain(name)
}

func (m mutation) CancelExplain(context.Context) (control.Explaining, error) {
	return m.control.CancelExplain(), nil
}

func (m mutation) StartScrub(_ context.Context, findOnly bool) (control.Scrub, error) {
	return m.control.StartScrub(findOnly)
}

func (m mutation) PauseScrub(context.Context) (control.Scrub, error) { return m.control.PauseScrub() }

func (m mutation) ResumeScrub(context.Context) (control.Scrub, error) { return m.control.ResumeScrub() }

func (m mutation) RebuildIndex(context.Context) (control.Index, error) {
	return m.control.RebuildIndex()
}

func (m mutation) CancelScrub(context.Context) (control.Scrub, error) { return m.control.CancelScrub() }

func (m mutation) ReplaceDisk(_ context.Context, old, path string) (control.Disks, error) {
	return m.control.ReplaceDisk(old, path)
}

func (m mutation) Repair(ctx context.Context) ([]control.Damage, error) { return m.control.Repair(ctx) }

func (m mutation) CreateToken(_ context.Context, in generated.CreateTokenInput) (generated.CreatedToken, error) {
	if in.LifetimeSeconds > math.MaxInt64/uint64(time.Second) {
		return generated.CreatedToken{}, fmt.Errorf("lifetime of %d seconds is too long: %w", in.LifetimeSeconds, block.ErrInvalid)
	}
	token, secret, err := m.control.Tokens().Create(in.Name, in.Scope, time.Duration(in.LifetimeSeconds)*time.Second)
	if err != nil {
		return generated.CreatedToken{}, err
	}
	return generated.CreatedToken{
		Name: token.Name, Scope: token.Scope, ExpiresAt: token.ExpiresAt, Token: secret, Warning: m.door.warning(),
	}, nil
}

func (m mutation) RevokeToken(_ context.Context, name string) (string, error) {
	return name, m.control.Tokens().Revoke(name)
}
