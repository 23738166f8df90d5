package repository

import (
	"context"
	"crypto/hmac"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

const (
	lockers   = 16 // requests for locks that are under way at once
	lockSpare = 4  // a lock is extended by a part of its length more than is asked for, so that a daily backup need not extend all locks each day
	lockTries = 3  // to lock runs that prunes replace meanwhile

	maxLastLocked = 64 // backups that LastLocked looks at
)

// ErrHidden means that somebody has put something over a locked object, which what is read under its key hides.
var ErrHidden = errors.New("a locked object is hidden")

// CanLock returns nil if what is in the repository can be locked, else backend.ErrCannotLock and why, or what kept it from finding out.
func (r *Repository) CanLock(ctx context.Context) error {
	_, err := r.locker(ctx)
	return err
}

func (r *Repository) locker(ctx context.Context) (backend.Locker, error) {
	return locker(ctx, r.backend)
}

// locker returns what locks objects of a place, if they can be.
func locker(ctx context.Context, b backend.Backend) (backend.Locker, error) {
	l, err := backend.LockerOf(b)
	if err == nil {
		err = l.CanLock(ctx)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

// Needed are the packs that a backup needs. It is used by one goroutine.
type Needed struct {
	r     *Repository
	packs map[uint32]bool
}

// NewNeeded returns no packs.
func (r *Repository) NewNeeded() *Needed { return &Needed{r, make(map[uint32]bool)} }

// Needed returns the packs that a writer has stored, and those that it relies on, after Close: all that its backup needs, unless that takes content over from another one without looking it up.
func (w *Writer) Needed() *Needed {
	w.pending.Lock()
	defer w.pending.Unlock()
	return &Needed{w.r, maps.Clone(w.pending.relied)}
}

// Packs returns how many there are.
func (n *Needed) Packs() int { return len(n.packs) }

// Add adds the pack that a chunk lies in. ErrLost if it is in none.
func (n *Needed) Add(id block.Hash) error {
	number, ok := n.r.index.lasting(id)
	if !ok {
		at, found := n.r.index.find(id)
		if !found {
			return fmt.Errorf("chunk %v: %w: %w", id, ErrLost, block.ErrNotFound)
		}
		number = at.pack
	}
	n.packs[number] = true
	return nil
}

// Lock locks what a backup needs, all but its manifest, until m.LockedUntil at least: config, key slots, packs, and runs of the index that list these. It is done before the manifest is stored, and says in that until when
// the first of the locks ends; a time that m has of that already is of what n leaves out. progress, which may be nil, is told how many objects are locked. ErrHidden if reading finds something else than what is locked.
func (n *Needed) Lock(ctx context.Context, m *Manifest, progress func(done, total int)) error {
	r := n.r
	l, err := r.locker(ctx)
	if err != nil {
		return err
	}
	left := time.Until(m.LockedUntil)
	if left <= 0 {
		return fmt.Errorf("the backup has taken longer than its lock lasts, which ends %s: %w", m.LockedUntil.Local().Format(time.DateTime), block.ErrInvalid)
	}
	k := &locking{l: l, until: m.LockedUntil, spare: left / lockSpare, progress: progress}
	k.mu.first = m.PacksLockedUntil
	fixed := []string{configKey}
	if err := r.backend.List(ctx, slotPrefix, func(o backend.Object) error { fixed = append(fixed, o.Key); return nil }); err != nil {
		return err
	}
	all := r.index.all()
	packs := make([]string, 0, len(n.packs))
	for number := range n.packs {
		packs = append(packs, packKey(all[number].name))
	}
	slices.Sort(packs)
	runs := r.index.runsOf(n.packs)
	k.total = len(fixed) + len(packs) + len(runs)
	if err := k.uncovered(ctx, slices.Concat(fixed, packs, runs)); err != nil {
		return err
	}
	if err := k.all(ctx, fixed); err != nil {
		return err
	}
	if err := r.checkLock(ctx, l, configKey, m.LockedUntil); err != nil {
		return err
	}
	if err := k.all(ctx, packs); errors.Is(err, block.ErrNotFound) {
		return fmt.Errorf("%w: %w", ErrMarked, err)
	} else if err != nil {
		return err
	}
	for try := 1; ; try++ {
		err := k.all(ctx, runs)
		if !errors.Is(err, block.ErrNotFound) || try == lockTries {
			m.PacksLockedUntil = k.mu.first.UTC()
			return err
		}
		if err := r.LoadIndex(ctx, func(string, error) {}); err != nil { // a prune has replaced one meanwhile
			return err
		}
		runs = r.index.runsOf(n.packs)
		k.total += len(runs)
	}
}

// locking locks the objects of one backup.
type locking struct {
	l        backend.Locker
	until    time.Time
	spare    time.Duration
	progress func(done, total int)
	total    int

	mu struct {
		sync.Mutex
		done  int
		first time.Time // when the first of the locks ends
	}
}

// all locks objects, several at once.
func (k *locking) all(ctx context.Context, keys []string) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockers)
	for _, key := range keys {
		g.Go(func() error {
			until, err := k.l.Lock(ctx, key, k.until, k.spare)
			if err != nil {
				return err
			}
			k.mu.Lock()
			defer k.mu.Unlock()
			if k.mu.first.IsZero() || until.Before(k.mu.first) {
				k.mu.first = until
			}
			if k.mu.done++; k.progress != nil {
				k.progress(k.mu.done, k.total)
			}
			return nil
		})
	}
	return g.Wait()
}

// uncovered returns ErrHidden if one of the objects is hidden: then what lies over it would be locked.
func (k *locking) uncovered(ctx context.Context, keys []string) error {
	wanted, prefixes := make(map[string]bool), make(map[string]bool)
	for _, key := range keys {
		wanted[key], prefixes[key[:strings.LastIndex(key, "/")+1]] = true, true
	}
	delete(prefixes, "") // the listing of everything: config itself is its prefix
	prefixes[configKey] = true
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(lockers)
	for prefix := range prefixes {
		g.Go(func() error {
			return k.l.Hidden(ctx, prefix, func(h backend.Hidden) error {
				if wanted[h.Key] {
					return fmt.Errorf("object %s of %s: %w", h.Key, h.Created.Local().Format(time.DateTime), ErrHidden)
				}
				return nil
			})
		})
	}
	return g.Wait()
}

// LockManifest locks a backup that was just stored, if it shall be locked, and looks whether it is. If it cannot be, the backup is taken back.
func (r *Repository) LockManifest(ctx context.Context, m *Manifest) error {
	if m.LockedUntil.IsZero() {
		return nil
	}
	key := manifestPrefix + m.Name
	l, err := r.locker(ctx)
	if err == nil {
		_, err = l.Lock(ctx, key, m.LockedUntil, 0)
	}
	if err == nil {
		err = r.checkLock(ctx, l, key, m.LockedUntil)
	}
	if err != nil {
		return errors.Join(err, r.Forget(context.WithoutCancel(ctx), m.Name))
	}
	return nil
}

// checkLock looks whether an object is locked as long as it shall be.
func (r *Repository) checkLock(ctx context.Context, l backend.Locker, key string, want time.Time) error {
	until, err := l.LockedUntil(ctx, key)
	if err == nil && until.Before(want) {
		is := "is not, or may not be known with these credentials"
		if !until.IsZero() {
			is = "is until " + until.Format(time.RFC3339)
		}
		err = fmt.Errorf("%s does not keep locks: %s was to be locked until %s, and %s: %w", r.Location(), key, want.Format(time.RFC3339), is, backend.ErrCannotLock)
	}
	return err
}

// PacksLockedUntil returns until when everything that a backup needs is locked, the zero time if that is not sure: an owner has to vouch for it, and the backup itself must be locked in this place, not only in one that this is a copy of.
func (r *Repository) PacksLockedUntil(ctx context.Context, m *Manifest) (time.Time, error) {
	if m.LockedUntil.IsZero() || m.PacksLockedUntil.IsZero() || !r.vouchedLock(m) {
		return time.Time{}, nil
	}
	l, err := r.locker(ctx)
	if err != nil {
		return time.Time{}, err
	}
	until, err := l.LockedUntil(ctx, manifestPrefix+m.Name)
	if err != nil || until.Before(m.LockedUntil) {
		return time.Time{}, err
	}
	return m.PacksLockedUntil, nil
}

// LastLocked returns the youngest backup of a source of which everything that it needs is surely locked until a time at least, nil if none of the youngest backups of the repository is one. It needs an owner's keys.
func (r *Repository) LastLocked(ctx context.Context, source Source, until time.Time) (*Manifest, error) {
	var names []string
	if err := r.backend.List(ctx, manifestPrefix, func(o backend.Object) error {
		names = append(names, strings.TrimPrefix(o.Key, manifestPrefix))
		return nil
	}); err != nil {
		return nil, err
	}
	slices.Sort(names) // they begin with the time
	for _, name := range slices.Backward(names[max(0, len(names)-maxLastLocked):]) {
		m, err := r.Manifest(ctx, name)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case err != nil || m.Source != source || m.LockedUntil.IsZero():
			continue
		}
		if locked, err := r.PacksLockedUntil(ctx, m); err != nil || !locked.Before(until) {
			return m, err
		}
	}
	return nil, nil
}

