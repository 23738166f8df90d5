package nbd

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// memDevice is a Device over a byte slice, with knobs for what a real one does now and then.
type memDevice struct {
	mu       sync.RWMutex
	data     []byte
	readOnly bool

	slow     atomic.Bool                          // the Try methods return ErrWouldBlock
	contexts []string                             // offered
	holes    bool                                 // report zeroed 4 KiB blocks as holes
	fail     func(op string, r block.Range) error // may fail any call; nil for never
	gate     chan struct{}                        // the slow calls wait until it is closed; nil for never
	entered  chan string                          // told of each slow call before it waits; nil for never

	flushes, trims, zeroes, prefetches, batches, largestBatch atomic.Int64
	fuaWrites, noHoles                                        atomic.Int64
}

func newMemDevice(size int) *memDevice {
	return &memDevice{data: make([]byte, size), contexts: allContexts}
}

// fill sets every byte. Tests that talk to the device through other programs need its lock for the race detector to see an order.
func (d *memDevice) fill(with func(i int) byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := range d.data {
		d.data[i] = with(i)
	}
}

func (d *memDevice) Size() uint64 { return uint64(len(d.data)) }

func (d *memDevice) ReadOnly() bool { return d.readOnly }

func (d *memDevice) try(op string, r block.Range) error {
	if d.slow.Load() {
		return block.ErrWouldBlock
	}
	return d.mayFail(op, r)
}

func (d *memDevice) mayFail(op string, r block.Range) error {
	if d.fail == nil {
		return nil
	}
	return d.fail(op, r)
}

func (d *memDevice) wait(ctx context.Context, op string, r block.Range) error {
	if d.entered != nil {
		d.entered <- op
	}
	if d.gate != nil {
		select {
		case <-d.gate:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return d.mayFail(op, r)
}

func (d *memDevice) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if err := d.try("read", block.Range{Off: off, Len: uint64(len(p))}); err != nil {
		return holes, err
	}
	return d.read(p, off, holes), nil
}

func (d *memDevice) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	if err := d.wait(ctx, "read", block.Range{Off: off, Len: uint64(len(p))}); err != nil {
		return holes, err
	}
	return d.read(p, off, holes), nil
}

func (d *memDevice) read(p []byte, off uint64, holes []block.Range) []block.Range {
	d.mu.RLock()
	defer d.mu.RUnlock()
	copy(p, d.data[off:])
	if d.holes {
		holes = zeroBlocks(p, off, holes)
	}
	return holes
}

// zeroBlocks appends the runs of blocks of p that are zero, cut to p, as a volume reports what it does not store.
func zeroBlocks(p []byte, off uint64, holes []block.Range) []block.Range {
	for at := off; at < off+uint64(len(p)); {
		end := min((at/block.Size+1)*block.Size, off+uint64(len(p)))
		if isZero(p[at-off : end-off]) {
			if n := len(holes); n > 0 && holes[n-1].End() == at {
				holes[n-1].Len += end - at
			} else {
				holes = append(holes, block.Range{Off: at, Len: end - at})
			}
		}
		at = end
	}
	return holes
}

func isZero(p []byte) bool {
	for _, b := range p {
		if b != 0 {
			return false
		}
	}
	return true
}

func (d *memDevice) TryWrite(batch []Write, fua bool) error {
	if fua {
		return block.ErrWouldBlock
	}
	for _, w := range batch {
		if err := d.try("write", block.Range{Off: w.Off, Len: uint64(len(w.Data))}); err != nil {
			return err
		}
	}
	d.apply(batch, fua)
	return nil
}

func (d *memDevice) Write(ctx context.Context, batch []Write, fua bool) error {
	for _, w := range batch {
		if err := d.wait(ctx, "write", block.Range{Off: w.Off, Len: uint64(len(w.Data))}); err != nil {
			return err
		}
	}
	d.apply(batch, fua)
	return nil
}

