package backup

import (
	"context"
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

const (
	// joinGap is how far apart, in bytes, two changes may be that are read as one.
	joinGap = 64 << 10
	// readOn is how many bytes are read at once behind a change, until a cut falls where one was before.
	readOn = 32 << 10
)

// updatedRegion is a region on its way.
type updatedRegion struct {
	n         uint64
	ready     chan struct{} // closed when the rest is there
	changed   *changedUnits // nil: nothing
	same      bool          // as in the parent, with its page, or zero
	page      block.Hash
	buffer    []byte // that data of the extents is in; goes back when they are stored
	extents   []copyExtent
	before    uint64 // bytes of the parent's region that are not zeroes
	shares    bool   // anything with the parent
	readBytes uint64
}

// updater is what one goroutine updates regions with.
type updater struct {
	*incremental
	hasher *dedup.Hasher
	cutter *cdc.Cutter
}

func (run *incremental) updateAll(ctx context.Context, toUpdate <-chan *updatedRegion) error {
	cutter, err := cdc.NewCutter(run.r.Config().Cut)
	if err != nil {
		return err
	}
	c := &updater{run, dedup.NewHasher(run.r.Keys().Domain), cutter}
	for region := range toUpdate {
		if err := c.update(ctx, region); err != nil {
			return err
		}
		close(region.ready)
	}
	return nil
}

// update finds out what a region consists of now.
func (c *updater) update(ctx context.Context, region *updatedRegion) error {
	length := regionLength(c.src.Size(), region.n)
	if region.same = region.changed == nil; region.same {
		if region.n >= c.before.total {
			return nil // the content grew, and nothing was written there
		}
		return c.takeOver(ctx, region)
	}
	old := newPage([]extent{zeroes(uint32(length))})
	if region.n < c.before.total {
		g, err := c.before.page(ctx, region.n)
		if err != nil {
			return c.parentError(ctx, err)
		}
		region.before = nonZeroOf(g.extents)
		if regionLength(c.parent.SizeBytes, region.n) == length {
			old = g
		}
	}
	if region.buffer == nil {
		region.buffer = make([]byte, RegionSize)
	}
	if c.r.Config().Has(repository.Slices) {
		u := &sliceRegion{updater: c, region: region, length: length, old: old}
		return u.all(ctx)
	}
	u := &regionUpdate{updater: c, region: region, data: region.buffer[:length], old: old, changed: region.changed}
	return u.all(ctx)
}

// takeOver gives a region the page that it has in the parent.
func (c *updater) takeOver(ctx context.Context, region *updatedRegion) (err error) {
	if region.page, err = c.before.id(ctx, region.n); err != nil {
		return c.parentError(ctx, err)
	}
	if region.page == (block.Hash{}) {
		return nil
	}
	if region.shares = true; !c.r.Index().Has(region.page) {
		return c.parentError(ctx, fmt.Errorf("page at %d: %w", region.n*RegionSize, block.ErrNotFound))
	}
	return nil
}

func (c *updater) parentError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.Join(ErrParent, err)
}

// regionUpdate walks over the old extents of one region and cuts anew where they changed, in a repository whose pages have no slices.
type regionUpdate struct {
	*updater
	region  *updatedRegion
	data    []byte // the region, of which what was read last ends at read
	read    int
	old     *page
	changed *changedUnits
}

// all makes the new extents. A chunk begins where at is. While that is where an old one began, and this did not change, it stays; else chunks are cut until one ends where an old one did.
func (u *regionUpdate) all(ctx context.Context) error {
	for at, i := 0, 0; at < len(u.data); {
		for int(u.old.starts[i]+u.old.extents[i].length) <= at {
			i++
		}
		if begin := int(u.old.starts[i]); begin == at && !u.dirty(i) {
			at += int(u.old.extents[i].length)
			u.region.add(u.old.extents[i], nil)
			continue
		}
		n, err := u.cut(ctx, at, i)
		if err != nil {
			return err
		}
		p := u.data[at : at+n]
		if at += n; dedup.IsZero(p) {
			u.region.add(zeroes(uint32(n)), nil)
		} else {
			u.region.add(wholeChunk(u.hasher.Sum(p), uint32(n)), p)
		}
	}
	return nil
}

// dirty reports whether an old extent must be read: it changed, or its chunk is not to be relied on.
func (u *regionUpdate) dirty(i int) bool {
	e, begin := &u.old.extents[i], int(u.old.starts[i])
	return u.changed.any(begin, begin+int(e.length)) || !e.isZero() && !u.w.Has(e.id)
}

// add appends an extent; zeroes that touch are one. Without data it is of the parent, or zeroes.
func (g *updatedRegion) add(e extent, data []byte) {
	if last := len(g.extents) - 1; e.isZero() && last >= 0 && g.extents[last].isZero() {
		g.extents[last].length += e.length
		return
	}
	g.extents = append(g.extents, copyExtent{e, data})
	g.shares = g.shares || data == nil && !e.isZero()
}

// cut returns the length of the chunk at an offset, which lies in old extent i.
func (u *regionUpdate) cut(ctx context.Context, at, i int) (int, error) {
	for {
		if at < u.read {
			if n := u.cutter.Next(u.data[at:u.read], uint64(at), u.read == len(u.data)); n > 0 {
				return n, nil
			}
			i = u.old.index(u.read - 1)
		}
		if err := u.readMore(ctx, at, i); err != nil {
			return 0, err
		}
	}
}

// readMore reads on, from at if that was not read yet: to the end of the changes that old extent i begins and others that are near, and a little more.
func (u *regionUpdate) readMore(ctx context.Context, at, i int) error {
	begin := max(at, u.read)
	end := begin
	for ; i < len(u.old.extents) && int(u.old.starts[i]) <= end+joinGap; i++ {
		if u.changed.any(int(u.old.starts[i]), int(u.old.starts[i]+u.old.extents[i].length)) {
			end = max(end, int(u.old.starts[i]+u.old.extents[i].length))
		}
	}
	end = min(len(u.data), end+readOn)
	for off := begin; off < end; {
		if zero := u.knownZero(off, end); zero > off {
			clear(u.data[off:zero])
			off = zero
			continue
		}
		until := u.toRead(off, end)
		if err := u.src.ReadRange(ctx, u.data[off:until], u.region.n*RegionSize+uint64(off)); err != nil {
			return fmt.Errorf("read %d B at %d: %w", until-off, u.region.n*RegionSize+uint64(off), err)
		}
		u.region.readBytes += uint64(until - off)
		off = until
	}
	u.read = end
	return nil
}

// knownZero returns up to where, from off on, there were zeroes and nothing changed.
func (u *regionUpdate) knownZero(off, end int) int {
	e, begin := u.old.at(off)
	if !e.isZero() {
		return off
	}
	return min(end, begin+int(e.length), u.changed.next(off))
}

// toRead returns up to where, from off on, there is nothing known to be zero that is worth another request.
func (u *regionUpdate) toRead(off, end int) int {
	until := off
	for until < end {
		zero := u.knownZero(until, end)
		if zero == end || zero-until >= joinGap {
			break
		}
		e, begin := u.old.at(zero)
		until = min(end, begin+int(e.length))
		if e.isZero() {
			until = min(until, (zero/changeUnit+1)*changeUnit)
		}
	}
	return until
}
