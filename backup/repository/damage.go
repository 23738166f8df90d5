package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// What a prune does about damage: it stops, and says what is damaged, or goes on if the user says so (PruneOptions.Damaged). Then nothing that could be read by anybody is
// taken for lost: packs that no run lists are asked themselves, marked ones too.

// readRuns reads what the runs list. One that is damaged ends the prune, but with Damaged: what it listed the packs say themselves.
func (p *pruning) readRuns(ctx context.Context) error {
	var bad func(key string, err error)
	var failed error
	if p.o.Damaged {
		bad = func(key string, err error) {
			if !errors.Is(err, block.ErrCorrupt) {
				failed = errors.Join(failed, err)
				return
			}
			p.badRuns = append(p.badRuns, key)
			p.o.warn(key, err)
		}
	}
	p.runs = make(map[string][]uint32)
	err := p.r.loadRuns(ctx, bad, func(key string, packs []runPack) {
		for i := range packs {
			p.runs[key] = append(p.runs[key], p.r.index.add(packs[i].name.String(), packs[i].size, packs[i].frames))
		}
	})
	return errors.Join(err, failed)
}

// askStrays reads the directories of the packs that are there and that the index does not know, and adds them to it. It returns them.
func (p *pruning) askStrays(ctx context.Context) (found []runPack, err error) {
	for name, k := range p.strays {
		key := packKey(name.String())
		one := runPack{name: name}
		var frames []pack.Frame
		one.size, one.first, frames, err = p.r.readDirectory(ctx, key, k.size)
		if errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrNotFound) {
			p.o.warn(key, err) // nobody can read anything of it
			continue
		}
		if err != nil {
			return nil, err
		}
		one.frames = frames
		p.r.index.add(name.String(), one.size, frames)
		p.packs = append(p.packs, k)
		found = append(found, one)
		delete(p.strays, name)
	}
	return found, nil
}

// listFound stores a run for those of the packs that backups need, so that readers find them.
func (p *pruning) listFound(ctx context.Context, found []runPack) error {
	var needed []runPack
	for _, one := range found {
		if p.object(one.name).live > 0 {
			needed = append(needed, one)
		}
	}
	if len(needed) == 0 || p.o.DryRun {
		return nil
	}
	if err := p.fresh(); err != nil {
		return err
	}
	_, err := p.r.storeRun(ctx, needed)
	return err
}

// deleteBadRuns removes the runs that cannot be read: what they listed is in others by now.
func (p *pruning) deleteBadRuns(ctx context.Context) error {
	for _, key := range p.badRuns {
		if _, err := p.r.readRun(ctx, key); !errors.Is(err, block.ErrCorrupt) { // it was damaged on the way here, or has gone
			continue
		}
		if err := p.fresh(); err != nil {
			return err
		}
		if _, err := p.remove(ctx, key); err != nil {
			return err
		}
	}
	return nil
}

// EveryManifest returns all backups, for who deletes what no backup needs. One that is listed and cannot be read is told to bad, also if the place says that it is not there: only when it is not
// listed any more either, it was forgotten.
func (r *Repository) EveryManifest(ctx context.Context, bad func(name string, err error)) ([]*Manifest, error) {
	seen, tried := make(map[string]bool), make(map[string]bool)
	told := func(name string, err error) {
		seen[name] = true
		bad(name, err)
	}
	all, err := r.Manifests(ctx, told)
	for _, m := range all {
		seen[m.Name] = true
	}
	for err == nil {
		missing := make(map[string]bool)
		err = r.backend.List(ctx, manifestPrefix, func(o backend.Object) error {
			if name := strings.TrimPrefix(o.Key, manifestPrefix); !seen[name] {
				missing[name] = true
			}
			return nil
		})
		if err != nil || len(missing) == 0 {
			break
		}
		for name := range missing {
			m, readErr := r.Manifest(ctx, name)
			switch {
			case readErr == nil:
				seen[name], all = true, append(all, m)
			case ctx.Err() != nil:
				return all, ctx.Err()
			case !errors.Is(readErr, block.ErrNotFound):
				told(name, readErr)
			case tried[name]:
				told(name, fmt.Errorf("the place lists it and says that it is not there: %w", readErr))
			}
			tried[name] = true
		}
	}
	return all, err
}