// vouchLock adds the proof, or takes away what a writer without an owner's keys cannot prove.
func (r *Repository) vouchLock(m *Manifest) (err error) {
	if m.PacksLockedUntil.IsZero() {
		m.LockProof = nil
		return nil
	}
	if m.LockProof, err = r.lockProof(m); errors.Is(err, seal.ErrReadKey) {
		m.PacksLockedUntil, m.LockProof = time.Time{}, nil
		return nil
	}
	return err
}

func (r *Repository) vouchedLock(m *Manifest) bool {
	proof, err := r.lockProof(m)
	return err == nil && hmac.Equal(proof, m.LockProof)
}

func (r *Repository) lockProof(m *Manifest) ([]byte, error) {
	root := rootSum(m.Root)
	le := binary.LittleEndian
	return r.keys.Vouch(seal.PurposeLock, root[:], le.AppendUint64(nil, m.SizeBytes), le.AppendUint64(nil, uint64(m.PacksLockedUntil.Unix())))
}

// runsOf returns runs that together list the packs, as far as runs list them, in order of their keys.
func (x *Index) runsOf(packs map[uint32]bool) (keys []string) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	covered := make(map[uint32]bool)
	for _, key := range slices.Sorted(maps.Keys(x.mu.runs)) {
		numbers := x.mu.runs[key]
		if !slices.ContainsFunc(numbers, func(n uint32) bool { return packs[n] && !covered[n] }) {
			continue
		}
		keys = append(keys, key)
		for _, n := range numbers {
			covered[n] = true
		}
	}
	return keys
}

// listed notes which packs a run lists.
func (x *Index) listed(key string, packs []runPack) {
	x.mu.Lock()
	defer x.mu.Unlock()
	numbers := make([]uint32, 0, len(packs))
	for i := range packs {
		if number, ok := x.mu.byName[packs[i].name.String()]; ok {
			numbers = append(numbers, number)
		}
	}
	x.mu.runs[key] = numbers
}

// forgetRuns forgets which runs there are: they are listed anew.
func (x *Index) forgetRuns() {
	x.mu.Lock()
	defer x.mu.Unlock()
	clear(x.mu.runs)
}
