package host

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// recountTime is how old a count must be for another to be made before something is refused: files may have gone that no request deleted.
const recountTime = 10 * time.Minute

// ledger knows what repositories hold, where quotas bound that.
type ledger struct {
	counting chan struct{} // one repository is counted at once
	mu       struct {
		sync.Mutex
		used    map[string]*used         // by repository, as far as they were counted
		gates   map[string]*sync.RWMutex // by repository; held shared while an object gets its name or goes, so that a count sees all or nothing of that
		taken   map[string]uint64        // bytes of objects that are on their way, by repository
		takenBy map[string]uint64        // and by client
	}
}

// used is what a repository holds.
type used struct {
	bytes uint64            // of objects
	by    map[string]uint64 // of these, by the client that they count for
	at    time.Time         // when they were counted
}

func newLedger() *ledger {
	l := &ledger{counting: make(chan struct{}, 1)}
	l.mu.used, l.mu.gates = make(map[string]*used), make(map[string]*sync.RWMutex)
	l.mu.taken, l.mu.takenBy = make(map[string]uint64), make(map[string]uint64)
	return l
}

// gate returns that of a repository.
func (l *ledger) gate(name string) *sync.RWMutex {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.mu.gates[name]
	if g == nil {
		g = new(sync.RWMutex)
		l.mu.gates[name] = g
	}
	return g
}

// add notes that bytes of a repository came, or went, while its gate is held. What was not counted yet will be.
func (l *ledger) add(name, account string, bytes int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u := l.mu.used[name]; u != nil {
		u.bytes = uint64(max(0, int64(u.bytes)+bytes))
		if u.by[account] = uint64(max(0, int64(u.by[account])+bytes)); u.by[account] == 0 {
			delete(u.by, account)
		}
	}
}

// ofPeerLocked is what counts for a client in all repositories that were counted. ledger.mu is held.
func (l *ledger) ofPeerLocked(account string) (bytes uint64) {
	for _, u := range l.mu.used {
		bytes += u.by[account]
	}
	return bytes
}

// forgetOthers forgets the repositories that are gone.
func (l *ledger) forgetOthers(names []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range l.mu.used {
		if !slices.Contains(names, name) {
			delete(l.mu.used, name)
		}
	}
}

// bounded are the repositories that must have been counted to know whether a client may store more in one of them; none if nothing bounds that.
func (h *Host) bounded(name, account string) ([]string, error) {
	if h.o.PeerQuotas.Of(account) > 0 {
		names, err := h.names()
		if err == nil {
			h.ledger.forgetOthers(names)
		}
		return names, err
	}
	if h.o.Quotas.Of(name) > 0 {
		return []string{name}, nil
	}
	return nil, nil
}

