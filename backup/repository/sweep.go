package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	packsPerMerged = 128 // of a run that a prune writes: its memory
	smallRun       = 16  // packs; runs below are merged when there are many
	manySmallRuns  = 32
)

// deleteMarked deletes the packs that were marked a grace ago and that no backup needs, what they have in common with others being read there: first they leave the runs, then a new mark names them,
// then they go, then the marks that name nothing any more. So whoever reads marks and runs, in this order, finds no pack that will go without seeing its mark. The new mark is for
// other prunes under way, which may have read a run that lists them, and list them anew; it comes first, as this one may die once they are gone.
func (p *pruning) deleteMarked(ctx context.Context) error {
	doomed, err := p.unlocked(ctx, p.doomed())
	if err != nil {
		return err
	}
	if !p.o.DryRun {
		if doomed, err = p.surviving(ctx, doomed, PhaseCheck); err != nil {
			return err
		}
		doomed = slices.DeleteFunc(doomed, func(name block.Hash) bool { return p.object(name).live > 0 })
	}
	for _, name := range doomed {
		p.out.DeletedPacks++
		p.out.DeletedBytes += uint64(p.object(name).size)
	}
	if p.o.DryRun {
		p.forget(doomed)
		return nil
	}
	drop := p.lost()
	for _, name := range doomed {
		drop[name] = true
	}
	locked, err := p.lockedRuns(ctx, drop)
	if err != nil {
		return err
	}
	p.leaveListed(drop, locked)
	if err := p.rewriteRuns(ctx, drop, locked); err != nil {
		return err
	}
	if err := p.deleteBadRuns(ctx); err != nil {
		return err
	}
	if err := p.fresh(); err != nil {
		return err
	}
	if err := p.r.storeMark(ctx, slices.Collect(maps.Keys(drop))); err != nil {
		return err
	}
	done, total := uint64(0), p.out.DeletedBytes
	stay := make(map[block.Hash]bool)
	for _, name := range doomed {
		if err := p.fresh(); err != nil {
			return err
		}
		size := uint64(p.object(name).size)
		gone, err := p.remove(ctx, packKey(name.String()))
		if err != nil {
			return err
		}
		if !gone { // a backup has locked it meanwhile
			stay[name] = true
			p.out.DeletedPacks--
			p.out.DeletedBytes -= size
		}
		done += size
		p.o.tell(PhaseDelete, done, total)
	}
	p.forget(slices.DeleteFunc(doomed, func(name block.Hash) bool { return stay[name] }))
	return p.deleteMarks(ctx, drop)
}

// doomed returns the packs that may be deleted, in order of their names.
func (p *pruning) doomed() (names []block.Hash) {
	for name, t := range p.since {
		if k := p.object(name); k != nil && !k.created.IsZero() && k.live == 0 && p.expired(t) && p.now.Sub(k.created) >= p.keep {
			names = append(names, name)
		}
	}
	slices.SortFunc(names, func(a, b block.Hash) int { return slices.Compare(a[:], b[:]) })
	return names
}

// lost returns the packs of the index that are not there and that no backup needs. One that a damaged backup needs stays listed: if it comes back, all is well.
func (p *pruning) lost() map[block.Hash]bool {
	lost := make(map[block.Hash]bool)
	for number, info := range p.r.index.all() {
		if k := &p.packs[number]; k.created.IsZero() && k.live == 0 {
			lost[info.hash()] = true
		}
	}
	return lost
}

// forget notes that packs are gone.
func (p *pruning) forget(names []block.Hash) {
	for _, name := range names {
		if number, ok := p.r.index.number(name.String()); ok {
			p.r.index.lose(number)
			p.packs[number] = prunePack{}
		}
		delete(p.strays, name)
	}
}

// deleteMarks removes the marks that are a grace old and whose packs are all gone, or named by the mark that was just made. One that cannot be read goes only when nobody else is there.
func (p *pruning) deleteMarks(ctx context.Context, renamed map[block.Hash]bool) error {
	for _, m := range p.marks {
		needed := func(name block.Hash) bool { return p.object(name) != nil && !renamed[name] }
		if !p.expired(m.created) || slices.ContainsFunc(m.packs, needed) {
			continue
		}
		if err := p.fresh(); err != nil {
			return err
		}
		if _, err := p.remove(ctx, m.key); err != nil {
			return err
		}
	}
	return nil
}

// rewriteRuns replaces the runs that list packs of drop, and small ones when there are many, by others that list the rest. The new ones are durable before an old one goes; others
// may have done the same meanwhile, so packs may be listed twice. Runs that are locked stay.
func (p *pruning) rewriteRuns(ctx context.Context, drop map[block.Hash]bool, locked map[string]bool) error {
	old := p.affected(drop, locked)
	if len(old) == 0 {
		return nil
	}
	var kept []runPack
	seen := make(map[block.Hash]bool)
	store := func() error {
		if len(kept) == 0 {
			return nil
		}
		if err := p.fresh(); err != nil {
			return err
		}
		_, err := p.r.storeRun(ctx, kept)
		kept = nil
		return err
	}
	for _, key := range old {
		packs, err := p.r.readRun(ctx, key)
		if errors.Is(err, block.ErrNotFound) {
			return fmt.Errorf("%s is gone: another prune is at work; run this one again later", key)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		for i := range packs {
			if name := packs[i].name; !drop[name] && !seen[name] {
				listing, whole, err := p.trueListing(ctx, packs[i])
				if err != nil {
					return err
				}
				seen[name] = whole
				kept = append(kept, listing)
			}
		}
		if len(kept) >= packsPerMerged {
			if err := store(); err != nil {
				return err
			}
		}
	}
	if err := store(); err != nil {
		return err
	}
	for _, key := range old {
		if err := p.fresh(); err != nil {
			return err
		}
		if _, err := p.remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// trueListing returns what a run shall say of a pack, and whether that is all there is to say: if runs differ, what the pack itself says; if that cannot be read, what each run says.
func (p *pruning) trueListing(ctx context.Context, listed runPack) (runPack, bool, error) {
	number, ok := p.r.index.number(listed.name.String())
	if !ok {
		return listed, true, nil
	}
	if info := p.r.index.pack(number); !info.disputed && listingSum(listed.size, listed.frames) == info.listing {
		return listed, true, nil
	}
	key := packKey(listed.name.String())
	o, err := p.r.backend.Stat(ctx, key)
	if err == nil {
		truth := runPack{name: listed.name}
		if truth.size, truth.first, truth.frames, err = p.r.readDirectory(ctx, key, o.SizeBytes); err == nil {
			return truth, true, nil
		}
	}
	if errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrNotFound) {
		return listed, false, nil
	}
	return listed, false, err
}

// affected returns the runs that are to be replaced, but for those that are locked, in order of their names.
func (p *pruning) affected(drop map[block.Hash]bool, locked map[string]bool) (keys []string) {
	all := p.r.index.all()
	var small []string
	for key, numbers := range p.runs {
		switch {
		case locked[key]:
		case slices.ContainsFunc(numbers, func(n uint32) bool { return drop[all[n].hash()] }):
			keys = append(keys, key)
		case len(numbers) < smallRun:
			small = append(small, key)
		}
	}
	if len(small) >= manySmallRuns {
		keys = append(keys, small...)
	}
	slices.Sort(keys)
	return keys
}
