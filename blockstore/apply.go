package blockstore

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/overlay"
)

// applyLocked brings one control record into the tree. It is the only place that does, for live operations and for replay alike, so both have the same effect. It was
// validated before it was logged; what does not fit is corruption. Store.tree is held; Volume.mu too where a head is closed, except in replay.
func (s *Store) applyLocked(o *op) error {
	var err error
	switch o.Kind {
	case opCreate:
		s.applyCreateLocked(o)
	case opClone:
		err = s.applyCloneLocked(o)
	case opDelete:
		err = s.withVolumeLocked(o, s.applyDeleteLocked)
	case opRename:
		err = s.withVolumeLocked(o, func(o *op, v *Volume) error {
			delete(s.names, v.name)
			v.name = o.Name
			s.names[v.name] = v
			return nil
		})
	case opResize:
		err = s.withVolumeLocked(o, s.applyResizeLocked)
	case opSnapshot:
		err = s.withVolumeLocked(o, s.applySnapshotLocked)
	case opDeleteSnapshot:
		err = s.withNodeLocked(o, func(n *node) {
			n.flags |= nodeDeleted
			s.touchNodeLocked(n)
		})
	case opRenameSnapshot:
		err = s.withNodeLocked(o, func(n *node) {
			n.name = o.Name
			n.flags &^= nodeAutomatic // somebody has a use for it
			s.touchNodeLocked(n)
		})
	case opProtectSnapshot, opUnprotectSnapshot:
		err = s.withNodeLocked(o, func(n *node) {
			n.flags &^= nodeProtected
			if o.Kind == opProtectSnapshot {
				n.flags |= nodeProtected
			}
			s.touchNodeLocked(n)
		})
	case opSnapshotSet:
		err = s.applySnapshotSetLocked(o)
	case opNumber:
	case opRollback:
		err = s.withVolumeLocked(o, s.applyRollbackLocked)
	case opAddBitmap:
		err = s.withVolumeLocked(o, s.applyAddBitmapLocked)
	case opRemoveBitmap:
		err = s.withVolumeLocked(o, s.applyRemoveBitmapLocked)
	case opClearBitmap:
		err = s.withVolumeLocked(o, s.applyClearBitmapLocked)
	default:
		err = fmt.Errorf("control record %d has unknown kind %d: %w", o.Seq, o.Kind, block.ErrVersion)
	}
	if err != nil {
		return err
	}
	s.noteOpLocked(o.Seq)
	return nil
}

func (s *Store) withVolumeLocked(o *op, f func(*op, *Volume) error) error {
	v := s.volumes[o.Volume]
	if v == nil {
		return &block.CorruptError{Source: fmt.Sprintf("control record %d", o.Seq), Want: "a volume of the store", Got: fmt.Sprint(o.Volume)}
	}
	if err := f(o, v); err != nil {
		return err
	}
	if !v.gone.Load() {
		s.touchVolumeLocked(v)
	}
	return nil
}

func (s *Store) withNodeLocked(o *op, f func(*node)) error {
	n := s.nodes[o.Node]
	if n == nil {
		return &block.CorruptError{Source: fmt.Sprintf("control record %d", o.Seq), Want: "a snapshot of the store", Got: fmt.Sprint(o.Node)}
	}
	f(n)
	return nil
}

// addNodeLocked makes the node of record seq over parent.
func (s *Store) addNodeLocked(id nodeID, v *Volume, parent *node) *node {
	n := &node{id: id, volume: v, mapEpoch: v.mapEpoch, layer: overlay.NewLayer(s.budget)}
	if parent != nil {
		n.parent.Store(parent)
		n.bound = parent.id
		parent.children++
	}
	s.nodes[id] = n
	v.adoptLocked(n)
	s.touchNodeLocked(n)
	return n
}

func (s *Store) addVolumeLocked(o *op, parent *node) *Volume {
	v := &Volume{s: s, id: o.Volume, uuid: o.UUID, cut: o.Cut, created: o.Time, name: o.Name}
	v.size.Store(o.Size)
	v.mode.Store(uint32(o.Mode))
	v.head.Store(s.addNodeLocked(nodeID(o.Seq), v, parent))
	s.volumes[v.id] = v
	s.names[v.name] = v
	s.nextVolume = max(s.nextVolume, uint64(v.id)+1)
	s.touchVolumeLocked(v)
	return v
}

func (s *Store) applyCreateLocked(o *op) { s.addVolumeLocked(o, nil) }

func (s *Store) applyCloneLocked(o *op) error {
	return s.withNodeLocked(o, func(origin *node) { s.addVolumeLocked(o, origin) })
}

// applyDeleteLocked hides a volume and all its snapshots. What they held alone is freed in the background.
func (s *Store) applyDeleteLocked(_ *op, v *Volume) error {
	v.gone.Store(true)
	delete(s.volumes, v.id)
	if s.names[v.name] == v {
		delete(s.names, v.name)
	}
	delete(s.dirty.volumes, v.id)
	s.dirty.goneVolumes[v.id] = true
	for _, n := range v.nodes {
		n.flags |= nodeDeleted
		s.touchNodeLocked(n)
	}
	if len(v.bitmaps) > 0 {
		s.freeTouched.Store(true)
	}
	return nil
}

// applyResizeLocked changes the size. What a shrink cuts off reads as zeroes when the volume grows again.
func (s *Store) applyResizeLocked(o *op, v *Volume) error {
	v.size.Store(o.Size)
	v.resizedLocked(o.Size)
	v.head.Load().layer.PublishZero(o.Gone.Off/block.Size, o.Gone.Len/block.Size, uint64(o.Pos))
	return nil
}

// applySnapshotLocked closes the head and puts a new one over it.
func (s *Store) applySnapshotLocked(o *op, v *Volume) error {
	s.closeHeadLocked(v, 0, o.Name, o.Seq, o.Time, nodeID(o.Seq))
	return nil
}

// applyRollbackLocked puts a new head over the snapshot. Log records of the old head carry the old map epoch: replay finds them a deleted node, or none.
func (s *Store) applyRollbackLocked(o *op, v *Volume) error {
	return s.withNodeLocked(o, func(target *node) {
		old := v.head.Load()
		old.flags |= nodeDeleted
		s.touchNodeLocked(old)
		v.mapEpoch++
		v.size.Store(target.size)
		v.rolledBackLocked()
		v.head.Store(s.addNodeLocked(nodeID(o.Seq), v, target))
	})
}
