package control

import (
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// fakeDevice is an open fakeVolume.
type fakeDevice struct {
	engine   *fakeEngine
	volume   *fakeVolume
	snapshot *fakeSnapshot
	closed   bool
}

func (d *fakeDevice) Close() error {
	d.engine.mu.Lock()
	defer d.engine.mu.Unlock()
	if d.closed {
		return fmt.Errorf("device of %q: %w", d.volume.info.Name, block.ErrClosed)
	}
	d.closed = true
	d.volume.open--
	if d.snapshot != nil {
		d.snapshot.open--
	}
	return nil
}

func (d *fakeDevice) Size() uint64 {
	d.engine.mu.Lock()
	defer d.engine.mu.Unlock()
	if d.snapshot != nil {
		return d.snapshot.info.SizeBytes
	}
	return d.volume.info.SizeBytes
}

func (d *fakeDevice) ReadOnly() bool { return d.snapshot != nil }

func (d *fakeDevice) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	return d.ReadAt(context.Background(), p, off, holes)
}

func (d *fakeDevice) ReadAt(_ context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	d.engine.mu.Lock()
	defer d.engine.mu.Unlock()
	if d.closed {
		return holes, block.ErrClosed
	}
	blocks := d.volume.blocks
	if d.snapshot != nil {
		blocks = d.snapshot.blocks
	}
	for n := range p {
		p[n] = 0
	}
	for at := 0; at < len(p); {
		in := int((off + uint64(at)) % block.Size)
		n := min(len(p)-at, block.Size-in)
		if b := blocks[(off+uint64(at))/block.Size]; b != nil {
			copy(p[at:at+n], b[in:])
		} else if k := len(holes); k > 0 && holes[k-1].End() == off+uint64(at) {
			holes[k-1].Len += uint64(n)
		} else {
			holes = append(holes, block.Range{Off: off + uint64(at), Len: uint64(n)})
		}
		at += n
	}
	return holes, nil
}

func (d *fakeDevice) TryWrite(batch []block.Write, fua bool) error {
	return d.Write(context.Background(), batch, fua)
}

func (d *fakeDevice) Write(ctx context.Context, batch []block.Write, fua bool) error {
	d.engine.mu.Lock()
	defer d.engine.mu.Unlock()
	if fua {
		d.engine.fua++
	}
	switch {
	case d.engine.writeErr != nil:
		return d.engine.writeErr
	case d.closed:
		return block.ErrClosed
	case d.snapshot != nil:
		return block.ErrReadOnly
	}
	for _, w := range batch {
		if w.Off+uint64(len(w.Data)) > d.volume.info.SizeBytes {
			return block.ErrOutOfRange
		}
		for at := 0; at < len(w.Data); {
			number, in := (w.Off+uint64(at))/block.Size, int((w.Off+uint64(at))%block.Size)
			fresh := make([]byte, block.Size)
			copy(fresh, d.volume.blocks[number])
			at += copy(fresh[in:], w.Data[at:])
			d.volume.blocks[number] = fresh
		}
	}
	return ctx.Err()
}

func (d *fakeDevice) Trim(_ context.Context, r block.Range, _ bool) error {
	d.engine.mu.Lock()
	defer d.engine.mu.Unlock()
	for n := (r.Off + block.Size - 1) / block.Size; (n+1)*block.Size <= r.End(); n++ {
		delete(d.volume.blocks, n)
	}
	return nil
}

func (d *fakeDevice) Zero(context.Context, block.Range, bool, bool) error { return nil }
func (d *fakeDevice) Flush(context.Context) error                         { return nil }
func (d *fakeDevice) FlushAhead(context.Context)                          {}
func (d *fakeDevice) Prefetch(context.Context, block.Range) error         { return nil }

func (d *fakeDevice) Depths(_ context.Context, r block.Range, emit func(uint64, uint32) bool) error {
	emit(r.Len, 1)
	return nil
}

func (d *fakeDevice) ChangeBases() []string { return nil }

func (d *fakeDevice) Limited() bool                                { return false }
func (d *fakeDevice) AwaitRate(context.Context, bool, int64) error { return nil }

func (d *fakeDevice) Changes(_ context.Context, snapshot string, _ block.Range, _ func(uint64, bool) bool) error {
	return fmt.Errorf("snapshot %q: %w", snapshot, block.ErrNotFound)
}
