package backup

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/nbd"
)

// What a Device has in flight at most.
const (
	deviceFetches  = 16 // frames that are read from the repository at once, readahead included
	requestFetches = 8  // of these for one request
)

// Device is the content of a backup as a read-only disk: what it takes is read from the repository when it is asked for, checked, and kept for a while. A read that needs what is damaged
// or missing fails with block.ErrCorrupt or block.ErrNotFound, and only such a read.
type Device struct {
	m       *repository.Manifest
	reader  *repository.Reader
	tree    *treeCache
	fetches *semaphore.Weighted
	ahead   *readahead
}

var (
	_ nbd.Device         = (*Device)(nil)
	_ nbd.StatusReporter = (*Device)(nil)
)

// NewDevice opens a backup as a disk that keeps at most cacheBytes of frames in memory, 0 for repository.DefaultReaderBytes, and at most 24 MiB of pages besides. The index must be
// loaded. Close ends its goroutines.
func NewDevice(r *repository.Repository, m *repository.Manifest, cacheBytes int) (*Device, error) {
	if _, err := directories(m); err != nil {
		return nil, err
	}
	if cacheBytes <= 0 {
		cacheBytes = repository.DefaultReaderBytes
	}
	reader := r.NewReader(cacheBytes)
	d := &Device{m: m, reader: reader, tree: newTreeCache(reader, m), fetches: semaphore.NewWeighted(deviceFetches)}
	d.ahead = newReadahead(uint64(cacheBytes/4), d.prefetch)
	return d, nil
}

// Close ends readahead. Nothing may be asked for after it.
func (d *Device) Close() error {
	d.ahead.close()
	return nil
}

// Size implements nbd.Device.
func (d *Device) Size() uint64 { return d.m.SizeBytes }

// ReadOnly implements nbd.Device.
func (d *Device) ReadOnly() bool { return true }

// piece is what a read takes of one extent.
type piece struct {
	extent        // as much of it as is read
	to     []byte // of the read
	off    uint64 // in the content
}

// split calls visit with the pieces that a read of p at off consists of. of returns the extents of a region.
func (d *Device) split(p []byte, off uint64, of func(n uint64) (*page, error), visit func(piece) error) error {
	if off > d.m.SizeBytes || uint64(len(p)) > d.m.SizeBytes-off {
		return fmt.Errorf("read %d B at %d of %d B: %w", len(p), off, d.m.SizeBytes, block.ErrOutOfRange)
	}
	for len(p) > 0 {
		n := off / RegionSize
		in := int(off - n*RegionSize)
		length := min(len(p), regionLength(d.m.SizeBytes, n)-in)
		g, err := of(n)
		if err != nil {
			return err
		}
		for end := in + length; in < end; {
			e, begin := g.at(in)
			take := min(end, begin+int(e.length)) - in
			if err := visit(piece{e.slice(in-begin, take), p[:take], off}); err != nil {
				return err
			}
			p, off, in = p[take:], off+uint64(take), in+take
		}
	}
	return nil
}

// TryReadAt implements nbd.Device: it answers from memory, or with holes.
func (d *Device) TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	cached := func(n uint64) (*page, error) {
		if g := d.tree.cached(n); g != nil {
			return g, nil
		}
		return nil, block.ErrWouldBlock
	}
	d.ahead.note(off, uint64(len(p)))
	err := d.split(p, off, cached, func(x piece) error {
		if x.isZero() {
			holes = appendHole(holes, x)
			return nil
		}
		chunk, ok := d.reader.Cached(x.id)
		if !ok {
			return block.ErrWouldBlock
		}
		if b, err := x.bytes(chunk); err != nil {
			return block.ErrWouldBlock // ReadAt says what is wrong
		} else {
			copy(x.to, b)
		}
		return nil
	})
	return holes, err
}

// ReadAt implements nbd.Device.
func (d *Device) ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	d.ahead.note(off, uint64(len(p)))
	return d.read(ctx, p, off, holes)
}

// ReadOnce is ReadAt for one who reads all of it in order by itself, so that nothing need be read ahead.
func (d *Device) ReadOnce(ctx context.Context, p []byte, off uint64) error {
	_, err := d.read(ctx, p, off, nil)
	return err
}

func (d *Device) read(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error) {
	var missing []block.Hash
	pages := func(n uint64) (*page, error) { return d.tree.page(ctx, n) }
	err := d.split(p, off, pages, func(x piece) error {
		if x.isZero() {
			holes = appendHole(holes, x)
		} else if _, ok := d.reader.Cached(x.id); !ok {
			missing = append(missing, x.id)
		}
		return nil
	})
	if err != nil {
		return holes, err
	}
	if len(missing) > 1 {
		d.load(ctx, missing)
	}
	return holes, d.split(p, off, pages, func(x piece) error {
		if x.isZero() {
			return nil
		}
		chunk, err := d.chunk(ctx, x.id)
		if err == nil {
			chunk, err = x.bytes(chunk)
		}
		if err != nil {
			return fmt.Errorf("content at %d: %w", x.off, err)
		}
		copy(x.to, chunk)
		return nil
	})
}

// NextData returns the first offset from off on that is not known to be zero, or the size.
func (d *Device) NextData(ctx context.Context, off uint64) (uint64, error) {
	for off < d.m.SizeBytes {
		n := off / RegionSize
		begin, length := n*RegionSize, regionLength(d.m.SizeBytes, n)
		g, err := d.tree.page(ctx, n)
		if err != nil {
			return 0, err
		}
		for in := int(off - begin); in < length; {
			e, start := g.at(in)
			if !e.isZero() {
				return begin + uint64(in), nil
			}
			in = start + int(e.length)
		}
		off = begin + uint64(length)
	}
	return d.m.SizeBytes, nil
}

