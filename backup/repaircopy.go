package backup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// copiedAnew is a backup with holes, and copies of it in other repositories, of which all is there.
type copiedAnew struct {
	m      *repository.Manifest
	copies []copied
}

// lookForCopies looks for copies of backups that have holes still. A copy has all the content, but the chunk that slices are of may not be in it, and no page of slices can be made from content: so what is lost is not to be had by its ids.
func (p *repair) lookForCopies(ctx context.Context, damaged, here []*repository.Manifest) (all []copiedAnew, err error) {
	if len(damaged) == 0 {
		return nil, nil
	}
	holes, wanted := make(map[*repository.Manifest]bool), make(map[repository.Identity][]copied)
	for _, m := range damaged {
		holes[m], wanted[p.r.Identity(m)] = true, nil
	}
	for i := range p.o.From {
		from := &p.o.From[i]
		if from.Repository == nil || from.Repository.Keys().Domain == p.r.Keys().Domain {
			continue // content is no backup, and what is in a mirror was taken by its id
		}
		there, err := from.Repository.Manifests(ctx, func(string, error) {}) // said when content was looked for
		if err != nil {
			return nil, fmt.Errorf("backups in %s: %w", from.Name, err)
		}
		for _, c := range there {
			identity := from.Repository.Identity(c)
			if _, ok := wanted[identity]; !ok {
				continue
			}
			whole, err := listed(ctx, from.Repository, c)
			if err != nil {
				return nil, fmt.Errorf("backup %s in %s: %w", c.Name, from.Name, err)
			}
			if whole {
				wanted[identity] = append(wanted[identity], copied{c, from, ""})
			}
		}
	}
	for _, m := range damaged {
		identity := p.r.Identity(m)
		x := copiedAnew{m: m}
		for _, c := range wanted[identity] {
			if c.m.SizeBytes == m.SizeBytes {
				x.copies = append(x.copies, copied{c.m, c.from, m.Name})
			}
		}
		found := RepairedManifest{Name: m.Name, Error: "a part of its content is lost"}
		for _, twin := range here {
			if !holes[twin] && p.r.Identity(twin) == identity { // an earlier repair has made it anew, and died before it removed this one, or could not
				found.From, found.As, x.copies = "the repository itself", twin.Name, nil
			}
		}
		if len(x.copies) > 0 {
			found.From = x.copies[0].from.Name
		}
		if found.From == "" {
			continue
		}
		p.out.Manifests = append(p.out.Manifests, found)
		all = append(all, x)
		if p.o.DryRun {
			delete(p.damaged, m)
		}
	}
	return all, nil
}

// listed reports whether a backup's pages can be read, and the index knows all chunks that they list.
func listed(ctx context.Context, r *repository.Repository, m *repository.Manifest) (bool, error) {
	missing := errors.New("missing")
	err := walk(ctx, r.NewReader(copyReaderBytes), m, func(_ uint64, extents []extent) error {
		for i := range extents {
			if e := &extents[i]; !e.isZero() && !r.Index().Has(e.id) {
				return missing
			}
		}
		return nil
	})
	if errors.Is(err, missing) || err != nil && isDamage(ctx, err) {
		return false, nil
	}
	return err == nil, err
}

// copyAnew copies backups that have holes from where they are whole. Of the pages here what is whole stays as it is; the rest is read from the copy. The damaged one goes when the other is there.
func (p *repair) copyAnew(ctx context.Context, all []copiedAnew) error {
	if p.o.DryRun {
		return nil
	}
	for _, x := range all {
		at := p.manifestNamed(x.m.Name)
		if err := p.copyOne(ctx, x, &p.out.Manifests[at]); err != nil {
			return err
		}
		if p.out.Manifests[at].As == "" { // it is not to be had there: what is lost of it is listed
			p.out.Manifests = slices.Delete(p.out.Manifests, at, at+1)
			continue
		}
		if _, err := p.r.Manifest(ctx, x.m.Name); errors.Is(err, block.ErrNotFound) { // else it has its holes still
			delete(p.damaged, x.m)
		}
	}
	return nil
}

// copyOne copies one backup from the first place that can give it, if it is not here yet, and removes the damaged one.
func (p *repair) copyOne(ctx context.Context, x copiedAnew, found *RepairedManifest) error {
	for _, c := range x.copies {
		locked := x.m.LockedUntil
		if !locked.After(time.Now()) {
			locked = time.Time{}
		}
		got, err := copyBackup(ctx, c.from.Repository, p.r, c.m, locked, &pair{c.m, x.m}, func(done, _ uint64, _, _ int) { p.tell("copying "+c.m.Name+" from "+c.from.Name, done, c.m.SizeBytes) })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			p.warn("backup "+x.m.Name+" from "+c.from.Name, errors.New(strings.ReplaceAll(err.Error(), "\n", "; ")))
			continue
		}
		p.out.StoredBytes += got.StoredBytes
		found.From, found.As = c.from.Name, got.Name
		break
	}
	if found.As == "" {
		return nil
	}
	return p.replaced(ctx, found.Name, found.As)
}
