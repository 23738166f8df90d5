package blockstore

import (
	"sync/atomic"
)

// dueFirst marks what a settle waits for: the nodes, jobs and segments that were there when it began to wait. The worker takes those before younger ones. Without it others
// who go on deleting and overwriting would always leave something that looks better to the worker, and the settle would never end.
type dueFirst struct {
	node, job, segment atomic.Uint64 // the youngest ones; 0 while nobody settles
}

// upTo has all go first that is there by now. A settle that began earlier waits for a part of that.
func (d *dueFirst) upTo(c *counters, lastSeq uint64) {
	d.node.Store(lastSeq)
	d.job.Store(c.NextRow)
	d.segment.Store(c.NextSegment)
}

func (d *dueFirst) nothing() {
	d.node.Store(0)
	d.job.Store(0)
	d.segment.Store(0)
}

// nodeBefore reports whether a node that can go is to be removed before another: one that a settle waits for first, then the younger, as leaves cost less than what lies
// under them.
func (d *dueFirst) nodeBefore(a, b nodeID) bool {
	mark := nodeID(d.node.Load())
	if due := a <= mark; due != (b <= mark) {
		return due
	}
	return a > b
}

func (d *dueFirst) hasJob(num uint64) bool { return num <= d.job.Load() }
