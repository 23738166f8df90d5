package blockstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/maypok86/otter/v2/stats"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

// Store is an open data directory. Its methods are safe for any number of goroutines. Close ends it; nothing may be called on it, its volumes or its devices afterwards.
type Store struct {
	opts   Options
	plan   memoryPlan
	fs     vfs.FS
	lock   io.Closer
	super  *superblock
	domain dedup.DomainKey

	log      *journal.Log
	db       *pebble.DB
	tiers    *tiers.Set
	budget   *overlay.Budget
	maps     *extentmap.Map
	pages    *extentmap.Cache
	chunks   *chunkReader
	segments segmentTable
	space    *spaceGate
	packer   packer

	frameStats *stats.Counter

	// ops is held by one control operation at a time (create, snapshot, rollback, …): log order is then the order of effects.
	ops sync.Mutex

	// meta is held by the one writer of metadata; c is what its last batch wrote.
	meta    sync.Mutex
	c       counters
	counted atomic.Pointer[counters]

	// publishing is held from the moment rows change until the roots that fit them are published. A reader that meets a row that is gone waits for it: a row is visible
	// as deleted some milliseconds before its deletion is durable.
	publishing sync.RWMutex

	// tree guards the forest of nodes, the table of volumes, what of both is not yet in rows, and the fields of Volume and node that say so.
	tree       sync.RWMutex
	volumes    map[block.VolumeID]*Volume
	names      map[string]*Volume
	nodes      map[nodeID]*node
	dirty      dirtySet
	appliedSeq uint64      // last control record in the tree
	nextVolume uint64      // id of the next volume
	persisted  journal.Pos // control records before it are in rows

	destager *destager
	worker   *worker
	cleaner  *metaCleaner
	started  time.Time
	closed   atomic.Bool
	clean    bool            // the store had been closed in order
	ctx      context.Context // of background work; ends with Close
	cancel   context.CancelFunc
	running  sync.WaitGroup
	bytesOut atomic.Int64 // written to segments since open
	thorough atomic.Int32 // settles under way: reclaim goes further
}

// dirtySet is what of the tree is not yet in rows.
type dirtySet struct {
	nodes       map[nodeID]*node
	volumes     map[block.VolumeID]*Volume
	goneVolumes map[block.VolumeID]bool
	since       journal.Pos // of the oldest control record that is not in rows; 0 when all are
	next        journal.Pos // every control record so far lies before it
}

// capturedDirty is a dirtySet on its way into a batch.
type capturedDirty = dirtySet

func newDirtySet() dirtySet {
	return dirtySet{nodes: map[nodeID]*node{}, volumes: map[block.VolumeID]*Volume{}, goneVolumes: map[block.VolumeID]bool{}}
}

func (d *dirtySet) take() capturedDirty {
	got := *d
	*d = newDirtySet()
	d.next = got.next
	return got
}

// putBack returns a capture whose batch failed.
func (d *dirtySet) putBack(c capturedDirty) {
	for id, n := range c.nodes {
		d.nodes[id] = n
	}
	for id, v := range c.volumes {
		d.volumes[id] = v
	}
	for id := range c.goneVolumes {
		d.goneVolumes[id] = true
	}
	if c.since != 0 {
		d.since = c.since
	}
}

func (d *dirtySet) empty() bool {
	return len(d.nodes)+len(d.volumes)+len(d.goneVolumes) == 0 && d.since == 0
}

func (s *Store) touchNodeLocked(n *node)     { s.dirty.nodes[n.id] = n }
func (s *Store) touchVolumeLocked(v *Volume) { s.dirty.volumes[v.id] = v }

// noteOpLocked records that the control record seq, which lies at pos, is in the tree. Store.tree is held.
func (s *Store) noteOpLocked(seq uint64, pos, next journal.Pos) {
	s.appliedSeq = seq
	if s.dirty.since == 0 {
		s.dirty.since = pos
	}
	s.dirty.next = next
}

// forgetNodeLocked takes a purged node out of the forest. Store.tree is held.
func (s *Store) forgetNodeLocked(n *node) {
	delete(s.nodes, n.id)
	delete(s.dirty.nodes, n.id)
	if p := n.parent.Load(); p != nil {
		p.children--
	}
	n.layer.Release()
}

// Close stops background work, syncs the log, marks the store clean and closes it. Data that is still only in the log stays there and is replayed by the next open.
func (s *Store) Close() error {
	if !s.closed.CompareAndSwap(false, true) {
		return block.ErrClosed
	}
	s.cancel()
	s.running.Wait()
	err := s.flushTree()
	err = errors.Join(err, s.packer.close())
	clean := err == nil
	err = errors.Join(err, s.log.Close())
	err = errors.Join(err, s.db.Close())
	if err == nil && clean {
		s.super.Flags |= flagClean
		err = writeSuper(s.fs, s.opts.Dir, s.super)
	}
	err = errors.Join(err, s.tiers.Close())
	return errors.Join(err, s.lock.Close())
}

// flushTree brings every control record into rows.
func (s *Store) flushTree() error {
	s.tree.RLock()
	empty := s.dirty.empty()
	s.tree.RUnlock()
	if empty {
		return nil
	}
	if err := s.log.Sync(context.Background()); err != nil {
		return err
	}
	return s.beginMeta().commit()
}

func (s *Store) report(task string, err error) {
	if err == nil || errors.Is(err, context.Canceled) {
		return
	}
	if errors.Is(err, block.ErrCorrupt) && s.opts.Events.Corruption != nil {
		s.opts.Events.Corruption(fmt.Errorf("%s: %w", task, err))
	}
	if s.opts.Events.BackgroundError != nil {
		s.opts.Events.BackgroundError(task, err)
	}
}