// names are the repositories that there are.
func (h *Host) names() (names []string, err error) {
	entries, err := os.ReadDir(h.o.Dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() && access.CheckName(e.Name()) == nil && len(names) < maxRepositories {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// admit takes the bytes of an object that is to come of the quotas, before any of it came, or returns a refusal. settle is called when it is there, or will not be.
func (c *call) admit(sizeBytes uint64) (settle func(), err error) {
	bounded, err := c.h.bounded(c.name, c.account)
	if err != nil || len(bounded) == 0 || c.rights.Exempt(c.key) {
		return func() {}, err
	}
	for _, before := range []time.Time{{}, c.h.o.Now().Add(-recountTime)} {
		if err := c.h.count(c.r.Context(), bounded, before); err != nil {
			return nil, err
		}
		if settle, err = c.h.take(c.name, c.account, c.key, sizeBytes); err == nil {
			return settle, nil
		}
	}
	return nil, err
}

// take takes bytes of the quotas of a repository and a client.
func (h *Host) take(name, account, key string, bytes uint64) (settle func(), err error) {
	l := h.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	size := func(n uint64) string { return units.Size(n).Human() }
	if most := h.o.Quotas.Of(name); most > 0 {
		have := l.mu.taken[name]
		if u := l.mu.used[name]; u != nil {
			have += u.bytes
		}
		if bytes > most || have > most-bytes {
			return nil, refuse(http.StatusInsufficientStorage, "repository %s holds %s of the %s that its host lets it have, and object %s would be %s more (its repository.quotas): forget and prune backups, or have the quota raised", name, size(have), size(most), key, size(bytes))
		}
	}
	if most := h.o.PeerQuotas.Of(account); most > 0 {
		have := l.mu.takenBy[account] + l.ofPeerLocked(account)
		if bytes > most || have > most-bytes {
			return nil, refuse(http.StatusInsufficientStorage, "%s has stored %s of the %s that the host lets it have in all its repositories, and object %s would be %s more (its repository.peer-quotas): forget and prune backups, or have the quota raised", account, size(have), size(most), key, size(bytes))
		}
	}
	l.mu.taken[name] += bytes
	l.mu.takenBy[account] += bytes
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.mu.taken[name] -= bytes; l.mu.taken[name] == 0 {
			delete(l.mu.taken, name)
		}
		if l.mu.takenBy[account] -= bytes; l.mu.takenBy[account] == 0 {
			delete(l.mu.takenBy, account)
		}
	}, nil
}

// count counts the repositories that were not counted yet, or last before a time. One that goes meanwhile holds nothing.
func (h *Host) count(ctx context.Context, names []string, before time.Time) error {
	for _, name := range names {
		if h.counted(name, before) {
			continue
		}
		select {
		case h.ledger.counting <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		err := error(nil)
		if !h.counted(name, before) {
			err = h.countOne(context.WithoutCancel(ctx), name) // who comes again finds it done
		}
		<-h.ledger.counting
		if err != nil {
			return err
		}
	}
	return nil
}

func (h *Host) counted(name string, before time.Time) bool {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	u := h.ledger.mu.used[name]
	return u != nil && !u.at.Before(before)
}

func (h *Host) countOne(ctx context.Context, name string) error {
	d, err := h.repository(name)
	if err != nil {
		if errors.Is(err, block.ErrNotFound) {
			return nil
		}
		return err
	}
	gate := h.ledger.gate(name)
	gate.Lock()
	defer gate.Unlock()
	u := &used{by: make(map[string]uint64), at: h.o.Now()}
	if err := d.List(ctx, "", func(o backend.Object) error {
		u.bytes += uint64(o.SizeBytes)
		if len(h.o.PeerQuotas) > 0 {
			account, err := d.Owner(o.Key)
			if err != nil && !errors.Is(err, block.ErrNotFound) {
				return err
			}
			if account != "" {
				u.by[account] += uint64(o.SizeBytes)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	h.ledger.mu.used[name] = u
	return nil
}

// Usage is what a repository holds, or a client has in all of them, and what they may.
type Usage struct {
	Repository string // empty: of a client
	Peer       string // empty: of a repository
	UsedBytes  uint64
	QuotaBytes uint64
}

// Usage returns that of the repositories and clients with quotas, as far as somebody has asked for something that had them counted; repositories first, by name.
func (h *Host) Usage() (all []Usage) {
	h.ledger.mu.Lock()
	defer h.ledger.mu.Unlock()
	peers := make(map[string]uint64)
	for name, u := range h.ledger.mu.used {
		if most := h.o.Quotas.Of(name); most > 0 {
			all = append(all, Usage{Repository: name, UsedBytes: u.bytes, QuotaBytes: most})
		}
		for account, n := range u.by {
			peers[account] += n
		}
	}
	for account, n := range peers {
		if most := h.o.PeerQuotas.Of(account); most > 0 {
			all = append(all, Usage{Peer: account, UsedBytes: n, QuotaBytes: most})
		}
	}
	slices.SortFunc(all, func(a, b Usage) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Repository, b.Repository))
	})
	return all
}
