package control

import (
	"context"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Settling is the state of the settles. They are numbered from 1 on; each covers what was in the store when it began.
type Settling struct {
	Running bool
	// Run is the number of the settle that runs, or ran last; from StartSettle, of the one that covers what was there at the call.
	Run uint64
	// Ended is the number of the last settle that ended; what a Run up to it covers is settled, unless Error says otherwise.
	Ended     uint64
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
	again bool // somebody asked after the one that runs had begun: another one follows
	cold  bool // somebody asked for a cold one, which has not begun
}

// StartSettle begins to destage and reclaim all that is in the store now. While a settle runs, another one follows it, since the one that runs does not wait for what
// came after its beginning; all who ask meanwhile share that one. With cold it rewrites all that is stored into cold segments, too.
func (c *Control) StartSettle(cold bool) (Settling, error) {
	s := &c.settle
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.state.Running {
		s.again, s.cold = true, s.cold || cold
		asked := s.state
		asked.Run++
		return asked, nil
	}
	done, err := c.begin()
	if err != nil {
		return Settling{}, err
	}
	s.cold = cold
	s.beginLocked()
	go func() {
		defer done()
		for more := true; more; {
			more = c.runSettle(c.background)
		}
	}()
	return s.state, nil
}

func (s *settler) beginLocked() {
	s.again = false
	last := s.state
	s.state = Settling{Running: true, Run: last.Run + 1, Ended: last.Ended, Done: last.Done, Error: last.Error, Phase: "start"}
}

// Settling returns how far the settle is.
func (c *Control) Settling() Settling {
	c.settle.mu.Lock()
	defer c.settle.mu.Unlock()
	return c.settle.state
}

// runSettle runs one settle and reports whether another one has begun.
func (c *Control) runSettle(ctx context.Context) (more bool) {
	s := &c.settle
	s.mu.Lock()
	settle := c.engine.Settle
	if s.cold {
		s.cold, settle = false, c.engine.SettleCold
	}
	s.mu.Unlock()
	err := settle(ctx, func(p blockstore.SettleProgress) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.state.Phase, s.state.DoneBytes, s.state.LeftBytes = p.Phase, p.DoneBytes, p.LeftBytes
	})
	if err != nil {
		c.log.Error("settle failed", "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.state = Settling{Run: s.state.Run, Ended: s.state.Run, Done: err == nil}
	if err != nil {
		s.state.Error = err.Error()
	}
	if s.again && ctx.Err() == nil {
		s.beginLocked()
		return true
	}
	return false
}
