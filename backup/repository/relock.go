package repository

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// ErrUnlocked means that something which a locked backup needs can be deleted earlier than the backup.
var ErrUnlocked = errors.New("not locked as long as the backup")

// Locks are the locks of what locked backups need, of which some may be missing: a repair, or a later backup, has stored anew what was damaged, or lies elsewhere. A nil one is of no backup. It is used by one goroutine.
type Locks struct {
	Backups []*Manifest // that are locked in this place, those first whose locks last longest

	r       *Repository
	l       backend.Locker
	reader  *Reader
	packs   []time.Time             // when the locks of packs end, by their numbers
	backups map[*Manifest]time.Time // until when all that a backup needs shall be locked
	short   map[uint32]time.Time    // packs whose locks end too early, and until when they shall last
}

// FindLocks asks for the locks of all packs, if a backup is locked here; else it returns nil. Backups that were listed before have theirs. A copy of a bucket has manifests that tell of locks, and none: there config is not
// locked as long as they say. fs.ErrPermission: it may not ask.
func (r *Repository) FindLocks(ctx context.Context, backups []*Manifest) (*Locks, error) {
	now := time.Now()
	k := &Locks{r: r, backups: make(map[*Manifest]time.Time), short: make(map[uint32]time.Time)}
	for _, m := range backups {
		if until := r.promised(m); until.After(now) {
			k.backups[m] = until
		}
	}
	if len(k.backups) == 0 {
		return nil, nil
	}
	var err error
	if k.l, err = r.locker(ctx); errors.Is(err, backend.ErrCannotLock) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	here, err := k.l.LockedUntil(ctx, configKey)
	if err != nil {
		return nil, err
	}
	maps.DeleteFunc(k.backups, func(m *Manifest, _ time.Time) bool { return here.Before(m.LockedUntil) })
	if len(k.backups) == 0 {
		return nil, nil
	}
	k.Backups = slices.SortedFunc(maps.Keys(k.backups), func(a, b *Manifest) int { return k.backups[b].Compare(k.backups[a]) })
	k.reader = r.NewReader(0)
	return k, k.ask(ctx)
}

// promised is until when all that a backup needs is said to be locked: later ones rely on that. The zero time if it is not locked.
func (r *Repository) promised(m *Manifest) time.Time {
	if until := m.PacksLockedUntil; !m.LockedUntil.IsZero() && until.After(m.LockedUntil) && r.vouchedLock(m) {
		return until
	}
	return m.LockedUntil
}

// ask asks for the locks of all packs that are there, several at once.
func (k *Locks) ask(ctx context.Context) error {
	all := k.r.index.all()
	k.packs = make([]time.Time, len(all))
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockers)
	for number := range all {
		if all[number].gone {
			continue
		}
		g.Go(func() error {
			until, err := k.l.LockedUntil(ctx, packKey(all[number].name))
			k.packs[number] = until
			return ignoreMissing(err)
		})
	}
	return g.Wait()
}

// Until returns until when all that a backup needs shall be locked; the zero time if it is not locked here.
func (k *Locks) Until(m *Manifest) time.Time {
	if k == nil {
		return time.Time{}
	}
	return k.backups[m]
}

// Need reports whether a chunk lies in a pack that is locked until then, and notes a pack to lock if it does not. A pack that is marked may be damaged, so there the chunk is read. One that is nowhere is no matter of locks.
func (k *Locks) Need(ctx context.Context, id block.Hash, until time.Time) (locked bool, err error) {
	locked, marked := k.r.index.lockedIn(id, k.packs, until)
	for _, p := range marked {
		if locked {
			break
		}
		switch _, err := k.reader.at(ctx, id, p); {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err == nil:
			locked = true
		case !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrNotFound):
			return false, err
		}
	}
	if locked {
		return true, nil
	}
	number, ok := k.r.index.lasting(id)
	if !ok {
		at, found := k.r.index.find(id)
		if !found {
			return true, nil
		}
		number = at.pack
	}
	if until.After(k.short[number]) {
		k.short[number] = until
	}
	return false, nil
}

// lockedIn reports whether a chunk has a place in a pack without a mark that is locked until a time; if not, marked has its places in others that are. packs are the ends of locks by the numbers of packs.
func (x *Index) lockedIn(id block.Hash, packs []time.Time, until time.Time) (locked bool, marked []place) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	short := shortID(id[:16])
	first, ok := x.mu.places[short]
	if !ok {
		return false, nil
	}
	first.raw = first.length()
	look := func(p place) bool {
		if int(p.pack) >= len(packs) || packs[p.pack].Before(until) || x.mu.packs[p.pack].gone {
			return false
		}
		if x.mu.packs[p.pack].marked {
			marked = append(marked, p)
			return false
		}
		return true
	}
	return look(first) || slices.ContainsFunc(x.mu.spares[short], look), marked
}

