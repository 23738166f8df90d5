package blockstore

import (
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// Device is an open volume or snapshot, as a server exports it. It keeps its volume from being deleted or rolled back until Close. Its methods are safe for any number of
// goroutines.
type Device struct {
	v *Volume
	n *node // of a snapshot; nil means the volume's head, whichever that is

	point *point // of a moment of history, else nil

	streams streams // sequential readers that met a device
}

// OpenDevice opens a volume, or one of its snapshots when snapshot is not "".
func (s *Store) OpenDevice(volume, snapshot string) (*Device, error) {
	s.tree.Lock()
	defer s.tree.Unlock()
	if s.closed.Load() {
		return nil, block.ErrClosed
	}
	v, err := s.volumeLocked(volume)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	d := &Device{v: v}
	if snapshot != "" {
		if d.n = s.snapshotLocked(v, snapshot); d.n == nil {
			return nil, fmt.Errorf("open snapshot %q of volume %q: %w", snapshot, volume, block.ErrNotFound)
		}
		d.n.users++
	}
	v.users++
	return d, nil
}

// Close lets the volume go. The device must not be used afterwards.
func (d *Device) Close() error {
	s := d.v.s
	d.streams.running.Wait()
	if d.point != nil {
		d.point.drop(d.v)
		return nil
	}
	s.tree.Lock()
	defer s.tree.Unlock()
	d.v.users--
	if d.n != nil {
		d.n.users--
	}
	return nil
}

// Size is the length in bytes.
func (d *Device) Size() uint64 {
	if d.n != nil {
		return d.n.size
	}
	return d.v.size.Load()
}

// ReadOnly reports whether this is a snapshot.
func (d *Device) ReadOnly() bool { return d.n != nil }

func (d *Device) node() *node {
	if d.n != nil {
		return d.n
	}
	return d.v.head.Load()
}

func (d *Device) check(what string, off, n uint64) error {
	if size := d.Size(); off > size || n > size-off {
		return fmt.Errorf("%s volume %d at %d+%d B of %d B: %w", what, d.v.id, off, n, size, block.ErrOutOfRange)
	}
	return nil
}

// TryReadAt reads what is in memory, or returns block.ErrWouldBlock.
func (d *Device) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	return d.read(context.Background(), p, off, holes, true)
}

// ReadAt fills p with the bytes at off and appends to holes what is known to be empty.
func (d *Device) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	return d.read(ctx, p, off, holes, false)
}

func (d *Device) read(ctx context.Context, p []byte, off uint64, holes []block.Range, try bool) ([]block.Range, error) {
	if err := d.check("read", off, uint64(len(p))); err != nil {
		return holes, err
	}
	limited := d.n == nil && len(p) > 0
	if limited && try && !d.v.mayPass(false, int64(len(p))) {
		return holes, block.ErrWouldBlock
	}
	if limited && !try {
		if err := d.v.pass(ctx, false, 1, int64(len(p))); err != nil {
			return holes, err
		}
	}
	if !try {
		d.advance(off, uint64(len(p)), true)
	} else if d.streams.active.Load() {
		d.advance(off, uint64(len(p)), false)
	}
	felt := &d.v.s.destager.feedback
	began := felt.begin()
	holes, err := d.v.s.read(ctx, d.node(), p, off, holes, try)
	if err == nil {
		felt.end(began)
		if limited && try {
			d.v.passed(false, 1, int64(len(p)))
		}
		d.v.counters.reads.Add(1)
		d.v.counters.readBytes.Add(int64(len(p)))
	}
	return holes, err
}

// TryWrite applies a batch without waiting, or returns block.ErrWouldBlock having applied nothing.
func (d *Device) TryWrite(batch []block.Write, fua bool) error {
	if d.n != nil {
		return block.ErrReadOnly
	}
	if fua {
		return block.ErrWouldBlock
	}
	return d.v.tryWrite(batch)
}

// Write applies a batch in order; with fua it is durable when Write returns.
func (d *Device) Write(ctx context.Context, batch []block.Write, fua bool) error {
	if d.n != nil {
		return block.ErrReadOnly
	}
	return d.v.write(ctx, batch, fua)
}

// Trim discards the whole blocks of a range.
func (d *Device) Trim(ctx context.Context, r block.Range, fua bool) error {
	if d.n != nil {
		return block.ErrReadOnly
	}
	return d.v.discard(ctx, journal.Trim, r.Off, r.Len, false, fua)
}

// Zero makes a range read as zeroes. Volumes are thin: noHole reserves nothing.
func (d *Device) Zero(ctx context.Context, r block.Range, _, fua bool) error {
	if d.n != nil {
		return block.ErrReadOnly
	}
	return d.v.discard(ctx, journal.Zero, r.Off, r.Len, true, fua)
}

// Flush makes all effects whose calls had returned durable.
func (d *Device) Flush(ctx context.Context) error {
	if d.n != nil {
		return nil
	}
	felt := &d.v.s.destager.feedback
	began := felt.begin()
	err := d.v.flush(ctx)
	felt.end(began)
	return err
}

// FlushAhead is Flush for a caller that expects to be asked for one. The log remembers a failure, so the Flush to come reports it.
func (d *Device) FlushAhead(ctx context.Context) { _ = d.Flush(ctx) }

// Limited implements nbd.Paced: a volume may have limits, a snapshot has none.
func (d *Device) Limited() bool { return d.n == nil && d.v.limits.Load() != nil }

// AwaitRate implements nbd.Paced.
func (d *Device) AwaitRate(ctx context.Context, write bool, n int64) error {
	if d.n != nil {
		return nil
	}
	return d.v.awaitRate(ctx, write, n)
}

// maxPrefetch bounds what one Prefetch reads, in bytes: it is a hint, and a client can name a whole volume with one request.
const maxPrefetch = 32 << 20

// Prefetch reads a range into the caches, its first maxPrefetch bytes at most.
func (d *Device) Prefetch(ctx context.Context, r block.Range) error {
	if err := d.check("prefetch", r.Off, r.Len); err != nil {
		return err
	}
	const step = 1 << 20
	r.Len = min(r.Len, maxPrefetch)
	buf := make([]byte, min(r.Len, step))
	for r.Len > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(r.Len, step)
		if d.n == nil {
			if err := d.v.pass(ctx, false, 1, int64(n)); err != nil {
				return err
			}
		}
		if err := d.v.s.readNode(ctx, d.node(), buf[:n], r.Off); err != nil {
			return err
		}
		r.Off, r.Len = r.Off+n, r.Len-n
	}
	return nil
}
