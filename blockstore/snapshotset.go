package blockstore

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// MaxSnapshotSet is how many volumes a snapshot of several can have.
const MaxSnapshotSet = 256

// snapshotSet is the payload of an opSnapshotSet (docs/format/control-records.md): one record, so that all of it happened or nothing.
type snapshotSet struct {
	Automatic bool
	Members   []snapshotMember
}

// snapshotMember is one volume of a set. Heads need ids of their own, and one record has but one sequence number: so each member but the last has the number of an opNumber before, and the last that of the record itself.
type snapshotMember struct {
	Volume block.VolumeID
	Node   nodeID // of the new head; 0 in the last
	Name   string // of the snapshot
}

const setAutomatic = 1 << 0 // a bit of the flags of a snapshotSet

func (s *snapshotSet) encode() []byte {
	e := &enc{}
	e.u8(opVersion)
	if s.Automatic {
		e.u8(setAutomatic)
	} else {
		e.u8(0)
	}
	e.b = binary.LittleEndian.AppendUint16(e.b, uint16(len(s.Members)))
	e.zero(4)
	for _, m := range s.Members {
		e.u64(uint64(m.Volume))
		e.u64(uint64(m.Node))
		e.string(m.Name)
	}
	return e.b
}

func decodeSnapshotSet(b []byte) (*snapshotSet, error) {
	d := &dec{b: b}
	if v := d.u8(); v != opVersion {
		return nil, fmt.Errorf("control record version %d: %w", v, block.ErrVersion)
	}
	flags, count := d.u8(), int(binary.LittleEndian.Uint16(d.take(2)))
	d.zero(4)
	if flags&^setAutomatic != 0 || count == 0 || count > MaxSnapshotSet {
		return nil, &block.CorruptError{Source: "control record", Offset: 1, Want: fmt.Sprintf("known flags and 1 to %d snapshots", MaxSnapshotSet), Got: fmt.Sprintf("%02x, %d", flags, count)}
	}
	s := &snapshotSet{Automatic: flags&setAutomatic != 0}
	for range count {
		s.Members = append(s.Members, snapshotMember{block.VolumeID(d.u64()), nodeID(d.u64()), d.string()})
	}
	return s, d.end("control record")
}

// CreateSnapshots freezes several volumes at one moment, each under a name of its own: what was replied by any of them before any of the writes that are not in the snapshots is in them. Either all are made or none, whatever
// happens meanwhile. All have the same Epoch. Automatic ones are marked as made by a schedule. Writers of all of them wait for some microseconds a volume.
func (s *Store) CreateSnapshots(_ context.Context, names []StateName, automatic bool) ([]SnapshotInfo, error) {
	infos, err := s.createSnapshots(names, automatic)
	if err != nil {
		if len(names) == 1 {
			return nil, fmt.Errorf("create a snapshot of volume %q: %w", names[0].Volume, err)
		}
		return nil, fmt.Errorf("create snapshots of %d volumes: %w", len(names), err)
	}
	return infos, nil
}

func (s *Store) createSnapshots(names []StateName, automatic bool) ([]SnapshotInfo, error) {
	if n := len(names); n == 0 || n > MaxSnapshotSet {
		return nil, fmt.Errorf("want 1 to %d: %w", MaxSnapshotSet, block.ErrInvalid)
	}
	var volumes []*Volume
	once := map[*Volume]bool{}
	for _, name := range names {
		if err := CheckName(name.Snapshot); err != nil {
			return nil, err
		}
		v, err := s.lookupVolume(name.Volume)
		if err != nil {
			return nil, err
		}
		if once[v] {
			return nil, fmt.Errorf("volume %q is named twice: %w", name.Volume, block.ErrInvalid)
		}
		once[v] = true
		volumes = append(volumes, v)
	}
	var closed []*node
	_, err := s.op(volumes, func() (*op, error) {
		o := &op{Kind: opSnapshotSet, Volume: volumes[0].id, Set: &snapshotSet{Automatic: automatic}}
		closed = closed[:0]
		for i, v := range volumes {
			if v.gone.Load() {
				return nil, fmt.Errorf("volume %q: %w", names[i].Volume, block.ErrNotFound)
			}
			if err := s.freeNameLocked(v, names[i].Snapshot); err != nil {
				return nil, fmt.Errorf("volume %q: %w", names[i].Volume, err)
			}
			o.Set.Members = append(o.Set.Members, snapshotMember{Volume: v.id, Name: names[i].Snapshot})
			closed = append(closed, v.head.Load())
		}
		return o, nil
	})
	if err != nil {
		return nil, err
	}
	s.tree.RLock()
	defer s.tree.RUnlock()
	var infos []SnapshotInfo
	for _, n := range closed {
		infos = append(infos, n.infoLocked())
	}
	return infos, nil
}

// numberMembers takes the sequence numbers of the log that the members of a set need as ids. The caller holds Store.ops and the volumes of the set.
func (s *Store) numberMembers(o *op) error {
	if o.Set == nil {
		return nil
	}
	for i := range len(o.Set.Members) - 1 {
		number := &op{Kind: opNumber}
		if err := s.logOp(number); err != nil {
			return err
		}
		s.tree.Lock()
		err := s.applyLocked(number)
		s.tree.Unlock()
		if err != nil {
			return err
		}
		o.Set.Members[i].Node = nodeID(number.Seq)
	}
	return nil
}

// newNodes are the ids of the heads that the record makes.
func (o *op) newNodes() []nodeID {
	if o.Set == nil {
		return []nodeID{nodeID(o.Seq)}
	}
	var ids []nodeID
	for _, m := range o.Set.Members {
		if m.Node == 0 {
			m.Node = nodeID(o.Seq)
		}
		ids = append(ids, m.Node)
	}
	return ids
}

// applySnapshotSetLocked closes the heads of all members at one barrier: the first number that was taken for them. Nothing was written to any of them from there on.
func (s *Store) applySnapshotSetLocked(o *op) error {
	ids := o.newNodes()
	for _, m := range o.Set.Members {
		if s.volumes[m.Volume] == nil {
			return &block.CorruptError{Source: fmt.Sprintf("control record %d", o.Seq), Want: "volumes of the store", Got: fmt.Sprint(m.Volume)}
		}
	}
	for i, m := range o.Set.Members {
		v := s.volumes[m.Volume]
		flags := nodeFlags(0)
		if o.Set.Automatic {
			flags = nodeAutomatic
		}
		s.closeHeadLocked(v, flags, m.Name, uint64(ids[0]), o.Time, ids[i])
		s.touchVolumeLocked(v)
	}
	return nil
}

// closeHeadLocked makes the head of a volume a snapshot and puts a new one over it. Store.tree is held.
func (s *Store) closeHeadLocked(v *Volume, flags nodeFlags, name string, barrier uint64, created int64, id nodeID) {
	old := v.head.Load()
	old.flags |= nodeClosed | flags
	old.name, old.size, old.closed, old.created = name, v.size.Load(), barrier, created
	s.touchNodeLocked(old)
	v.head.Store(s.addNodeLocked(id, v, old))
}
