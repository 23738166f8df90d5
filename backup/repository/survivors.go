package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Whoever has a writer's keys can make packs and runs that claim chunks which they do not hold. So before a pack is marked or deleted because what backups need of it lies elsewhere too, the
// other place is read.

// claimed is a chunk of such a pack that a backup needs, and that is said to lie elsewhere, too.
type claimed struct {
	id    block.Hash
	own   place // in this pack; its number is of no use for a pack that the index does not know
	other place // that the index goes by
}

// surviving returns those of the packs whose chunks, as far as backups need them, can be read from other packs. The others are needed: their chunks count as theirs from now on.
func (p *pruning) surviving(ctx context.Context, names []block.Hash, phase string) (given []block.Hash, err error) {
	total, done := uint64(0), uint64(0)
	for _, name := range names {
		total += uint64(p.object(name).size)
	}
	d := p.r.NewReader(0)
	sharing, all := p.r.index.sharing()
	for _, name := range names {
		var needed []claimed
		if number, known := p.r.index.number(name.String()); !known || all || sharing[number] { // else each of its chunks lies there alone, and none is needed
			if needed, err = p.claims(ctx, name); err != nil {
				return nil, err
			}
		}
		kept := false
		for i := range needed {
			alone, err := p.judge(ctx, d, name, &needed[i])
			if err != nil {
				return nil, err
			}
			kept = kept || alone
		}
		if !kept {
			given = append(given, name)
		}
		done += uint64(p.object(name).size)
		p.o.tell(phase, done, total)
	}
	return given, nil
}

// claims returns the chunks of a pack that backups need and that the index finds elsewhere, in the order of where that is.
func (p *pruning) claims(ctx context.Context, name block.Hash) (needed []claimed, err error) {
	key := packKey(name.String())
	_, _, frames, err := p.r.readDirectory(ctx, key, p.object(name).size)
	switch {
	case errors.Is(err, block.ErrCorrupt):
		p.o.warn(key, err)
		if frames, err = p.listedFrames(ctx, name); err != nil {
			return nil, err
		}
	case errors.Is(err, block.ErrNotFound): // another prune was faster
		return nil, nil
	case err != nil:
		return nil, err
	}
	number, known := p.r.index.number(name.String())
	for i := range frames {
		off := uint32(0)
		for _, c := range frames[i].Chunks {
			own := place{pack: number, frame: uint32(i), off: off, raw: c.Raw}
			off += c.Raw
			if other, ok := p.r.index.needed(c.ID); ok && (!known || other.pack != number) {
				needed = append(needed, claimed{c.ID, own, other})
			}
		}
	}
	slices.SortStableFunc(needed, func(a, b claimed) int {
		return cmp.Or(cmp.Compare(a.other.pack, b.other.pack), cmp.Compare(a.other.frame, b.other.frame))
	})
	return needed, nil
}

// listedFrames is what runs say of a pack, none if none does.
func (p *pruning) listedFrames(ctx context.Context, name block.Hash) ([]pack.Frame, error) {
	number, known := p.r.index.number(name.String())
	for key, numbers := range p.runs {
		if !known || !slices.Contains(numbers, number) {
			continue
		}
		packs, err := p.r.readRun(ctx, key)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		for i := range packs {
			if packs[i].name == name {
				return packs[i].frames, nil
			}
		}
	}
	return nil, nil
}

// judge reads a chunk of a pack from its other places. It reports whether none has it, but the pack itself: then it counts as lying there.
func (p *pruning) judge(ctx context.Context, d *Reader, name block.Hash, c *claimed) (alone bool, err error) {
	others := p.r.index.allPlaces(c.id)
	slices.SortStableFunc(others, func(a, b place) int { // one that lasts is better
		return cmp.Compare(p.rank(a), p.rank(b))
	})
	if n := slices.Index(others, c.other); n > 0 {
		others = slices.Insert(slices.Delete(others, n, n+1), 0, c.other)
	}
	for _, other := range others {
		if p.r.index.pack(other.pack).name == name.String() || int(other.pack) >= len(p.packs) || !p.whole(other.pack) {
			continue
		}
		good, err := holds(ctx, d, c.id, other)
		if err != nil {
			return false, err
		}
		if good {
			p.settle(c.id, other)
			return false, nil
		}
	}
	own, err := p.ownPlace(ctx, name, c)
	if err != nil {
		return false, err
	}
	good, err := holds(ctx, d, c.id, own)
	if err != nil || !good { // it is lost, whatever becomes of this pack
		return false, err
	}
	p.settle(c.id, own)
	return true, nil
}

func (p *pruning) rank(a place) int {
	if info := p.r.index.pack(a.pack); info.marked {
		return 1
	}
	return 0
}

// holds reads a chunk from a place. That it is not there is no error; that it cannot be found out is one.
func holds(ctx context.Context, d *Reader, id block.Hash, at place) (bool, error) {
	for {
		_, err := d.at(ctx, id, at)
		switch {
		case err == nil:
			return true, nil
		case ctx.Err() != nil:
			return false, ctx.Err()
		case errors.Is(err, block.ErrNotFound):
			return false, nil
		case !errors.Is(err, block.ErrCorrupt):
			return false, err
		}
		if !d.straighten(ctx, at.pack) {
			return false, ctx.Err()
		}
		again := slices.IndexFunc(d.r.index.allPlaces(id), func(q place) bool { return q.pack == at.pack })
		if again < 0 {
			return false, nil
		}
		at = d.r.index.allPlaces(id)[again]
	}
}

// settle counts a chunk as lying in a place from now on.
func (p *pruning) settle(id block.Hash, at place) {
	old, _ := p.r.index.needed(id)
	if old.pack == at.pack {
		return
	}
	p.packs[old.pack].live -= min(p.packs[old.pack].live, uint64(old.raw))
	p.packs[at.pack].live += uint64(at.raw)
	p.r.index.move(id, at)
}

// ownPlace is the place of a chunk in the pack that is judged, which the index gets to know if it did not.
func (p *pruning) ownPlace(ctx context.Context, name block.Hash, c *claimed) (place, error) {
	own := c.own
	number, known := p.r.index.number(name.String())
	if !known {
		size, _, frames, err := p.r.readDirectory(ctx, packKey(name.String()), p.strays[name].size)
		if err != nil {
			return own, err
		}
		number = p.r.index.add(name.String(), size, frames)
		p.packs = append(p.packs, p.strays[name])
		delete(p.strays, name)
	}
	own.pack = number
	return own, nil
}
