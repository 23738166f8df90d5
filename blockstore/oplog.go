package blockstore

import (
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// Kinds of control records. They are part of the disk format (docs/format/log.md).
const (
	opCreate         journal.Kind = 16
	opDelete         journal.Kind = 17
	opRename         journal.Kind = 18
	opResize         journal.Kind = 19
	opSnapshot       journal.Kind = 20
	opDeleteSnapshot journal.Kind = 21
	opRollback       journal.Kind = 22
	opClone          journal.Kind = 23

	// Of a store with the feature "snapshots".
	opRenameSnapshot    journal.Kind = 24
	opProtectSnapshot   journal.Kind = 25
	opUnprotectSnapshot journal.Kind = 26
	opSnapshotSet       journal.Kind = 27 // of several volumes at once
	opNumber            journal.Kind = 28 // changes nothing: its sequence number becomes that of a head which a later opSnapshotSet makes

	// Of a store with the feature "bitmaps".
	opAddBitmap    journal.Kind = 29
	opRemoveBitmap journal.Kind = 30
	opClearBitmap  journal.Kind = 31
)

// op is the payload of a control record. Fields that a kind does not use are zero.
type op struct {
	Kind   journal.Kind
	Volume block.VolumeID
	Node   nodeID // the snapshot that is meant (delete, rollback, clone, rename, protect, unprotect), or the bitmap (remove, clear)
	UUID   block.UUID
	Size   uint64 // bytes
	Mode   WriteMode
	Cut    cdc.Params
	Name   string
	Set    *snapshotSet // of opSnapshotSet, which has nothing else
	Gone   block.Range  // what a shrink cuts off, whole blocks; in the record's own offset and length

	// Of the record that carries it.
	Seq  uint64
	Time int64 // ns since the epoch
	Pos  journal.Pos
}

const opVersion = 1

func (o *op) encode() []byte {
	if o.Set != nil {
		return o.Set.encode()
	}
	e := &enc{}
	e.u8(opVersion)
	e.u8(uint8(o.Mode))
	e.zero(6)
	e.u64(uint64(o.Node))
	e.u64(o.Size)
	e.bytes(o.UUID[:])
	cut := make([]byte, 20)
	putCut(cut, o.Cut)
	e.bytes(cut)
	e.zero(20)
	e.string(o.Name)
	return e.b
}

func decodeOp(kind journal.Kind, volume block.VolumeID, b []byte) (*op, error) {
	if kind == opSnapshotSet {
		set, err := decodeSnapshotSet(b)
		return &op{Kind: kind, Volume: volume, Set: set}, err
	}
	d := &dec{b: b}
	o := &op{Kind: kind, Volume: volume}
	if v := d.u8(); v != opVersion {
		return nil, fmt.Errorf("control record version %d: %w", v, block.ErrVersion)
	}
	o.Mode = WriteMode(d.u8())
	d.zero(6)
	o.Node = nodeID(d.u64())
	o.Size = d.u64()
	copy(o.UUID[:], d.take(16))
	o.Cut = getCut(d.take(20))
	d.zero(20)
	o.Name = d.string()
	return o, d.end("control record")
}

// need makes older programs that do not know records of this kind refuse the store.
func (s *Store) need(o *op) error {
	switch {
	case o.Kind >= opAddBitmap:
		return s.addROCompat(roCompatBitmaps)
	case o.Kind >= opRenameSnapshot:
		return s.needFeature(incompatSnapshots)
	}
	return nil
}

// appendControl appends a record that may use the log's reserve, or returns errLogFull.
func (s *Store) appendControl(rec *journal.Record) error {
	err := s.log.AppendControl(rec)
	if errors.Is(err, block.ErrNoSpace) {
		return errLogFull
	}
	return err
}

// logOp appends the record of an operation and fills in its place. The caller holds Store.ops, and Volume.mu where the operation closes a head.
func (s *Store) logOp(o *op) error {
	s.tree.RLock()
	var epoch uint32
	if v := s.volumes[o.Volume]; v != nil {
		epoch = v.mapEpoch
	}
	s.tree.RUnlock()
	rec := journal.Record{Kind: o.Kind, Volume: o.Volume, MapEpoch: epoch, Off: o.Gone.Off, Len: o.Gone.Len, Payload: [][]byte{o.encode()}}
	if err := s.appendControl(&rec); err != nil {
		return err
	}
	o.Seq, o.Time, o.Pos = rec.Seq, rec.Time, rec.Pos
	s.noteAsked(o.Seq)
	return nil
}
