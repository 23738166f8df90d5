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

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/stripe"
)

// Store is an open data directory. Its methods are safe for any number of goroutines. Close ends it; nothing may be called on it, its volumes or its devices afterwards.
type Store struct {
	opts   Options
	plan   memoryPlan
	fs     vfs.FS
	lock   io.Closer
	super  *superblock // written by updateSuper
	domain dedup.DomainKey
	keys   *frameKeys // of a store that is encrypted; else nil

	log         *journal.Log
	streamed    atomic.Int64  // when a stream was written to last, in ns since 1970
	streaming   atomic.Bool   // the superblock says that there may be streams
	streamRetry atomic.Int64  // when the superblock is tried again, in ns since 1970
	streamEnd   atomic.Uint64 // position behind the last record of a stream
	db          *pebble.DB
	tiers       *tiers.Set
	stripes     *stripe.Backend // the tier, where the store has several disks; else nil
	budget      *overlay.Budget
	maps        *extentmap.Map
	pages       *extentmap.Cache
	chunks      *chunkReader
	segments    segmentTable
	aheads      aheads
	space       *spaceGate
	packer      packer                                   // of destage
	mover       packer                                   // of what survives in segments that are emptied, of the warm class
	cold        packer                                   // of the cold class
	cooling     atomic.Pointer[map[block.SegmentID]bool] // cooling.from of the pass that is under way: what it will take anyhow is not reclaimed
	coolMu      sync.Mutex                               // held by the one pass that fills cold segments

	// ops is held by one control operation at a time (create, snapshot, rollback, …): log order is then the order of effects.
	ops sync.Mutex

	asked atomic.Uint64 // highest sequence number of a record that a guest or an operation asked for, since the store was opened

	// meta is held by the one writer of metadata; c is what its last batch wrote. It guards the filters, too.
	meta        sync.Mutex
	c           counters
	hints       *hintFilter
	recentHints *hintCache
	refRows     *refFilter
	index       index
	neighbours  neighbours
	counted     atomic.Pointer[counters]

	// publishing is held from the moment rows change until the roots that fit them are published. A reader that meets a row that is gone waits for it: a row is visible
	// as deleted some milliseconds before its deletion is durable.
	publishing sync.RWMutex

	// tree guards the forest of nodes, the table of volumes, what of both is not yet in rows, and the fields of Volume and node that say so.
	tree       sync.RWMutex
	volumes    map[block.VolumeID]*Volume
	names      map[string]*Volume
	nodes      map[nodeID]*node
	dirty      dirtySet
	appliedSeq uint64 // last control record in the tree
	nextVolume uint64 // id of the next volume

	destager *destager
	worker   *worker
	keeper   *keeper
	// collector is garbage collection.
	collector *collector
	cooler    cooler
	// checkpoints keeps the rows a second time.
	checkpoints *checkpointer
	indexer     *indexer
	suspect     suspicion
	damaged     damagedChunks
	sums        map[rowKey]uint64 // what each row adds to the counters' checksum; guarded by meta
	superMu     sync.Mutex
	diskMu      sync.Mutex // guards opts.Disks
	keyBytes    []byte     // the file of keys, to copy it
	restored    bool       // the data directory was lost
	cleaner     *metaCleaner
	logs        *metaLogs
	dense       atomic.Bool // the metadata's tables are being packed as tightly as they can
	started     time.Time
	corruptions atomic.Uint64 // reports of damage since open
	closed      atomic.Bool
	clean       bool            // the store had been closed in order
	ctx         context.Context // of background work; ends with Close
	cancel      context.CancelFunc
	running     sync.WaitGroup
	bytesOut    atomic.Int64 // written to segments since open
	thorough    atomic.Int32 // settles under way: reclaim goes further
	dueFirst    dueFirst     // what they wait for
	recuts      recuts
	freeTouched atomic.Bool // there may be rows of granules that no bitmap needs
	historian   *historian
	thinner     *thinner
	surveyor    *surveyor
}

// dirtySet is what of the tree is not yet in rows.
type dirtySet struct {
	nodes       map[nodeID]*node
	volumes     map[block.VolumeID]*Volume
	goneVolumes map[block.VolumeID]bool
	ops         bool // a control record is not in rows
}

func newDirtySet() dirtySet {
	return dirtySet{nodes: map[nodeID]*node{}, volumes: map[block.VolumeID]*Volume{}, goneVolumes: map[block.VolumeID]bool{}}
}

// take empties the set, whose content is on its way into a batch.
func (d *dirtySet) take() dirtySet {
	got := *d
	*d = newDirtySet()
	return got
}

// putBack returns a capture whose batch failed.
func (d *dirtySet) putBack(c dirtySet) {
	for id, n := range c.nodes {
		d.nodes[id] = n
	}
	for id, v := range c.volumes {
		d.volumes[id] = v
	}
	for id := range c.goneVolumes {
		d.goneVolumes[id] = true
	}
	d.ops = d.ops || c.ops
}

func (d *dirtySet) empty() bool {
	return len(d.nodes)+len(d.volumes)+len(d.goneVolumes) == 0 && !d.ops
}

func (s *Store) touchNodeLocked(n *node)     { s.dirty.nodes[n.id] = n }
func (s *Store) touchVolumeLocked(v *Volume) { s.dirty.volumes[v.id] = v }

// noteOpLocked records that the control record seq is in the tree. Store.tree is held.
func (s *Store) noteOpLocked(seq uint64) {
	s.appliedSeq = seq
	s.dirty.ops = true
}

// forgetNodeLocked takes a purged node out of the forest. Store.tree is held.
func (s *Store) forgetNodeLocked(n *node) {
	delete(s.nodes, n.id)
	delete(n.volume.nodes, n.id)
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
	s.aheads.close()
	err := s.flushTree()
	s.collector.lastAudit()
	s.report("note damage of the metadata", s.noteSuspicion())
	s.report("last checkpoint of the metadata", s.checkpoints.close()) // without it nothing is lost: the log goes back further
	err = errors.Join(err, s.packer.close(), s.mover.close(), s.cold.close())
	clean := err == nil
	err = errors.Join(err, s.historian.close(), s.log.Close())
	s.report("close the index", s.index.close()) // what it does not have is put in again
	err = errors.Join(err, s.db.Close())
	if err == nil && clean {
		err = s.updateSuper(func(super *superblock) {
			super.Flags |= flagClean
			if j := s.checkpoints.journaled.Load(); j != nil { // it is older when a death came between the row and the superblock, and nothing changed since
				super.Checkpoints = [2]checkpointPointer{j.Full, j.Last}
			}
		})
	}
	err = errors.Join(err, s.chunks.close(), s.tiers.Close())
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
