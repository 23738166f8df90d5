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

// maxCandidates bounds the backups of another repository that are read for one damaged backup.
const maxCandidates = 4

// repairReaderBytes is the memory for frames of a repository that is mended from.
const repairReaderBytes = 32 << 20

// mendFrom looks in one place for what backups have lost, and returns those that have holes still.
func (p *repair) mendFrom(ctx context.Context, from *RepairFrom, damaged []*repository.Manifest) (left []*repository.Manifest, err error) {
	by := p.mendedBy(from.Name)
	defer func() { p.credit(by) }()
	if from.Repository == nil {
		f := &filler{by: by, content: from.Content}
		left, err = p.walkAll(ctx, PhaseMend, damaged, func(_ context.Context, m *repository.Manifest) ([]*filler, error) {
			f.related = m.Source.Name == from.Source
			return []*filler{f}, nil
		})
		p.complain(from, f)
		return left, err
	}
	other := from.Repository
	if other.Keys().Domain == p.r.Keys().Domain { // ids are the same there
		reader := other.NewReader(repairReaderBytes)
		f := &filler{by: by, chunk: func(ctx context.Context, id block.Hash) ([]byte, bool, error) { return chunkOf(ctx, other, reader, id) }}
		return p.walkAll(ctx, PhaseMend, damaged, func(context.Context, *repository.Manifest) ([]*filler, error) { return []*filler{f}, nil })
	}
	there, err := other.Manifests(ctx, func(name string, err error) { p.warn("backup "+name+" in "+from.Name, err) })
	if err != nil {
		return damaged, fmt.Errorf("backups in %s: %w", from.Name, err)
	}
	left, err = p.walkAll(ctx, PhaseMend, damaged, func(_ context.Context, m *repository.Manifest) (all []*filler, err error) {
		for _, c := range p.candidates(other, there, m) {
			device, err := NewDevice(other, c, repairReaderBytes)
			if err != nil {
				p.warn("backup "+c.Name+" in "+from.Name, err)
				continue
			}
			all = append(all, &filler{by: by, content: deviceContent{device}, related: true, close: device.Close})
		}
		return all, nil
	})
	if err != nil || len(left) == 0 || other.Config().Cut != p.r.Config().Cut {
		return left, err
	}
	return p.sweep(ctx, from, by, left)
}

// complain tells what could not be read of a content.
func (p *repair) complain(from *RepairFrom, f *filler) {
	if f.failed > 0 {
		p.warn(from.Name, fmt.Errorf("%d ranges could not be read, the first: %w", f.failed, f.first))
	}
}

// chunkOf reads a chunk of another repository; that it does not have it, or not as it was, is no error.
func chunkOf(ctx context.Context, other *repository.Repository, reader *repository.Reader, id block.Hash) ([]byte, bool, error) {
	if !other.Index().Has(id) {
		return nil, false, nil
	}
	raw, err := reader.Chunk(ctx, id)
	if err != nil && isDamage(ctx, err) {
		return nil, false, nil
	}
	return raw, err == nil, err
}

// deviceContent is a backup of another repository as content.
type deviceContent struct{ *Device }

// ReadRange implements RangeSource.
func (c deviceContent) ReadRange(ctx context.Context, b []byte, off uint64) error {
	return c.ReadOnce(ctx, b, off)
}

// candidates returns backups of another repository that may have the content of a backup: the same one, and those of the same source, by how near in time they are.
func (p *repair) candidates(other *repository.Repository, there []*repository.Manifest, m *repository.Manifest) (all []*repository.Manifest) {
	same := p.r.Identity(m)
	rank := func(c *repository.Manifest) time.Duration {
		if other.Identity(c) == same {
			return -1
		}
		return c.Time.Sub(m.Time).Abs()
	}
	for _, c := range there {
		if rank(c) < 0 || c.Source.Name == m.Source.Name && c.Source.Kind == m.Source.Kind {
			all = append(all, c)
		}
	}
	slices.SortStableFunc(all, func(a, b *repository.Manifest) int { return int(min(1, max(-1, rank(a)-rank(b)))) })
	return all[:min(len(all), maxCandidates)]
}

// sweep reads all chunks of another repository, wherever they belong, and takes those whose bytes have a lost id here. Backups are walked over again for what that was.
func (p *repair) sweep(ctx context.Context, from *RepairFrom, by *MendedBy, damaged []*repository.Manifest) ([]*repository.Manifest, error) {
	none := func(context.Context, *repository.Manifest) ([]*filler, error) { return []*filler{{by: by}}, nil }
	clear(p.lostIDs)
	damaged, err := p.walkAll(ctx, PhaseMend, damaged, none)
	if err != nil || len(damaged) == 0 {
		return damaged, err
	}
	wanted := p.lostIDs
	p.lostIDs = make(map[block.Hash]*repository.Manifest)
	f := &filler{by: by}
	err = from.Repository.EachChunk(ctx, func(raw []byte) error {
		id := p.hasher.Sum(raw)
		m := wanted[id]
		if m == nil || p.mended[id] {
			return nil
		}
		return p.put(m, f, id, raw)
	}, func(key string, err error) { p.warn(key+" in "+from.Name, err) }, func(done, total uint64) { p.tell("reading all of "+from.Name, done, total) })
	if err != nil {
		return damaged, err
	}
	return p.walkAll(ctx, PhaseMend, damaged, none)
}

// manifests returns the backups that can be read, and notes those that cannot.
func (p *repair) manifests(ctx context.Context) ([]*repository.Manifest, error) {
	var failed error
	all, err := p.r.EveryManifest(ctx, func(name string, err error) {
		if p.r.DamagedManifest(ctx, name, err) {
			p.out.Manifests = append(p.out.Manifests, RepairedManifest{Name: name, Error: err.Error()})
			p.warn("backup "+name, err)
		} else {
			failed = errors.Join(failed, fmt.Errorf("backup %s: %w", name, err))
		}
	})
	return all, errors.Join(err, failed)
}

