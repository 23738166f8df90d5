package api

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Only a window of 0 ends history: what is next to nothing, or no number, does not.
func TestHistoryPolicyValues(t *testing.T) {
	for _, c := range []struct {
		window, every, flushes, minutes float64
		budget                          uint64
		want                            blockstore.HistoryPolicy
		bad                             bool
	}{
		{window: 3600, every: 60, budget: 1 << 30, want: blockstore.HistoryPolicy{Window: time.Hour, Every: time.Minute, BudgetBytes: 1 << 30}},
		{window: 0, budget: 1 << 30},
		{window: 1e-12, bad: true},
		{window: -1, bad: true},
		{window: math.NaN(), bad: true},
		{window: math.Inf(1), bad: true},
		{every: 60, bad: true},
		{flushes: 60, bad: true},
		{window: 60, minutes: 1e18, bad: true},
	} {
		got, err := historyPolicy(c.window, c.budget, c.every, c.flushes, c.minutes)
		if c.bad && !errors.Is(err, block.ErrInvalid) || !c.bad && (err != nil || got != c.want) {
			t.Errorf("%+v is %+v, %v", c, got, err)
		}
	}
}
