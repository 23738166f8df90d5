package backup

import (
	"bytes"
	"context"
	"fmt"
	"runtime"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kinds of changes.
const (
	Changed = "changed" // other data
	Filled  = "filled"  // data where there were zeroes
	Zeroed  = "zeroed"  // zeroes where there was data
	Added   = "added"   // behind the end of the first
	Removed = "removed" // behind the end of the second
)

// Change is a range in which two backups differ.
type Change struct {
	Off  uint64 `json:"offset"` // bytes
	Len  uint64 `json:"length"` // bytes
	Kind string `json:"kind"`
}

// Diffing says how to compare.
type Diffing struct {
	// Quick compares ids alone and reads no data: ranges are of whole chunks, and what was moved or cut anew counts as changed.
	Quick bool
	// Visit is told each range, in order, neighbours of one kind joined, by one goroutine; what it returns ends the comparison.
	Visit func(Change) error
	// Progress is told how many bytes of the larger backup are behind it; it may be nil. It is called by the goroutine of Visit.
	Progress func(done uint64)
}

// Differences are sums over all ranges.
type Differences struct {
	Ranges int               `json:"ranges"`
	Bytes  uint64            `json:"bytes"`
	Kinds  map[string]uint64 `json:"kinds"`   // bytes of each
	Pages  int               `json:"regions"` // of 16 MiB that were looked into: all others have the same page
}

// Diff compares two backups, by sectors of 512 B. Directories and pages that they have in common are skipped unread, so it costs what has changed. The index must be loaded.
func Diff(ctx context.Context, r *repository.Repository, a, b *repository.Manifest, o Diffing) (Differences, error) {
	for _, m := range []*repository.Manifest{a, b} {
		if _, err := directories(m); err != nil {
			return Differences{}, fmt.Errorf("backup %s: %w", m.Name, err)
		}
	}
	reader := r.NewReader(0)
	d := &differ{o: o, reader: reader, a: newTreeCache(reader, a), b: newTreeCache(reader, b), out: Differences{Kinds: make(map[string]uint64)}}
	err := d.all(ctx)
	return d.out, err
}

// differ is one comparison.
type differ struct {
	o      Diffing
	reader *repository.Reader
	a, b   *treeCache
	out    Differences
	last   Change // that may go on
}

// regionPair is a region whose pages differ.
type regionPair struct {
	n     uint64
	a, b  block.Hash // ids of the pages
	found chan changes
}

// all looks into regions, several at once, and tells what differs in order.
func (d *differ) all(ctx context.Context) error {
	small, large := min(d.a.m.SizeBytes, d.b.m.SizeBytes), max(d.a.m.SizeBytes, d.b.m.SizeBytes)
	g, ctx := errgroup.WithContext(ctx)
	workers := runtime.GOMAXPROCS(0)
	toLook, inOrder := make(chan *regionPair), make(chan *regionPair, workers)
	g.Go(func() error {
		defer close(toLook)
		defer close(inOrder)
		return d.pairs(ctx, regions(small), func(p *regionPair) error {
			for _, to := range []chan<- *regionPair{inOrder, toLook} {
				select {
				case to <- p:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	})
	for range workers {
		g.Go(func() error {
			for p := range toLook {
				found, err := d.look(ctx, p, min(small, (p.n+1)*RegionSize))
				if err != nil {
					return err
				}
				p.found <- found
			}
			return nil
		})
	}
	g.Go(func() error {
		for p := range inOrder {
			select {
			case found := <-p.found:
				if err := d.tell(p, found); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return ctx.Err()
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if large > small {
		kind := Added
		if d.a.m.SizeBytes > small {
			kind = Removed
		}
		if err := d.add(Change{small, large - small, kind}); err != nil {
			return err
		}
	}
	return d.flush()
}

// pairs calls visit with each region whose pages differ.
func (d *differ) pairs(ctx context.Context, total uint64, visit func(*regionPair) error) error {
	for n := uint64(0); n < total; n++ {
		if i := n / pagesPerDirectory; n%pagesPerDirectory == 0 && d.a.m.Root[i] == d.b.m.Root[i] && total-n >= pagesPerDirectory {
			n += pagesPerDirectory - 1
			continue
		}
		a, err := d.a.id(ctx, n)
		if err != nil {
			return err
		}
		b, err := d.b.id(ctx, n)
		if err != nil {
			return err
		}
		if a == b && regionLength(d.a.m.SizeBytes, n) == regionLength(d.b.m.SizeBytes, n) {
			continue
		}
		if err := visit(&regionPair{n, a, b, make(chan changes, 1)}); err != nil {
			return err
		}
	}
	return nil
}

// tell takes the changes of a region.
func (d *differ) tell(p *regionPair, found changes) error {
	d.out.Pages++
	for _, c := range found {
		if err := d.add(c); err != nil {
			return err
		}
	}
	if d.o.Progress != nil {
		d.o.Progress((p.n + 1) * RegionSize)
	}
	return nil
}

// add joins a change with the one before, or tells that.
func (d *differ) add(c Change) error {
	if d.last.Len > 0 && d.last.Kind == c.Kind && d.last.Off+d.last.Len == c.Off {
		d.last.Len += c.Len
		return nil
	}
	if err := d.flush(); err != nil {
		return err
	}
	d.last = c
	return nil
}

func (d *differ) flush() error {
	c := d.last
	if d.last = (Change{}); c.Len == 0 {
		return nil
	}
	d.out.Ranges++
	d.out.Bytes += c.Len
	d.out.Kinds[c.Kind] += c.Len
	return d.o.Visit(c)
}

// look returns the changes of a region, as far as both backups have it: up to end.
func (d *differ) look(ctx context.Context, p *regionPair, end uint64) (found changes, err error) {
	a, err := d.a.page(ctx, p.n)
	if err != nil {
		return nil, err
	}
	b, err := d.b.page(ctx, p.n)
	if err != nil {
		return nil, err
	}
	begin := p.n * RegionSize
	for in, length := 0, int(end-begin); in < length; {
		ea, beginA := a.at(in)
		eb, beginB := b.at(in)
		until := min(length, beginA+int(ea.length), beginB+int(eb.length))
		x := comparison{off: begin + uint64(in), length: until - in, end: end, kind: Changed}
		zeroA, zeroB := ea.id == (block.Hash{}), eb.id == (block.Hash{})
		switch {
		case zeroA && !zeroB:
			x.kind = Filled
		case zeroB && !zeroA:
			x.kind = Zeroed
		}
		switch {
		case ea.id == eb.id && (zeroA || beginA-int(ea.at) == beginB-int(eb.at)): // the same
		case d.o.Quick:
			found.add(Change{x.off, uint64(x.length), x.kind})
		default:
			if x.a, err = d.part(ctx, ea, in-beginA, x.length); err == nil {
				x.b, err = d.part(ctx, eb, in-beginB, x.length)
			}
			if err != nil {
				return nil, fmt.Errorf("content at %d: %w", x.off, err)
			}
			x.sectors(&found)
		}
		in = until
	}
	return found, nil
}

// part returns some bytes of an extent.
func (d *differ) part(ctx context.Context, e *extent, at, length int) ([]byte, error) {
	if e.id == (block.Hash{}) {
		return make([]byte, length), nil
	}
	chunk, err := d.reader.Chunk(ctx, e.id)
	if err != nil {
		return nil, err
	}
	part, err := e.bytes(chunk)
	if err != nil {
		return nil, err
	}
	return part[at : at+length], nil
}

// comparison is a range that has other chunks in each of two backups.
type comparison struct {
	off    uint64
	length int
	end    uint64 // of what both have
	kind   string
	a, b   []byte
}

// sectors adds the sectors that differ.
func (x *comparison) sectors(found *changes) {
	for at := 0; at < x.length; {
		off := x.off + uint64(at)
		begin := off / block.SectorSize * block.SectorSize
		next := min(x.length, at+int(begin+block.SectorSize-off))
		if !bytes.Equal(x.a[at:next], x.b[at:next]) {
			found.add(Change{begin, min(block.SectorSize, x.end-begin), x.kind})
		}
		at = next
	}
}

// changes are ranges in order, which neither overlap nor, if they are of one kind, touch.
type changes []Change

// add adds a range that begins no earlier than the last one; what that has already is left out.
func (all *changes) add(c Change) {
	n := len(*all)
	if n > 0 {
		last := &(*all)[n-1]
		end := last.Off + last.Len
		if c.Off < end {
			over := end - c.Off
			if over >= c.Len {
				return
			}
			c.Off, c.Len = end, c.Len-over
		}
		if c.Off == end && c.Kind == last.Kind {
			last.Len += c.Len
			return
		}
	}
	*all = append(*all, c)
}
