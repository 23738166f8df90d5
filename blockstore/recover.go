package blockstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// loadRows reads the rows of counters, volumes, nodes and segments into the store.
func (s *Store) loadRows() error {
	if err := s.loadCounters(); err != nil {
		return err
	}
	if s.logs.problem != nil {
		return s.logs.problem
	}
	if err := s.loadTree(); err != nil {
		return err
	}
	if err := s.loadSegments(); err != nil {
		return err
	}
	if n, k := uint64(len(s.nodes)), uint64(len(s.segments.rows)); n != s.c.Nodes || k != s.c.Segments {
		return &block.CorruptError{Source: s.path("meta"), Want: fmt.Sprintf("rows of %d nodes and %d segments", s.c.Nodes, s.c.Segments), Got: fmt.Sprintf("%d and %d", n, k)}
	}
	if err := s.sumLoaded(); err != nil {
		return err
	}
	if err := s.checkpoints.load(); err != nil {
		return err
	}
	number := uint64(0)
	if j := s.checkpoints.journaled.Load(); j != nil {
		number = j.Number
	}
	if want := s.super.Checkpoints[1].Seq; number < want {
		return &block.CorruptError{Source: s.path("meta"), Want: fmt.Sprintf("the metadata of checkpoint %x", want), Got: fmt.Sprintf("that of %x, which is older", number)}
	}
	return nil
}

// forgetRows makes the store what it was before loadRows.
func (s *Store) forgetRows() {
	s.c, s.appliedSeq, s.nextVolume = counters{}, 0, 0
	s.volumes, s.names, s.nodes = map[block.VolumeID]*Volume{}, map[string]*Volume{}, map[nodeID]*node{}
	s.segments.rows = map[block.SegmentID]*segmentRow{}
	s.sums = map[rowKey]uint64{}
	boot := s.checkpoints.out.boot
	s.checkpoints = newCheckpointer(s)
	s.checkpoints.out.boot = boot
}

// recover replays the log over the rows.
func (s *Store) recover() (RecoveryInfo, error) {
	info := RecoveryInfo{Created: s.super.Flags&flagInitialized == 0, Clean: s.clean}
	began := s.opts.Now()
	s.cleaner.trust(true)
	r := &replayer{s: s, info: &info, histories: map[historyKey][]*node{}}
	for _, n := range s.nodes {
		r.note(n)
	}
	s.boundStreams()
	var err error
	s.log, err = journal.Open(journal.Options{
		FS: s.fs, Dir: s.path("log"), Mirrors: s.logMirrors(), StoreID: s.super.StoreID, BootEpoch: s.super.BootEpoch, OwnerEpoch: s.super.OwnerEpoch,
		Keys:       s.keys.logKeys(),
		MinSeq:     s.c.AppliedSeq + 1,
		RetainFrom: s.historian.retain(s.checkpoints.retain()),
		FileSize:   s.opts.LogFileBytes, CapBytes: s.opts.LogCapBytes, StreamBytes: s.opts.StreamBytes, ReserveBytes: s.opts.LogCapBytes / 32,
		SyncEvery: s.opts.SyncEvery, Now: s.opts.Now,
		Events: journal.Events{
			Place:  func(p journal.PlaceInfo) { s.tellDisk(p.Dir, p.State, p.Err) },
			Mended: func(dir string, cause error) { s.tellMended(dir, cause) },
		},
	}, s.c.Watermark, r.record)
	if err != nil {
		return info, fmt.Errorf("replay the log: %w", err)
	}
	if s.log.Usage().Stream > 0 {
		s.streamedTo(s.log.NextPos())
	}
	info.Duration = s.opts.Now().Sub(began)
	if s.restored {
		if err := s.log.Replace(s.path("log"), s.path("log")); err != nil && !errors.Is(err, block.ErrInvalid) {
			return info, err
		}
	}
	if s.super.Flags&flagInitialized == 0 {
		// An initialized store must have its counters: from then on their absence is damage.
		return info, s.beginMeta().commit()
	}
	return info, nil
}

