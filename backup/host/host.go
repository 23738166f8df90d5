package host

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/dir"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Options say what is kept, and for whom.
type Options struct {
	Dir          string        // of the repositories; it is never made: its disk may just not be mounted
	Rules        access.Rules  // who may do what; without any nobody may do anything
	Keep         time.Duration // how long objects that are held must have been there before anybody may delete them; 0: none are
	ReserveBytes uint64        // of the file system that are left free
	Quotas       access.Quotas // bytes of objects that a repository may hold
	PeerQuotas   access.Quotas // bytes of objects in all repositories that a client may have stored; the file system must have extended attributes
	Stall        time.Duration // how long a client may be silent; 0: a minute
	Now          func() time.Time
	Events       Events
}

// Events are told what an operator should know. Each may be nil. They are called by several goroutines at once.
type Events struct {
	Made    func(peer, repository string)
	Refused func(peer, repository string, err error) // what a client may not do, or not yet
	Failed  func(repository string, err error)       // what this machine could not do
}

// Host serves repositories. Its methods may be called at once.
type Host struct {
	o   Options
	mux *http.ServeMux

	listing  chan struct{} // a place for each list that is made at once
	ledger   *ledger
	deleting sync.Mutex // held while an object is deleted, so that its age is that of what goes

	mu struct {
		sync.Mutex
		open  map[string]*dir.Dir // by name
		stats map[string]*Stats   // by name
		busy  int                 // requests
		by    map[string]int      // of these, by client
		left  chan struct{}       // closed when one ends
	}
}

// Bounds of what a host does at once, and of what it keeps.
const (
	maxBusy         = 128
	maxBusyOfOne    = 16 // remote.Client has no more connections
	maxListing      = 4
	maxRepositories = 1000
	defaultStall    = time.Minute
)

// New returns a host of the repositories in a folder.
func New(o Options) *Host {
	if o.Stall == 0 {
		o.Stall = defaultStall
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	h := &Host{o: o, listing: make(chan struct{}, maxListing), ledger: newLedger()}
	h.mu.open, h.mu.stats, h.mu.by = make(map[string]*dir.Dir), make(map[string]*Stats), make(map[string]int)
	h.mu.left = make(chan struct{})
	h.routes()
	return h
}

// Missing returns why the folder is not there, nil if it is. Until it is, every request fails, such that clients try again.
func (h *Host) Missing() error {
	info, err := os.Stat(h.o.Dir)
	switch {
	case err != nil:
		return fmt.Errorf("folder of repositories: %v; make it, or mount its disk", err) // not %w: it is no missing repository
	case !info.IsDir():
		return fmt.Errorf("folder of repositories: %s is no directory", h.o.Dir)
	}
	return nil
}

// repository returns one that is there, else block.ErrNotFound. The name was checked.
func (h *Host) repository(name string) (*dir.Dir, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.mu.open[name]; d != nil {
		return d, nil
	}
	if err := h.Missing(); err != nil {
		return nil, err
	}
	d, err := dir.Open(h.path(name))
	if err == nil {
		h.mu.open[name] = d
	}
	return d, err
}

func (h *Host) path(name string) string { return filepath.Join(h.o.Dir, name) }

// create makes the folder of a repository; block.ErrExists if there is one with something in it.
func (h *Host) create(name string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.Missing(); err != nil {
		return err
	}
	entries, err := os.ReadDir(h.o.Dir)
	if err != nil {
		return err
	}
	if len(entries) >= maxRepositories {
		return refuse(http.StatusForbidden, "there are %d repositories already", len(entries))
	}
	d, err := dir.Create(h.path(name))
	if err == nil {
		h.mu.open[name] = d
	}
	return err
}

// hasConfig reports whether a repository is complete.
func hasConfig(ctx context.Context, d *dir.Dir) (bool, error) {
	_, err := d.Stat(ctx, "config")
	if errors.Is(err, block.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// enter counts a request in when its client may have one more, and waits a while for that. It returns false if that was too long.
func (h *Host) enter(ctx context.Context, peer string) bool {
	ctx, cancel := context.WithTimeout(ctx, h.o.Stall/6)
	defer cancel()
	for {
		h.mu.Lock()
		fits, left := h.mu.busy < maxBusy && h.mu.by[peer] < maxBusyOfOne, h.mu.left
		if fits {
			h.mu.busy++
			h.mu.by[peer]++
		}
		h.mu.Unlock()
		if fits {
			return true
		}
		select {
		case <-left:
		case <-ctx.Done():
			return false
		}
	}
}

func (h *Host) leave(peer string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.busy--
	if h.mu.by[peer]--; h.mu.by[peer] == 0 {
		delete(h.mu.by, peer)
	}
	close(h.mu.left)
	h.mu.left = make(chan struct{})
}