// Bare reports whether the object of a backup is not locked itself as long as the backup says, as when what stored it has died before it locked it. It asks the place; one that was forgotten is not.
func (k *Locks) Bare(ctx context.Context, m *Manifest) (bool, error) {
	if k == nil || !m.LockedUntil.After(time.Now()) {
		return false, nil
	}
	until, err := k.l.LockedUntil(ctx, manifestPrefix+m.Name)
	if errors.Is(err, block.ErrNotFound) {
		return false, nil
	}
	return err == nil && until.Before(m.LockedUntil), err
}

// Missing returns how many packs there are whose locks end too early, of all that Need was asked for.
func (k *Locks) Missing() int { return len(k.short) }

// Lock locks what was found, and returns how many objects that were: runs that together list the packs, packs, then backups. After an error the next one goes on. ErrHidden if reading finds something else than what is locked.
func (k *Locks) Lock(ctx context.Context) (locked int, err error) {
	if len(k.short) > 0 {
		if locked, err = k.lockPacks(ctx); err != nil {
			return locked, err
		}
	}
	for _, m := range k.Backups {
		bare, err := k.Bare(ctx, m)
		if err != nil {
			return locked, err
		}
		if !bare {
			continue
		}
		key := manifestPrefix + m.Name
		if _, err := k.l.Lock(ctx, key, m.LockedUntil, 0); errors.Is(err, block.ErrNotFound) { // taken back meanwhile
			continue
		} else if err != nil {
			return locked, err
		}
		if err := k.r.checkLock(ctx, k.l, key, m.LockedUntil); err != nil {
			return locked, err
		}
		locked++
	}
	return locked, nil
}

// lockPacks locks packs, and before them the runs that list them: whoever finds all packs locked asks for no runs.
func (k *Locks) lockPacks(ctx context.Context) (locked int, err error) {
	all := k.r.index.all()
	ends, numbers := make(map[time.Time][]string), make(map[uint32]bool)
	last := time.Time{}
	for number, until := range k.short {
		ends[until] = append(ends[until], packKey(all[number].name))
		numbers[number] = true
		if until.After(last) {
			last = until
		}
	}
	for try := 1; ; try++ {
		runs, err := k.runs(ctx, numbers)
		if err != nil {
			return locked, err
		}
		n, err := k.lockAll(ctx, runs, last)
		locked += n
		if err == nil {
			break
		}
		if !errors.Is(err, block.ErrNotFound) || try == lockTries { // else a prune has replaced one meanwhile
			return locked, err
		}
	}
	for until, keys := range ends {
		n, err := k.lockAll(ctx, keys, until)
		locked += n
		if errors.Is(err, block.ErrNotFound) {
			return locked, fmt.Errorf("a pack that a locked backup needs has gone meanwhile: %w: run the repair once more", err)
		}
		if err != nil {
			return locked, err
		}
		if err := k.r.checkLock(ctx, k.l, keys[0], until); err != nil {
			return locked, err
		}
	}
	return locked, nil
}

// runs lists the runs anew and returns some that together list the packs.
func (k *Locks) runs(ctx context.Context, packs map[uint32]bool) ([]string, error) {
	k.r.index.forgetRuns()
	if err := k.r.loadRuns(ctx, func(string, error) {}, k.r.index.listed); err != nil {
		return nil, err
	}
	return k.r.index.runsOf(packs), nil
}

// lockAll locks objects, none of which may be hidden, and returns how many were.
func (k *Locks) lockAll(ctx context.Context, keys []string, until time.Time) (int, error) {
	g := &locking{l: k.l, until: until, total: len(keys)}
	if err := g.uncovered(ctx, keys); err != nil {
		return 0, err
	}
	err := g.all(ctx, keys)
	return g.mu.done, err
}

// ManifestLockedUntil returns until when the object of a backup is locked, whether it can be read or not; the zero time if it is not, is gone, or that may not be known. What a bucket locks by itself, without config being locked as long,
// is no lock that anybody asked for.
func (r *Repository) ManifestLockedUntil(ctx context.Context, name string) (time.Time, error) {
	l, err := r.mayLock(ctx)
	if l == nil || err != nil {
		return time.Time{}, err
	}
	until, err := l.LockedUntil(ctx, manifestPrefix+name)
	if err != nil || until.IsZero() {
		return time.Time{}, ignoreMissing(err)
	}
	here, err := l.LockedUntil(ctx, configKey)
	if err != nil || here.Before(until) {
		return time.Time{}, err
	}
	return until, nil
}
