package overlay

import "sync/atomic"

// Budget counts the bytes of all layers of a store against one limit. It is safe for concurrent use.
//
// The limit is not enforced here: a publish must never fail, because its record is in the log already. The engine asks before it appends.
type Budget struct {
	limit int64
	used  atomic.Int64
	high  atomic.Int64
}

// NewBudget returns a budget of limit bytes.
func NewBudget(limit int64) *Budget { return &Budget{limit: limit} }

// Limit returns the limit in bytes.
func (b *Budget) Limit() int64 { return b.limit }

// Used returns the bytes held by all layers now. It may exceed the limit.
func (b *Budget) Used() int64 { return b.used.Load() }

// High returns the most bytes that were ever held at once.
func (b *Budget) High() int64 { return b.high.Load() }

// add books n bytes, negative to give back.
func (b *Budget) add(n int64) {
	used := b.used.Add(n)
	for high := b.high.Load(); used > high; high = b.high.Load() {
		if b.high.CompareAndSwap(high, used) {
			return
		}
	}
}

// account books what one layer holds, in the layer and in the budget that it shares.
type account struct {
	budget *Budget
	bytes  atomic.Int64
}

func (a *account) add(n int64) {
	if n != 0 {
		a.bytes.Add(n)
		a.budget.add(n)
	}
}
