package backup

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// PhaseLook is the first phase of a prune, whose bytes are those of all backups.
const PhaseLook = "looking at backups"

// DamagedError says which backups a prune cannot follow, so that it deletes nothing.
type DamagedError struct {
	Unreadable []string // those whose manifests cannot be read: nobody knows what they need
	Damaged    []string // those that need what is lost, or cannot be read
	First      error    // what is wrong with the first
}

// Error names the backups, as far as they fit into a line.
func (e *DamagedError) Error() string {
	all := append(append([]string(nil), e.Unreadable...), e.Damaged...)
	const most = 20
	rest := ""
	if len(all) > most {
		all, rest = all[:most], fmt.Sprintf(" and %d others", len(all)-most)
	}
	return fmt.Sprintf("nothing is pruned, as what these backups need is not known or not there: %s%s (the first: %v)", strings.Join(all, ", "), rest, e.First)
}

// Unwrap returns what is wrong with the first.
func (e *DamagedError) Unwrap() error { return e.First }

// Prune prunes a repository by what its backups need; o.Reachable and o.Progress are set here. progress, which may be nil, is told how far each phase is, in bytes. Damage of backups is
// a DamagedError, and a manifest that was never one is told to o.Warn; but with o.Damaged damage of what their manifests lead to is told to o.Warn.
func Prune(ctx context.Context, r *repository.Repository, o repository.PruneOptions, progress func(phase string, done, total uint64)) (repository.Pruned, error) {
	o.Progress = progress
	o.Reachable = func(ctx context.Context, visit func(block.Hash) error) error {
		var found DamagedError
		note := func(names *[]string, name string, err error) {
			if *names = append(*names, name); found.First == nil {
				found.First = fmt.Errorf("backup %s: %w", name, err)
			}
		}
		var failed error
		manifests, err := r.EveryManifest(ctx, func(name string, err error) {
			if errors.Is(err, repository.ErrNeverBackup) { // else who may only store could keep all that is dead here
				if o.Warn != nil {
					o.Warn("backup "+name, err)
				}
				return
			}
			if errors.Is(err, block.ErrCorrupt) || errors.Is(err, block.ErrInvalid) || errors.Is(err, block.ErrNotFound) {
				note(&found.Unreadable, name, err)
			} else {
				failed = errors.Join(failed, fmt.Errorf("backup %s: %w", name, err))
			}
		})
		if err = errors.Join(err, failed); err != nil {
			return err
		}
		v := &reaching{d: r.NewReader(0), visit: visit, seen: make(map[block.Hash]error)}
		done, total := uint64(0), uint64(0)
		for _, m := range manifests {
			total += m.SizeBytes
		}
		for _, m := range manifests {
			damage, err := v.manifest(ctx, m)
			switch {
			case err != nil:
				return fmt.Errorf("backup %s: %w", m.Name, err)
			case damage != nil && o.Damaged && o.Warn != nil:
				o.Warn("a part of backup "+m.Name, damage)
			case damage != nil && !o.Damaged:
				note(&found.Damaged, m.Name, damage)
			}
			if done += m.SizeBytes; progress != nil {
				progress(PhaseLook, done, total)
			}
		}
		if found.First != nil {
			return &found
		}
		return nil
	}
	return r.Prune(ctx, o)
}

// reaching visits what backups need. Pages and directories that several have in common are read once.
type reaching struct {
	d     *repository.Reader
	visit func(block.Hash) error
	seen  map[block.Hash]error // pages and directories, with what is damaged of each
}

// damaged tells damage, the first result, from what keeps a prune from looking.
func damaged(err error) (damage, other error) {
	if errors.Is(err, block.ErrCorrupt) {
		return err, nil
	}
	return nil, err
}

// once visits a page or directory, and has visited what it lists, unless that was done. It returns the first damage of all that.
func (v *reaching) once(id block.Hash, list func() (damage, err error)) (damage, err error) {
	if id == (block.Hash{}) {
		return nil, nil
	}
	if damage, ok := v.seen[id]; ok {
		return damage, nil
	}
	if damage, err = damaged(v.visit(id)); damage == nil && err == nil {
		damage, err = list()
	}
	v.seen[id] = damage
	return damage, err
}

// manifest visits all that a backup needs, as far as that can be read.
func (v *reaching) manifest(ctx context.Context, m *repository.Manifest) (damage, err error) {
	total, err := directories(m)
	if err != nil {
		return damaged(err)
	}
	return v.each(m.Root, func(i int, id block.Hash) (damage, err error) {
		return v.once(id, func() (damage, err error) {
			pages, err := readDirectory(ctx, v.d, i, id, total)
			if err != nil {
				return damaged(err)
			}
			return v.each(pages, func(j int, page block.Hash) (damage, err error) {
				return v.once(page, func() (damage, err error) { return v.page(ctx, m, uint64(i)*pagesPerDirectory+uint64(j), page) })
			})
		})
	})
}

// each calls visit with each id and returns the first damage.
func (v *reaching) each(ids []block.Hash, visit func(i int, id block.Hash) (damage, err error)) (first, err error) {
	for i, id := range ids {
		damage, err := visit(i, id)
		if err != nil {
			return first, err
		}
		if first == nil {
			first = damage
		}
	}
	return first, nil
}

// page visits the chunks of a region.
func (v *reaching) page(ctx context.Context, m *repository.Manifest, n uint64, id block.Hash) (first, err error) {
	extents, err := readPage(ctx, v.d, m.SizeBytes, n, id)
	if err != nil {
		return damaged(err)
	}
	for _, e := range extents {
		if e.id == (block.Hash{}) {
			continue
		}
		damage, err := damaged(v.visit(e.id))
		if err != nil {
			return first, err
		}
		if first == nil && damage != nil {
			first = fmt.Errorf("content at %d: %w", n*RegionSize, damage)
		}
	}
	return first, nil
}
