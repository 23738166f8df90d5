package blockstore

import (
	"sync"
	"sync/atomic"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Volume is a named run of bytes. Its methods are safe for any number of goroutines.
type Volume struct {
	s       *Store
	id      block.VolumeID
	uuid    block.UUID
	cut     cdc.Params
	created int64 // ns since the epoch

	// mu is held shared across append and publish of every write, and exclusively by whatever closes the head (snapshot, rollback, delete), changes the size, or
	// registers a read-modify-write: so these see no write in flight.
	mu       sync.RWMutex
	mapEpoch uint32 // changed under mu and Store.tree

	head atomic.Pointer[node]
	size atomic.Uint64 // bytes
	mode atomic.Uint32 // WriteMode
	gone atomic.Bool   // deleted

	rmw   rmwTable
	share share // of the log, when it gets short

	stream streamGauge

	limits atomic.Pointer[limiter] // nil: none
	quota  atomic.Pointer[quota]   // nil: none

	history atomic.Pointer[volumeHistory] // nil: none

	// Guarded by Store.tree.
	name  string
	users int              // open devices
	nodes map[nodeID]*node // its states, deleted ones that are not purged yet included
	// bitmaps is replaced, never changed: whoever read it goes on with what it was.
	bitmaps []bitmap

	counters volumeCounters
}

// volumeCounters are totals since the store was opened.
type volumeCounters struct {
	writes, writeBytes atomic.Int64
	reads, readBytes   atomic.Int64
	discards           atomic.Int64
}

// adoptLocked makes a node one of the volume's. Store.tree is held.
func (v *Volume) adoptLocked(n *node) {
	if v.nodes == nil {
		v.nodes = map[nodeID]*node{}
	}
	v.nodes[n.id] = n
}

func (v *Volume) rowLocked() *volumeRow {
	return &volumeRow{ID: v.id, UUID: v.uuid, Size: v.size.Load(), MapEpoch: v.mapEpoch, Mode: WriteMode(v.mode.Load()), Head: v.head.Load().id, Cut: v.cut, Created: v.created, Name: v.name, Bitmaps: v.bitmaps}
}

// checkRange returns ErrOutOfRange when [off, off+n) does not lie in the volume.
func (v *Volume) checkRange(off, n uint64) error {
	size := v.size.Load()
	if off > size || n > size-off {
		return block.ErrOutOfRange
	}
	return nil
}

// blocksOf returns the first block and the number of blocks that [off, off+n) touches; n is not 0.
func blocksOf(off, n uint64) (first, count uint64) {
	first = off / block.Size
	return first, (off+n-1)/block.Size - first + 1
}
