package gauge

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
)

// Restore measures how fast a backup comes back, as `restore` does it, to nowhere: so many bytes of data that are not zero, or all there are.
func Restore(ctx context.Context, r *repository.Repository, m *repository.Manifest, most uint64) (rate Rate, err error) {
	ctx, enough := context.WithCancel(ctx)
	defer enough()
	to := &nowhere{left: most, enough: enough}
	began := time.Now()
	err = backup.Restore(ctx, r, m, to, nil)
	to.mu.Lock()
	defer to.mu.Unlock()
	rate = Rate{Bytes: to.done, Seconds: time.Since(began).Seconds()}
	if to.full && (errors.Is(err, context.Canceled) || errors.Is(err, errEnough)) {
		err = nil
	}
	return rate, err
}

// errEnough ends a restore that has been measured.
var errEnough = errors.New("enough was restored")

// nowhere counts what is written to it.
type nowhere struct {
	mu     sync.Mutex
	left   uint64
	done   uint64
	full   bool
	enough context.CancelFunc
}

// WriteAt implements io.WriterAt.
func (n *nowhere) WriteAt(p []byte, _ int64) (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.full {
		return 0, errEnough
	}
	n.done += uint64(len(p))
	if n.full = n.done >= n.left; n.full {
		n.enough()
	}
	return len(p), nil
}