func (s *Store) loadCounters() error {
	v, closer, err := s.db.Get(countersKey)
	if errors.Is(err, pebble.ErrNotFound) && s.super.Flags&flagInitialized == 0 {
		s.nextVolume = 1
		s.c.NextVolume, s.c.StoreID = 1, s.super.StoreID
		s.counted.Store(&counters{})
		return nil
	}
	if errors.Is(err, pebble.ErrNotFound) {
		return &block.CorruptError{Source: s.path("meta"), Want: "the row of counters", Got: "none"}
	}
	if err != nil {
		return fmt.Errorf("read counters: %w", err)
	}
	defer closer.Close()
	if s.c, err = decodeCounters(v); err != nil {
		return err
	}
	if s.c.StoreID != s.super.StoreID {
		return &foreignError{block.CorruptError{Source: s.path("meta"), Want: "the metadata of store " + s.super.StoreID.String(), Got: "that of " + s.c.StoreID.String()}}
	}
	c := s.c
	s.counted.Store(&c)
	s.appliedSeq, s.nextVolume = c.AppliedSeq, max(1, c.NextVolume)
	return nil
}

// scanRows calls f with key and value of each row under a prefix.
func (s *Store) scanRows(prefix byte, f func(key, value []byte) error) error {
	it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}})
	if err != nil {
		return err
	}
	for ok := it.First(); ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err == nil {
			err = f(it.Key(), v)
		}
		if err != nil {
			return errors.Join(err, it.Close())
		}
	}
	return it.Close()
}

// loadTree makes volumes and nodes of their rows.
func (s *Store) loadTree() error {
	heads := map[block.VolumeID]nodeID{}
	err := s.scanRows(keyVolume, func(_, b []byte) error {
		r, err := decodeVolumeRow(b)
		if err != nil {
			return err
		}
		v := &Volume{s: s, id: r.ID, uuid: r.UUID, cut: r.Cut, created: r.Created, name: r.Name, mapEpoch: r.MapEpoch, bitmaps: r.Bitmaps}
		v.size.Store(r.Size)
		v.mode.Store(uint32(r.Mode))
		s.volumes[v.id], s.names[v.name], heads[v.id] = v, v, r.Head
		return nil
	})
	if err != nil {
		return err
	}
	parents := map[*node]nodeID{}
	hidden := map[block.VolumeID]*Volume{}
	err = s.scanRows(keySnapshot, func(_, b []byte) error {
		r, err := decodeNodeRow(b)
		if err != nil {
			return err
		}
		v := s.volumes[r.Volume]
		if v == nil {
			// A deleted volume, some of whose states are still needed or not yet freed. How its data was cut is not known any more: what is left of it in the log is
			// cut as the store does by default.
			if v = hidden[r.Volume]; v == nil {
				v = &Volume{s: s, id: r.Volume, cut: s.super.Cut}
				v.gone.Store(true)
				hidden[r.Volume] = v
			}
		}
		n := &node{id: r.ID, volume: v, mapEpoch: r.MapEpoch, layer: overlay.NewLayer(s.budget), flags: r.Flags, name: r.Name, size: r.Size,
			closed: r.Closed, created: r.Created, bound: r.Bound, mapped: r.Mapped}
		if r.Flags&nodeStarted != 0 {
			root := r.Root
			n.root.Store(&root)
		}
		s.nodes[n.id], parents[n] = n, r.Parent
		v.adoptLocked(n)
		return nil
	})
	if err != nil {
		return err
	}
	return s.linkTree(parents, heads)
}

