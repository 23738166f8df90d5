package blockstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// restoreWindow is how much of a volume is looked at at once, and restorePiece how much is written at once, in bytes.
const (
	restoreWindow = 1 << 30
	restorePiece  = 1 << 20
)

// RestorePoint makes a volume of its own that begins as an open moment: a clone of the root below it, into which what was written since is written. It costs what was written between the two. The volume is durable when
// it returns; a failure leaves nothing of it, a death a volume of that name that is not whole, so the caller gives it a name of its own until then. progress, if not nil, is told bytes of the volume.
func (s *Store) RestorePoint(ctx context.Context, d *Device, name string, progress func(done, total uint64)) (VolumeInfo, error) {
	fail := func(err error) (VolumeInfo, error) {
		return VolumeInfo{}, fmt.Errorf("restore a moment of volume %d to %q: %w", d.v.id, name, err)
	}
	if d.point == nil {
		return fail(fmt.Errorf("no moment is open: %w", block.ErrInvalid))
	}
	if err := CheckName(name); err != nil {
		return fail(err)
	}
	root := d.point.root
	_, err := s.op(nil, func() (*op, error) {
		if s.names[name] != nil {
			return nil, fmt.Errorf("volume %q: %w", name, block.ErrExists)
		}
		return &op{Kind: opClone, Volume: block.VolumeID(s.nextVolume), Node: root.id, UUID: block.UUID(uuid.New()), Size: root.size, Mode: WriteMode(d.v.mode.Load()), Cut: d.v.cut, Name: name}, nil
	})
	if err != nil {
		return fail(err)
	}
	if err := s.fillFrom(ctx, d, name, progress); err != nil {
		return fail(errors.Join(err, s.DeleteVolume(context.Background(), name)))
	}
	return s.Volume(name)
}

// fillFrom brings what a moment has over its root into a volume.
func (s *Store) fillFrom(ctx context.Context, d *Device, name string, progress func(done, total uint64)) (err error) {
	size := d.Size()
	if size != d.point.root.size {
		if err := s.ResizeVolume(ctx, name, size); err != nil {
			return err
		}
	}
	to, err := s.OpenDevice(name, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	buf := make([]byte, restorePiece)
	var runs []overlay.Run
	var sums []uint32
	for at := uint64(0); at < size; at += restoreWindow {
		first, count := blocksOf(at, min(restoreWindow, size-at))
		runs, sums = d.point.layer.LookupInto(runs[:0], sums[:0], first, count)
		for _, run := range runs {
			r := block.Range{Off: run.Block * block.Size}
			r.Len = min(run.N*block.Size, size-r.Off)
			switch run.Kind {
			case overlay.Data:
				err = copyRange(ctx, to, d, r, buf)
			case overlay.Zero:
				err = to.Zero(ctx, r, false, false)
			}
			if err != nil {
				return err
			}
		}
		if progress != nil {
			progress(min(size, at+restoreWindow), size)
		}
	}
	return to.Flush(ctx)
}

// copyRange copies a range from one device to the other.
func copyRange(ctx context.Context, to, from *Device, r block.Range, buf []byte) error {
	for r.Len > 0 {
		p := buf[:min(r.Len, uint64(len(buf)))]
		if _, err := from.ReadAt(ctx, p, r.Off, nil); err != nil {
			return err
		}
		if err := to.Write(ctx, []block.Write{{Off: r.Off, Data: p}}, false); err != nil {
			return err
		}
		r.Off, r.Len = r.Off+uint64(len(p)), r.Len-uint64(len(p))
	}
	return nil
}