// revived is a backup whose manifest another copy of this very repository has.
type revived struct {
	m    *repository.Manifest
	name string
}

// copied is a backup that another repository has a copy of.
type copied struct {
	m    *repository.Manifest // there
	from *RepairFrom
	name string // here
}

// lookForManifests looks for backups whose manifests cannot be read, or are not there.
func (p *repair) lookForManifests(ctx context.Context, here []*repository.Manifest) (again []revived, copies []copied, err error) {
	known, names := make(map[repository.Identity]bool), make(map[string]bool)
	for _, m := range here {
		identity := p.r.Identity(m)
		known[identity], names[m.Name] = true, true
		if name, ours := identity.Backup(p.r.ID()); ours && name != m.Name { // an earlier repair has brought it back, and died before it removed the other
			if at := p.manifestNamed(name); at >= 0 {
				p.out.Manifests[at].From, p.out.Manifests[at].As = "the repository itself", m.Name
			}
		}
	}
	for i := range p.out.Manifests {
		x := &p.out.Manifests[i]
		if x.As != "" {
			continue
		}
		if m, ok := p.r.CorrectManifest(ctx, x.Name); ok {
			x.From = "the repository itself"
			known[p.r.Identity(m)] = true
			again = append(again, revived{m, x.Name})
		}
	}
	for i := range p.o.From {
		from := &p.o.From[i]
		if from.Repository == nil {
			continue
		}
		there, err := from.Repository.Manifests(ctx, func(string, error) {}) // said when content is looked for
		if err != nil {
			return nil, nil, fmt.Errorf("backups in %s: %w", from.Name, err)
		}
		for _, c := range there {
			identity := from.Repository.Identity(c)
			name, ours := identity.Backup(p.r.ID())
			if from.Repository.ID() == p.r.ID() {
				name, ours = c.Name, true
			}
			if !ours || known[identity] || names[name] {
				continue
			}
			at := p.manifestNamed(name)
			if at < 0 && !p.o.MissingBackups || at >= 0 && p.out.Manifests[at].From != "" {
				continue
			}
			if at < 0 {
				at = len(p.out.Manifests)
				p.out.Manifests = append(p.out.Manifests, RepairedManifest{Name: name})
			}
			known[identity] = true
			p.out.Manifests[at].From = from.Name
			if from.Repository.ID() == p.r.ID() {
				again = append(again, revived{c, name})
			} else {
				copies = append(copies, copied{c, from, name})
			}
		}
	}
	return again, copies, nil
}

// manifestNamed returns which of the backups without a manifest that can be read has a name, or -1.
func (p *repair) manifestNamed(name string) int {
	return slices.IndexFunc(p.out.Manifests, func(m RepairedManifest) bool { return m.Name == name })
}

// restoreManifests stores the manifests that were found elsewhere, once all that they need is durable, and then removes those that cannot be read.
func (p *repair) restoreManifests(ctx context.Context, again []revived, copies []copied) error {
	if p.o.DryRun {
		return nil
	}
	for _, m := range p.out.Manifests {
		if m.As != "" {
			if err := p.replaced(ctx, m.Name, m.As); err != nil {
				return err
			}
		}
	}
	if len(again) > 0 {
		w, err := p.r.NewWriter(ctx)
		if err != nil {
			return err
		}
		if _, err := w.Close(); err != nil {
			return err
		}
		for _, x := range again {
			stored := *x.m
			if err := w.CommitAgain(ctx, &stored); err != nil {
				return fmt.Errorf("store the manifest of backup %s again: %w", x.name, err)
			}
			if b := p.damaged[x.m]; b != nil {
				b.Name = stored.Name
			}
			if err := p.replaced(ctx, x.name, stored.Name); err != nil {
				return err
			}
		}
	}
	for _, x := range copies {
		locked, err := p.lockOf(ctx, x.name)
		if err != nil {
			return err
		}
		got, err := Copy(ctx, x.from.Repository, p.r, Copying{Backups: []*repository.Manifest{x.m}, Locked: locked})
		if err != nil && (ctx.Err() != nil || len(got) == 0 || got[0].Error == "") {
			return err
		}
		if err != nil {
			p.warn("backup "+x.name, errors.New(strings.ReplaceAll(err.Error(), "\n", "; ")))
			p.out.Manifests[p.manifestNamed(x.name)].From = "" // it is not to be had there
			continue
		}
		p.out.StoredBytes += got[0].StoredBytes
		if err := p.replaced(ctx, x.name, got[0].To); err != nil {
			return err
		}
	}
	return nil
}

// lockOf returns until when a backup is locked whose manifest cannot be read, by its object; the zero time if it is not.
func (p *repair) lockOf(ctx context.Context, name string) (time.Time, error) {
	until, err := p.r.ManifestLockedUntil(ctx, name)
	if err != nil || !until.After(time.Now()) {
		return time.Time{}, err
	}
	return until, nil
}

// replaced notes what the name of a backup is now, and removes the manifest that cannot be read.
func (p *repair) replaced(ctx context.Context, name, as string) error {
	m := &p.out.Manifests[p.manifestNamed(name)]
	if m.As = as; m.Error == "" {
		return nil
	}
	err := p.r.Forget(ctx, name)
	switch {
	case errors.Is(err, block.ErrInUse): // its place holds it for some time yet; a later repair knows what it is now
		p.warn("backup "+name, err)
	case err != nil && !errors.Is(err, block.ErrNotFound):
		return err
	}
	return nil
}