// appendHole zeroes a piece and adds it to holes.
func appendHole(holes []block.Range, x piece) []block.Range {
	clear(x.to)
	if last := len(holes) - 1; last >= 0 && holes[last].End() == x.off {
		holes[last].Len += uint64(len(x.to))
		return holes
	}
	return append(holes, block.Range{Off: x.off, Len: uint64(len(x.to))})
}

// chunk reads a chunk, while not too many others are being read.
func (d *Device) chunk(ctx context.Context, id block.Hash) ([]byte, error) {
	if chunk, ok := d.reader.Cached(id); ok {
		return chunk, nil
	}
	if err := d.fetches.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer d.fetches.Release(1)
	return d.reader.Chunk(ctx, id)
}

// load brings the frames of chunks into memory, several at once. Neighbours share frames, so it asks for each frame by one chunk, or all would wait for the first.
func (d *Device) load(ctx context.Context, ids []block.Hash) {
	var g errgroup.Group
	g.SetLimit(requestFetches)
	for _, id := range d.reader.OnePerFrame(ids) {
		g.Go(func() error {
			if err := d.fetches.Acquire(ctx, 1); err != nil {
				return err
			}
			defer d.fetches.Release(1)
			d.reader.Load(ctx, id)
			return nil
		})
	}
	_ = g.Wait() // who reads the chunks learns what is wrong
}

// prefetch brings the frames of a range into memory, as far as they can be had.
func (d *Device) prefetch(ctx context.Context, r block.Range) {
	end := min(r.End(), d.m.SizeBytes)
	for off := r.Off; off < end; {
		n := off / RegionSize
		begin, until := int(off-n*RegionSize), int(min(end-n*RegionSize, RegionSize))
		off = (n + 1) * RegionSize
		g, err := d.tree.page(ctx, n)
		if err != nil {
			continue
		}
		var ids []block.Hash
		for in := begin; in < until; {
			e, start := g.at(in)
			if in = start + int(e.length); e.isZero() {
				continue
			}
			if _, ok := d.reader.Cached(e.id); !ok {
				ids = append(ids, e.id)
			}
		}
		d.load(ctx, ids)
	}
}

// Prefetch implements nbd.Device, for as much as the cache can hold.
func (d *Device) Prefetch(_ context.Context, r block.Range) error {
	r.Len = min(r.Len, d.ahead.window)
	d.ahead.want(r)
	return nil
}

// TryWrite implements nbd.Device.
func (d *Device) TryWrite([]nbd.Write, bool) error { return block.ErrReadOnly }

// Write implements nbd.Device.
func (d *Device) Write(context.Context, []nbd.Write, bool) error { return block.ErrReadOnly }

// Trim implements nbd.Device.
func (d *Device) Trim(context.Context, block.Range, bool) error { return block.ErrReadOnly }

// Zero implements nbd.Device.
func (d *Device) Zero(context.Context, block.Range, bool, bool) error { return block.ErrReadOnly }

// Flush implements nbd.Device: nothing is ever written.
func (d *Device) Flush(context.Context) error { return nil }

// MetaContexts implements nbd.StatusReporter.
func (d *Device) MetaContexts() []string { return []string{nbd.ContextAllocation} }

// statusRegions bounds the regions that one block status looks at.
const statusRegions = 256

// BlockStatus implements nbd.StatusReporter. A region whose page cannot be read is told as data: who reads it learns why.
func (d *Device) BlockStatus(ctx context.Context, metaContext string, r block.Range, emit func(length uint64, status uint32) bool) error {
	if metaContext != nbd.ContextAllocation {
		return fmt.Errorf("metadata context %s: %w", metaContext, block.ErrNotFound)
	}
	s := &statusRun{at: r.Off, size: d.m.SizeBytes, emit: emit, more: true}
	first := r.Off / RegionSize
	for n := first; n*RegionSize < r.End() && n-first < statusRegions && s.more; n++ {
		begin, length := n*RegionSize, regionLength(d.m.SizeBytes, n)
		g, err := d.tree.page(ctx, n)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.data(begin + uint64(length))
			continue
		}
		for in := int(s.at - begin); in < length && s.more; {
			e, start := g.at(in)
			in = start + int(e.length)
			if e.isZero() {
				s.hole(begin+uint64(start), begin+uint64(in))
			}
		}
		s.data(begin + uint64(length))
	}
	return nil
}

// statusRun tells statuses in order.
type statusRun struct {
	at   uint64 // what is told ends here
	size uint64 // of the device
	emit func(length uint64, status uint32) bool
	more bool
}

// data tells that everything up to end is data.
func (s *statusRun) data(end uint64) { s.tell(end, 0) }

// hole tells a hole, as far as it covers whole sectors, and what lies before it as data.
func (s *statusRun) hole(begin, end uint64) {
	begin = (begin + block.SectorSize - 1) / block.SectorSize * block.SectorSize
	if end < s.size {
		end = end / block.SectorSize * block.SectorSize
	}
	if begin < end {
		s.tell(begin, 0)
		s.tell(end, nbd.StatusHole|nbd.StatusZero)
	}
}

func (s *statusRun) tell(end uint64, status uint32) {
	if s.more && end > s.at {
		s.more = s.emit(end-s.at, status)
		s.at = end
	}
}
