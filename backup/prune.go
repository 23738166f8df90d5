package backup

import (
	"context"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// PhaseLook is the first phase of a prune, whose bytes are those of all backups.
const PhaseLook = "looking at backups"

// Prune prunes a repository by what its backups need; o.Reachable and o.Progress are set here. progress, which may be nil, is told how far each phase is, in bytes.
func Prune(ctx context.Context, r *repository.Repository, o repository.PruneOptions, progress func(phase string, done, total uint64)) (repository.Pruned, error) {
	o.Progress = progress
	o.Reachable = func(ctx context.Context, visit func(block.Hash) error) error {
		manifests, err := r.Manifests(ctx, nil)
		if err != nil {
			return err
		}
		v := &reaching{d: r.NewReader(0), visit: visit, seen: make(map[block.Hash]bool)}
		done, total := uint64(0), uint64(0)
		for _, m := range manifests {
			total += m.SizeBytes
		}
		for _, m := range manifests {
			if err := v.manifest(ctx, m); err != nil {
				return fmt.Errorf("backup %s: %w", m.Name, err)
			}
			if done += m.SizeBytes; progress != nil {
				progress(PhaseLook, done, total)
			}
		}
		return nil
	}
	return r.Prune(ctx, o)
}

// reaching visits what backups need. Pages and directories that several have in common are read once.
type reaching struct {
	d     *repository.Reader
	visit func(block.Hash) error
	seen  map[block.Hash]bool // pages and directories
}

// first visits a page or directory and reports whether what it lists is still to be visited.
func (v *reaching) first(id block.Hash) (bool, error) {
	if id == (block.Hash{}) || v.seen[id] {
		return false, nil
	}
	v.seen[id] = true
	return true, v.visit(id)
}

func (v *reaching) manifest(ctx context.Context, m *repository.Manifest) error {
	total, err := directories(m)
	if err != nil {
		return err
	}
	for i, id := range m.Root {
		if ok, err := v.first(id); !ok || err != nil {
			if err != nil {
				return err
			}
			continue
		}
		pages, err := readDirectory(ctx, v.d, i, id, total)
		if err != nil {
			return err
		}
		for j, page := range pages {
			if ok, err := v.first(page); !ok || err != nil {
				if err != nil {
					return err
				}
				continue
			}
			extents, err := readPage(ctx, v.d, m.SizeBytes, uint64(i)*pagesPerDirectory+uint64(j), page)
			if err != nil {
				return err
			}
			for _, e := range extents {
				if e.id == (block.Hash{}) {
					continue
				}
				if err := v.visit(e.id); err != nil {
					return err
				}
			}
		}
	}
	return nil
}
