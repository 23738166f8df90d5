package control

import (
	"context"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Settling is the state of the last settle.
type Settling struct {
	Running   bool
	Done      bool   // the last one ended well
	Phase     string // of the one that runs
	DoneBytes uint64 // of the phase
	LeftBytes uint64 // of the phase, as far as known
	Error     string // why the last one ended badly
}

// settler runs one settle at a time.
type settler struct {
	mu    sync.Mutex
	state Settling
}

// StartSettle begins to destage and reclaim everything, or joins the settle that runs.
func (c *Control) StartSettle() (Settling, error) {
	c.settle.mu.Lock()
	defer c.settle.mu.Unlock()
	if c.settle.state.Running {
		return c.settle.state, nil
	}
	done, err := c.begin()
	if err != nil {
		return Settling{}, err
	}
	c.settle.state = Settling{Running: true, Phase: "start"}
	go func() {
		defer done()
		c.runSettle(c.background)
	}()
	return c.settle.state, nil
}

// Settling returns how far the settle is.
func (c *Control) Settling() Settling {
	c.settle.mu.Lock()
	defer c.settle.mu.Unlock()
	return c.settle.state
}

func (c *Control) runSettle(ctx context.Context) {
	err := c.engine.Settle(ctx, func(p blockstore.SettleProgress) {
		c.settle.mu.Lock()
		defer c.settle.mu.Unlock()
		c.settle.state.Phase, c.settle.state.DoneBytes, c.settle.state.LeftBytes = p.Phase, p.DoneBytes, p.LeftBytes
	})
	c.settle.mu.Lock()
	defer c.settle.mu.Unlock()
	c.settle.state = Settling{Done: err == nil}
	if err != nil {
		c.settle.state.Error = err.Error()
		c.log.Error("settle failed", "error", err)
	}
}
