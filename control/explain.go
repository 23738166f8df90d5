package control

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Explaining is the state of the survey that runs, or ran last: where the savings of a volume, or of all, come from. Surveys are numbered from 1 on; one runs at a time.
type Explaining struct {
	Running     bool
	Run         uint64
	Volume      string // empty: all volumes
	DoneBytes   uint64
	TotalBytes  uint64
	Cancelled   bool
	Error       string                  // why it ended badly
	Explanation *blockstore.Explanation // of the last one that ended well, and is this one
}

// explainer runs one survey at a time and keeps its result.
type explainer struct {
	mu     sync.Mutex
	state  Explaining
	cancel context.CancelFunc // of the one that runs
}

// StartExplain begins a survey. While one runs another one is ErrInUse.
func (c *Control) StartExplain(volume string) (Explaining, error) {
	if volume != "" {
		if _, err := c.visible(volume); err != nil {
			return Explaining{}, fmt.Errorf("explain: %w", err)
		}
	}
	x := &c.explains
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.state.Running {
		what := "the store"
		if x.state.Volume != "" {
			what = fmt.Sprintf("volume %q", x.state.Volume)
		}
		return Explaining{}, fmt.Errorf("explain: a survey of %s is under way: %w", what, block.ErrInUse)
	}
	done, err := c.begin()
	if err != nil {
		return Explaining{}, err
	}
	ctx, cancel := context.WithCancel(c.background)
	x.cancel = cancel
	x.state = Explaining{Running: true, Run: x.state.Run + 1, Volume: volume}
	go func() {
		defer done()
		defer cancel()
		c.runExplain(ctx, volume)
	}()
	return x.state, nil
}

func (c *Control) runExplain(ctx context.Context, volume string) {
	x := &c.explains
	e, err := c.engine.Explain(ctx, volume, hidden, func(p blockstore.ExplainProgress) {
		x.mu.Lock()
		defer x.mu.Unlock()
		x.state.DoneBytes, x.state.TotalBytes = p.DoneBytes, p.TotalBytes
	})
	x.mu.Lock()
	defer x.mu.Unlock()
	x.state.Running, x.state.Explanation = false, e
	switch {
	case errors.Is(err, context.Canceled):
		x.state.Cancelled = true
	case err != nil:
		x.state.Error = err.Error()
	}
}

// Explaining returns how far the survey is that runs, or ran last, and what it found.
func (c *Control) Explaining() Explaining {
	c.explains.mu.Lock()
	defer c.explains.mu.Unlock()
	return c.explains.state
}

// CancelExplain ends the survey that runs, if one does.
func (c *Control) CancelExplain() Explaining {
	x := &c.explains
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.state.Running {
		x.cancel()
	}
	return x.state
}
