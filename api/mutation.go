package api

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/hyper-nixos/hyper-nixos/api/generated"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/control"
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

func (m mutation) ResizeVolume(ctx context.Context, name string, sizeBytes uint64, shrink bool) (generated.Volume, error) {
	v, err := m.control.ResizeVolume(ctx, name, sizeBytes, shrink)
	return volumeOf(v), err
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
	})
	return generated.Attached{Attachment: &a, Warning: warning}, err
}

func (m mutation) DetachVolume(ctx context.Context, name string, force bool) (string, error) {
	return name, m.control.Detach(ctx, name, force)
}

func (m mutation) CreateSnapshot(ctx context.Context, volume, name string) (control.Snapshot, error) {
	return m.control.CreateSnapshot(ctx, volume, name)
}

func (m mutation) DeleteSnapshot(ctx context.Context, volume, name string) (string, error) {
	return name, m.control.DeleteSnapshot(ctx, volume, name)
}

func (m mutation) Rollback(ctx context.Context, volume, snapshot string) (generated.Volume, error) {
	if err := m.control.Rollback(ctx, volume, snapshot); err != nil {
		return generated.Volume{}, err
	}
	v, err := m.control.Volume(volume)
	return volumeOf(v), err
}

func (m mutation) Settle(context.Context) (control.Settling, error) { return m.control.StartSettle() }

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
