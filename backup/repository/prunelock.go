package repository

import (
	"context"
	"errors"
	"io/fs"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// findLocker finds out whether objects may be locked there.
func (p *pruning) findLocker(ctx context.Context) (err error) {
	p.until = make(map[block.Hash]time.Time)
	p.locker, err = p.r.mayLock(ctx)
	return err
}

// mayLock returns what locks objects, nil where nothing can be locked, or who asks may not know: who may delete need not be allowed to ask.
func (r *Repository) mayLock(ctx context.Context) (backend.Locker, error) {
	l, err := r.locker(ctx)
	if errors.Is(err, backend.ErrCannotLock) || errors.Is(err, fs.ErrPermission) {
		return nil, nil
	}
	return l, err
}

// unlocked returns those of the packs that are not locked, and notes until when the others are. Each is asked for once.
func (p *pruning) unlocked(ctx context.Context, names []block.Hash) ([]block.Hash, error) {
	if p.locker == nil {
		return names, nil
	}
	var asked []block.Hash
	var keys []string
	for _, name := range names {
		if _, known := p.until[name]; !known {
			asked, keys = append(asked, name), append(keys, packKey(name.String()))
		}
	}
	until, err := p.locks(ctx, keys)
	if err != nil {
		return nil, err
	}
	for i, name := range asked {
		p.until[name] = until[i]
	}
	return slices.DeleteFunc(slices.Clone(names), p.isLocked), nil
}

// isLocked reports whether a pack that was asked for is locked.
func (p *pruning) isLocked(name block.Hash) bool { return p.until[name].After(p.now) }

// locks returns until when objects are locked, several being asked for at once. One that is gone is not.
func (p *pruning) locks(ctx context.Context, keys []string) ([]time.Time, error) {
	until := make([]time.Time, len(keys))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockers)
	for i, key := range keys {
		g.Go(func() (err error) {
			until[i], err = p.locker.LockedUntil(ctx, key)
			return ignoreMissing(err)
		})
	}
	return until, g.Wait()
}

// lockedRuns returns which of the runs that would be replaced are locked: these stay, and what they list of packs that are gone is harmless as long as a mark names those.
func (p *pruning) lockedRuns(ctx context.Context, drop map[block.Hash]bool) (map[string]bool, error) {
	locked := make(map[string]bool)
	if p.locker == nil {
		return locked, nil
	}
	keys := p.affected(drop, nil)
	until, err := p.locks(ctx, keys)
	for i, key := range keys {
		locked[key] = until[i].After(p.now)
	}
	return locked, err
}

// leaveListed takes out of drop what is gone, is named by a mark already, and is listed by locked runs alone: nothing more can be done about it, and its mark stays as long as it is listed.
func (p *pruning) leaveListed(drop map[block.Hash]bool, locked map[string]bool) {
	all := p.r.index.all()
	elsewhere := make(map[block.Hash]bool)
	for key, numbers := range p.runs {
		if locked[key] {
			continue
		}
		for _, n := range numbers {
			elsewhere[all[n].hash()] = true
		}
	}
	for name := range drop {
		if k := p.object(name); k.created.IsZero() && !elsewhere[name] && !p.since[name].IsZero() {
			delete(drop, name)
		}
	}
}

// remove deletes an object and reports whether it is gone. One that turns out to be locked stays and is counted: a prune does not fail for it.
func (p *pruning) remove(ctx context.Context, key string) (gone bool, err error) {
	err = ignoreMissing(p.r.backend.Delete(ctx, key))
	var locked *backend.LockedError
	if errors.As(err, &locked) {
		p.out.LockedObjects++
		return false, nil
	}
	return err == nil, err
}

// countLocked fills in what is locked of what would go otherwise.
func (p *pruning) countLocked() {
	for name, until := range p.until {
		k := p.object(name)
		if !until.After(p.now) || k == nil {
			continue
		}
		p.out.LockedPacks++
		p.out.LockedBytes += uint64(k.size)
		if p.out.UnlockedAt.IsZero() || until.Before(p.out.UnlockedAt) {
			p.out.UnlockedAt = until.UTC().Truncate(time.Second)
		}
	}
}

// ignoreRefused is nil for an object that is gone, or is locked.
func ignoreRefused(err error) error {
	var locked *backend.LockedError
	if errors.As(err, &locked) {
		return nil
	}
	return ignoreMissing(err)
}
