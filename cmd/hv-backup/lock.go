package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// maxLock bounds a lock, as nobody can take it back.
const maxLock = units.Span(10 * 365 * 24 * 3600)

// lockEnd is when a lock ends that begins now, in whole seconds; the zero time for none.
func lockEnd(lock units.Span) (time.Time, error) {
	if lock > maxLock {
		return time.Time{}, console.Usagef("a lock of %v: at most %v, as nobody can take it back", lock, maxLock)
	}
	if lock == 0 {
		return time.Time{}, nil
	}
	return time.Now().UTC().Add(time.Duration(lock)*time.Second + time.Second - time.Nanosecond).Truncate(time.Second), nil
}

// lockedReason is why a backup is not forgotten.
func lockedReason(until time.Time) string {
	return "it is locked until " + until.Local().Format(time.DateTime)
}

// hiddenObject is a locked object that something was put over, with -o json.
type hiddenObject struct {
	Key         string    `json:"key"`
	LockedUntil time.Time `json:"lockedUntil"`
	Deleted     bool      `json:"deleted"` // else replaced
}

// hidden finds the locked objects of the repository that something was put over, and unless it only looks, uncovers them. It needs no key: those may be among them.
func (a *app) hidden(ctx context.Context, look bool) (found []hiddenObject, err error) {
	found = []hiddenObject{}
	b, err := a.backend()
	if err != nil {
		return nil, fmt.Errorf("repository: %w", err)
	}
	defer b.Close()
	all, err := repository.Hidden(ctx, b)
	if errors.Is(err, fs.ErrPermission) { // of buckets without locks, too, most credentials may not know more
		a.note("hv-backup: whether somebody has deleted or replaced locked objects is not known: %v", err)
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	for _, h := range all {
		what := map[bool]string{true: "deleted", false: "replaced"}[h.Deleted]
		if look {
			a.note("hv-backup: %s is locked until %s, and somebody has %s it", h.Key, h.LockedUntil.Local().Format(time.DateTime), what)
		} else if err := repository.Uncover(ctx, b, h); err != nil {
			return found, fmt.Errorf("bring back %s, which somebody has %s: %w", h.Key, what, err)
		} else {
			a.note("hv-backup: %s was %s, and is back", h.Key, what)
		}
		found = append(found, hiddenObject{h.Key, h.LockedUntil, h.Deleted})
	}
	return found, nil
}

// hiddenError is what keeps a repository from being opened, of which something is hidden that was not brought back.
func hiddenError(err error, hidden []hiddenObject) error {
	if len(hidden) == 0 {
		return err
	}
	return fmt.Errorf("%s: `hv-backup repo repair` brings them back, and until then %v: %w", console.Counted(len(hidden), "hidden object"), err, errProblems)
}

// lockColumn is until when a backup is locked; "" if it is not, or not any more.
func lockColumn(m *repository.Manifest) string {
	if !m.LockedUntil.After(time.Now()) {
		return ""
	}
	return m.LockedUntil.Local().Format(time.DateTime)
}
