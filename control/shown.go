package control

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
	"github.com/hyper-nixos/hyper-nixos/nbd/inject"
)

// shown is a device as clients see it: with its status, flushed ahead, and with whatever its attachment wants of it.
type shown interface {
	nbd.Device
	nbd.StatusReporter
	nbd.AheadFlusher
	nbd.Paced
}

// show dresses an open device as its attachment wants it. The faults are nil where there are none.
func show(device Device, record attachmentRecord) (shown, *inject.Device, error) {
	view, faults := shown(reporting{device}), (*inject.Device)(nil)
	if record.Inject != "" {
		parsed, err := inject.Parse(record.Inject)
		if err != nil {
			return nil, nil, err
		}
		if faults, err = inject.New(view, parsed); err != nil {
			return nil, nil, err
		}
		view = faults
	}
	if record.ReadOnly {
		view = readOnly{view}
	}
	return view, faults, nil
}

// readOnly refuses every change.
type readOnly struct{ shown }

var errReadOnly = fmt.Errorf("attached read-only: %w", block.ErrReadOnly)

// ReadOnly implements nbd.Device.
func (readOnly) ReadOnly() bool { return true }

// TryWrite implements nbd.Device.
func (readOnly) TryWrite([]nbd.Write, bool) error { return errReadOnly }

// Write implements nbd.Device.
func (readOnly) Write(context.Context, []nbd.Write, bool) error { return errReadOnly }

// Trim implements nbd.Device.
func (readOnly) Trim(context.Context, block.Range, bool) error { return errReadOnly }

// Zero implements nbd.Device.
func (readOnly) Zero(context.Context, block.Range, bool, bool) error { return errReadOnly }

// fenced refuses every change from the moment on when the volume's replica is known to be a primary, also of clients that are connected.
type fenced struct {
	shown
	is *atomic.Bool
}

var errFencedOff = fmt.Errorf("its replica was promoted: %w", block.ErrReadOnly)

// ReadOnly implements nbd.Device.
func (f fenced) ReadOnly() bool { return f.is.Load() || f.shown.ReadOnly() }

// TryWrite implements nbd.Device.
func (f fenced) TryWrite(batch []nbd.Write, fua bool) error {
	if f.is.Load() {
		return errFencedOff
	}
	return f.shown.TryWrite(batch, fua)
}

// Write implements nbd.Device.
func (f fenced) Write(ctx context.Context, batch []nbd.Write, fua bool) error {
	if f.is.Load() {
		return errFencedOff
	}
	return f.shown.Write(ctx, batch, fua)
}

// Trim implements nbd.Device.
func (f fenced) Trim(ctx context.Context, r block.Range, fua bool) error {
	if f.is.Load() {
		return errFencedOff
	}
	return f.shown.Trim(ctx, r, fua)
}

// Zero implements nbd.Device.
func (f fenced) Zero(ctx context.Context, r block.Range, noHole, fua bool) error {
	if f.is.Load() {
		return errFencedOff
	}
	return f.shown.Zero(ctx, r, noHole, fua)
}

// durable makes every change as if the client had asked for FUA.
type durable struct{ shown }

// TryWrite implements nbd.Device.
func (d durable) TryWrite(batch []nbd.Write, _ bool) error { return d.shown.TryWrite(batch, true) }

// Write implements nbd.Device.
func (d durable) Write(ctx context.Context, batch []nbd.Write, _ bool) error {
	return d.shown.Write(ctx, batch, true)
}

// Trim implements nbd.Device.
func (d durable) Trim(ctx context.Context, r block.Range, _ bool) error {
	return d.shown.Trim(ctx, r, true)
}

// Zero implements nbd.Device.
func (d durable) Zero(ctx context.Context, r block.Range, noHole, _ bool) error {
	return d.shown.Zero(ctx, r, noHole, true)
}