// linkTree sets parents and heads, and refuses rows that do not form a forest.
func (s *Store) linkTree(parents map[*node]nodeID, heads map[block.VolumeID]nodeID) error {
	for n, id := range parents {
		if id == 0 {
			continue
		}
		p := s.nodes[id]
		if p == nil || p.id >= n.id {
			return &block.CorruptError{Source: fmt.Sprintf("node row %d", n.id), Want: "an older node as its parent", Got: fmt.Sprint(id)}
		}
		n.parent.Store(p)
		p.children++
	}
	for id, head := range heads {
		n := s.nodes[head]
		if n == nil || n.volume.id != id || n.flags&nodeClosed != 0 {
			return &block.CorruptError{Source: fmt.Sprintf("volume row %d", id), Want: "an open node of the volume as its head", Got: fmt.Sprint(head)}
		}
		s.volumes[id].head.Store(n)
	}
	return nil
}

func (s *Store) loadSegments() error {
	return s.scanRows(keySegment, func(_, b []byte) error {
		r, err := decodeSegmentRow(b)
		if err == nil {
			s.segments.rows[r.ID] = r
		}
		return err
	})
}

// replayer brings log records into the tree and the overlays.
type replayer struct {
	s         *Store
	info      *RecoveryInfo
	histories map[historyKey][]*node
	lastKey   historyKey
	last      []*node // histories[lastKey]
}

// historyKey names the states of a volume between two rollbacks.
type historyKey struct {
	volume block.VolumeID
	epoch  uint32
}

// note adds a node to its history, which is ordered by id.
func (r *replayer) note(n *node) {
	k := historyKey{n.volume.id, n.mapEpoch}
	h := r.histories[k]
	i, known := slices.BinarySearchFunc(h, n.id, func(a *node, id nodeID) int { return cmp.Compare(a.id, id) })
	if known {
		return
	}
	r.histories[k] = slices.Insert(h, i, n)
	r.lastKey, r.last = historyKey{}, nil
}

// node returns the node that a record was written to, or nil when it is gone or its data is in the map already.
func (r *replayer) node(rec *journal.Replayed) *node {
	k := historyKey{rec.Volume, rec.MapEpoch}
	if k != r.lastKey || r.last == nil {
		r.lastKey, r.last = k, r.histories[k]
	}
	h := r.last
	i, _ := slices.BinarySearchFunc(h, nodeID(rec.Seq), func(a *node, id nodeID) int { return cmp.Compare(a.id, id) })
	if i == 0 {
		return nil
	}
	n := h[i-1]
	if n.flags&nodeResolved != 0 || n.abandonedLocked() || n.closed != 0 && rec.Seq > n.closed {
		return nil
	}
	return n
}

func (r *replayer) record(rec *journal.Replayed) error {
	r.info.Records++
	if rec.Kind >= journal.FirstControl {
		return r.control(rec)
	}
	n := r.node(rec)
	if n == nil {
		return nil
	}
	first, count := rec.Off/block.Size, rec.Len/block.Size
	if rec.Kind == journal.Write {
		n.layer.PublishWrite(first, uint64(rec.Pos), rec.Sums)
		r.info.Bytes += int64(rec.Len)
		return nil
	}
	n.layer.PublishZero(first, count, uint64(rec.Pos))
	return nil
}

func (r *replayer) control(rec *journal.Replayed) error {
	s := r.s
	o, err := decodeOp(rec.Kind, rec.Volume, rec.Payload)
	if err != nil {
		return fmt.Errorf("record %d: %w", rec.Seq, err)
	}
	o.Seq, o.Time, o.Pos = rec.Seq, rec.Time, rec.Pos
	o.Gone = block.Range{Off: rec.Off, Len: rec.Len}
	if rec.Seq <= s.appliedSeq {
		// The rows show it already, but what a shrink zeroed may still have to go to the map.
		if n := r.node(rec); n != nil && o.Kind == opResize && o.Gone.Len > 0 {
			n.layer.PublishZero(o.Gone.Off/block.Size, o.Gone.Len/block.Size, uint64(rec.Pos))
		}
		return nil
	}
	s.tree.Lock()
	defer s.tree.Unlock()
	if err := s.applyLocked(o); err != nil {
		return err
	}
	for _, id := range o.newNodes() {
		if n := s.nodes[id]; n != nil {
			r.note(n)
		}
	}
	return nil
}
