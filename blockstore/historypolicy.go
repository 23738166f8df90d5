package blockstore

import (
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

const (
	// MaxHistoryWindow is the longest window of history.
	MaxHistoryWindow = 366 * 24 * time.Hour
	// MinHistoryBudget is the least budget of a volume's history, in bytes: below, a file would be more than all of it.
	MinHistoryBudget = 64 << 20
	// MinHistoryEvery is the least time for which every write stays of a history that is thinned.
	MinHistoryEvery = time.Minute
)

// HistoryPolicy says how much of a volume's past can be had again; the zero value is none. With Every, what is older is thinned: what the volume was after each flush up to the age Flushes, then after the last flush of each minute up to the age Minutes,
// then of each hour up to Window. A minute, or hour, without a flush has the last record of it. Marks and snapshots stay as long as the window says.
type HistoryPolicy struct {
	// Window is how far back, at most MaxHistoryWindow.
	Window time.Duration
	// BudgetBytes bounds what history takes on disk, at least MinHistoryBudget; 0: the lesser of 10 GiB and 5 % of the file system. Over it the oldest history goes first.
	BudgetBytes uint64
	// Every is the age up to which every write can be had, at least MinHistoryEvery; 0: up to Window, nothing is thinned, and the next ones are 0, too.
	Every time.Duration
	// Flushes and Minutes are ages, each more than those before it; 0: there is no such stretch.
	Flushes, Minutes time.Duration
}

// None reports whether nothing is kept.
func (p HistoryPolicy) None() bool { return p == HistoryPolicy{} }

// Validate reports the first value that is out of bounds.
func (p HistoryPolicy) Validate() error {
	switch {
	case p.None():
		return nil
	case p.Window < time.Second || p.Window > MaxHistoryWindow:
		return fmt.Errorf("window of %v: want 1 s to %v: %w", p.Window, MaxHistoryWindow, block.ErrInvalid)
	case p.BudgetBytes != 0 && p.BudgetBytes < MinHistoryBudget:
		return fmt.Errorf("budget of %d B: want at least %d: %w", p.BudgetBytes, uint64(MinHistoryBudget), block.ErrInvalid)
	case p.Every == 0 && (p.Flushes != 0 || p.Minutes != 0):
		return fmt.Errorf("flushes up to %v and minutes up to %v, and no age up to which every write stays: %w", p.Flushes, p.Minutes, block.ErrInvalid)
	case p.Every != 0 && (p.Every < MinHistoryEvery || p.Every > p.Window):
		return fmt.Errorf("every write of %v: want at least %v, and at most the window of %v: %w", p.Every, MinHistoryEvery, p.Window, block.ErrInvalid)
	case p.Flushes != 0 && (p.Flushes <= p.Every || p.Flushes > p.Window):
		return fmt.Errorf("flushes of %v: want more than the %v of every write, and at most the window of %v: %w", p.Flushes, p.Every, p.Window, block.ErrInvalid)
	case p.Minutes != 0 && (p.Minutes <= max(p.Every, p.Flushes) || p.Minutes > p.Window):
		return fmt.Errorf("minutes of %v: want more than the %v before, and at most the window of %v: %w", p.Minutes, max(p.Every, p.Flushes), p.Window, block.ErrInvalid)
	}
	return nil
}

// Thins reports whether anything is thinned.
func (p HistoryPolicy) Thins() bool { return p.Every > 0 && p.Every < p.Window }

// Hours is the age up to which hours are left; 0: there is no such stretch.
func (p HistoryPolicy) Hours() time.Duration {
	if p.Every == 0 || max(p.Every, p.Flushes, p.Minutes) >= p.Window {
		return 0
	}
	return p.Window
}

// whole is the age up to which every write stays.
func (p HistoryPolicy) whole() time.Duration {
	if p.Every == 0 {
		return p.Window
	}
	return p.Every
}

// level is how much is left of what is that old.
func (p HistoryPolicy) level(age time.Duration) history.Level {
	switch {
	case age <= p.whole():
		return history.Whole
	case age <= p.Flushes:
		return history.Flushes
	case age <= p.Minutes:
		return history.Minutes
	case p.Hours() > 0:
		return history.Hours
	case p.Minutes > 0: // it goes with its root, soon
		return history.Minutes
	case p.Flushes > 0:
		return history.Flushes
	}
	return history.Whole
}
