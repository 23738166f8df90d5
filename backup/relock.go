package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// relock locks what locked backups need and what is locked too short a time, now that all is stored: what was mended lies in new packs, and what was damaged in one pack may lie in another that nobody has locked. Backups are listed
// anew, with those that were brought back.
func (p *repair) relock(ctx context.Context) error {
	manifests, err := p.r.EveryManifest(ctx, func(string, error) {}) // said when they were looked at
	if err != nil {
		return err
	}
	locks, err := p.r.FindLocks(ctx, manifests)
	if errors.Is(err, fs.ErrPermission) {
		p.warn("locks", fmt.Errorf("whether all that locked backups need is locked is not known: %w", err))
		return nil
	}
	if locks == nil || err != nil {
		return err
	}
	v := &reaching{d: p.reader, seen: make(map[block.Hash]error)} // those come first whose locks last longest, so a page that several have needs no second look
	for _, m := range locks.Backups {
		until := locks.Until(m)
		v.visit = func(id block.Hash) error {
			if !p.r.Index().Has(id) {
				return &block.CorruptError{Source: "backup", Want: "chunk " + id.String(), Got: "none"} // what it leads to is not known
			}
			_, err := locks.Need(ctx, id, until)
			return err
		}
		if _, err := v.manifest(ctx, m); err != nil { // what is lost was listed
			return fmt.Errorf("what backup %s needs, to lock it: %w", m.Name, err)
		}
		bare, err := locks.Bare(ctx, m)
		if err != nil {
			return err
		}
		if bare {
			p.out.UnlockedObjects++
		}
	}
	p.out.UnlockedObjects += locks.Missing()
	if p.o.DryRun {
		return nil
	}
	if p.out.LockedObjects, err = locks.Lock(ctx); err != nil {
		return fmt.Errorf("all that could be mended is mended, and some of it is %w that needs it: %w", repository.ErrUnlocked, err)
	}
	return nil
}

// unlocked counts, for a verification, what a locked backup needs and what is locked too short a time.
type unlocked struct {
	locks *repository.Locks // nil: nothing is locked, or that may not be known
	until time.Time         // of the backup that is looked at
	count int
	err   error // what kept it from looking
}

// begin begins with another backup.
func (u *unlocked) begin(m *repository.Manifest) { u.until, u.count = u.locks.Until(m), 0 }

// need looks at a chunk that the backup needs.
func (u *unlocked) need(ctx context.Context, id block.Hash) {
	if u.until.IsZero() || u.err != nil {
		return
	}
	locked, err := u.locks.Need(ctx, id, u.until)
	if u.err = err; err == nil && !locked {
		u.count++
	}
}

// end returns what is wrong with the locks of the backup, nil if nothing is.
func (u *unlocked) end(ctx context.Context, m *repository.Manifest) (wrong, err error) {
	if u.until.IsZero() || u.err != nil {
		return nil, u.err
	}
	bare, err := u.locks.Bare(ctx, m)
	if err != nil {
		return nil, err
	}
	if bare {
		wrong = fmt.Errorf("its manifest is %w is said to be, until %s; `hv-backup repo repair` locks it", repository.ErrUnlocked, m.LockedUntil.Local().Format(time.DateTime))
	}
	if u.count > 0 {
		wrong = errors.Join(wrong, fmt.Errorf("%d of its chunks are %w, until %s; `hv-backup repo repair` locks them", u.count, repository.ErrUnlocked, u.until.Local().Format(time.DateTime)))
	}
	return wrong, nil
}