func (d *memDevice) apply(batch []Write, fua bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, w := range batch {
		copy(d.data[w.Off:], w.Data)
	}
	d.batches.Add(1)
	if n := int64(len(batch)); n > d.largestBatch.Load() {
		d.largestBatch.Store(n)
	}
	if fua {
		d.fuaWrites.Add(int64(len(batch)))
	}
}

func (d *memDevice) Trim(ctx context.Context, r block.Range, fua bool) error {
	d.trims.Add(1)
	return d.clear(ctx, "trim", r)
}

func (d *memDevice) Zero(ctx context.Context, r block.Range, noHole, fua bool) error {
	d.zeroes.Add(1)
	if noHole {
		d.noHoles.Add(1)
	}
	return d.clear(ctx, "zero", r)
}

func (d *memDevice) clear(ctx context.Context, op string, r block.Range) error {
	if err := d.wait(ctx, op, r); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[r.Off:r.End()])
	return nil
}

func (d *memDevice) Flush(ctx context.Context) error {
	d.flushes.Add(1)
	return d.wait(ctx, "flush", block.Range{})
}

func (d *memDevice) Prefetch(ctx context.Context, r block.Range) error {
	d.prefetches.Add(1)
	return d.wait(ctx, "cache", r)
}

// MetaContexts implements StatusReporter.
func (d *memDevice) MetaContexts() []string { return d.contexts }

// BlockStatus implements StatusReporter block by block, which leaves the joining to the server.
func (d *memDevice) BlockStatus(ctx context.Context, name string, r block.Range, emit func(uint64, uint32) bool) error {
	if err := d.wait(ctx, "status", r); err != nil {
		return err
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	for at := r.Off; at < uint64(len(d.data)); {
		end := min((at/block.Size+1)*block.Size, uint64(len(d.data)))
		status, err := d.status(name, at, d.data[at:end])
		if err != nil {
			return err
		}
		if !emit(end-at, status) {
			break
		}
		at = end
	}
	return nil
}

// status is that of a part of one block.
func (d *memDevice) status(name string, off uint64, p []byte) (uint32, error) {
	switch name {
	case ContextAllocation:
		if isZero(p) {
			return StatusHole | StatusZero, nil
		}
		return 0, nil
	case ContextDepth:
		if isZero(p) {
			return 0, nil
		}
		return 1 + uint32(off>>20&1), nil // every other MiB comes from a layer below
	case ContextDirtyPrefix + "since-monday":
		return uint32(off >> 16 & 1), nil // every other 64 KiB
	case ContextHeat:
		return uint32(off >> 18), nil
	}
	return 0, fmt.Errorf("context %q: %w", name, block.ErrNotFound)
}

// allContexts are those that memDevice can tell.
var allContexts = []string{ContextAllocation, ContextDepth, ContextDirtyPrefix + "since-monday", ContextHeat}

// table is Exports over a map. It counts what is acquired and not released.
type table struct {
	mu      sync.Mutex
	exports map[string]Export
	held    map[string]int
}

func newTable(exports ...Export) *table {
	t := &table{exports: make(map[string]Export), held: make(map[string]int)}
	for _, e := range exports {
		t.exports[e.Name] = e
	}
	return t
}

func (t *table) Acquire(name string) (Export, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, ok := t.exports[name]
	if !ok {
		return Export{}, nil, fmt.Errorf("export %q: %w", name, block.ErrNotFound)
	}
	if e.Device == nil {
		return Export{}, nil, fmt.Errorf("export %q: %w", name, block.ErrLocked)
	}
	t.held[name]++
	return e, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.held[name]--
	}, nil
}

func (t *table) List() []Export {
	t.mu.Lock()
	defer t.mu.Unlock()
	var es []Export
	for _, e := range t.exports {
		es = append(es, e)
	}
	return es
}

func (t *table) heldOf(name string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[name]
}
