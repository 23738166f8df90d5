package backup

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// canLock returns an error if a backup shall be locked and cannot be.
func canLock(ctx context.Context, r *repository.Repository, m *repository.Manifest) error {
	if m.LockedUntil.IsZero() {
		return nil
	}
	return r.CanLock(ctx)
}

// lock locks what a backup needs, if it shall be locked, after its writer was closed and before its manifest is stored. taken means that it has content from another one which nobody has looked up: then its pages are read to find the packs.
// What it shares with parent, or without one with the youngest backup of the source, is passed over if that is locked long enough.
func lock(ctx context.Context, r *repository.Repository, w *repository.Writer, m *repository.Manifest, taken bool, parent *repository.Manifest, progress func(Progress)) (err error) {
	if m.LockedUntil.IsZero() {
		return nil
	}
	if parent == nil && r.Keys().CanRead() {
		if parent, err = r.LastLocked(ctx, m.Source, m.LockedUntil); err != nil {
			return err
		}
	}
	tell := func(done, total int) {
		if progress != nil {
			progress(Progress{DoneBytes: m.SizeBytes, TotalBytes: m.SizeBytes, NewBytes: m.NewBytes, Locked: done, ToLock: total})
		}
	}
	needed := r.NewNeeded()
	visit := func(id block.Hash) error {
		tell(0, needed.Packs())
		return needed.Add(id)
	}
	v := &reaching{d: r.NewReader(copyReaderBytes), visit: visit, seen: make(map[block.Hash]error)}
	shares, err := shareLocks(ctx, r, v, m, parent)
	if err != nil {
		return err
	}
	if shares || taken {
		damage, err := v.manifest(ctx, m)
		if err = errors.Join(damage, err); err != nil {
			return fmt.Errorf("what the backup needs, to lock it: %w", err)
		}
	} else {
		needed = w.Needed() // each chunk was looked up
	}
	return needed.Lock(ctx, m, tell)
}

// shareLocks has v pass over what a backup shares with another one, if that is locked as long at least, and reports whether it is: what was locked for that one is still there, wherever prunes have copied it to since.
func shareLocks(ctx context.Context, r *repository.Repository, v *reaching, m, parent *repository.Manifest) (shares bool, err error) {
	if parent == nil {
		return false, nil
	}
	until, err := r.PacksLockedUntil(ctx, parent)
	if err != nil || until.Before(m.LockedUntil) {
		if errors.Is(err, block.ErrNotFound) { // it was forgotten; the commit will say so
			err = nil
		}
		return false, err
	}
	total, err := directories(parent)
	if err != nil {
		return false, err
	}
	m.PacksLockedUntil = until
	for i, id := range parent.Root {
		if id == (block.Hash{}) {
			continue
		}
		v.seen[id] = nil
		if i < len(m.Root) && m.Root[i] == id {
			continue
		}
		pages, err := readDirectory(ctx, v.d, i, id, total)
		if errors.Is(err, block.ErrCorrupt) || errors.Is(err, repository.ErrLost) { // then nothing is known
			clear(v.seen)
			m.PacksLockedUntil = time.Time{}
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("backup %s: %w", parent.Name, err)
		}
		for _, page := range pages {
			v.seen[page] = nil
		}
	}
	return true, nil
}
