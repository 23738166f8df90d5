package check

import (
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kinds of control records (docs/format/control-records.md).
const (
	opCreate         = 16
	opDelete         = 17
	opRename         = 18
	opResize         = 19
	opSnapshot       = 20
	opDeleteSnapshot = 21
	opRollback       = 22
	opClone          = 23

	// Of a store with the feature superSnapshots.
	opRenameSnapshot    = 24
	opProtectSnapshot   = 25
	opUnprotectSnapshot = 26
	opSnapshotSet       = 27
	opNumber            = 28

	// Of a store with the feature superBitmaps.
	opAddBitmap    = 29
	opRemoveBitmap = 30
	opClearBitmap  = 31

	maxSnapshotSet = 256
)

// superSnapshots is the incompat feature: the log may have the records, and rows of nodes the flags, of snapshots that were renamed, protected, or taken together or by a schedule.
const superSnapshots = 1 << 3

// superStreams is the incompat feature: the log may have writes of kind 4.
const superStreams = 1 << 4

var recordNames = map[uint8]string{
	kindWrite: "write", kindStream: "write of a stream", kindTrim: "trim", kindZeroRec: "zero",
	opCreate: "create", opDelete: "delete", opRename: "rename", opResize: "resize", opSnapshot: "snapshot", opDeleteSnapshot: "delete-snapshot", opRollback: "rollback", opClone: "clone",
	opRenameSnapshot: "rename-snapshot", opProtectSnapshot: "protect-snapshot", opUnprotectSnapshot: "unprotect-snapshot", opSnapshotSet: "snapshot-set", opNumber: "number",
	opAddBitmap: "add-bitmap", opRemoveBitmap: "remove-bitmap", opClearBitmap: "clear-bitmap",
}

// control is the payload of a control record.
type control struct {
	Mode uint8  `json:"mode,omitempty"`
	Node uint64 `json:"node,omitempty"`
	Size uint64 `json:"size,omitempty"`
	UUID string `json:"uuid,omitempty"`
	Cut  *cut   `json:"cut,omitempty"`
	Name string `json:"name,omitempty"`

	// Of a set of snapshots.
	Automatic bool        `json:"automatic,omitempty"`
	Members   []setMember `json:"members,omitempty"`
}

// setMember is one snapshot of a set.
type setMember struct {
	Volume uint64 `json:"volume"`
	Node   uint64 `json:"node,omitempty"` // of the new head; 0 in the last: that of the record
	Name   string `json:"name"`
}

// parseSnapshotSet reads the payload of a set of snapshots.
func parseSnapshotSet(rec *logRecord) (*control, error) {
	f := &fields{b: rec.payload}
	f.version(1)
	flags, count := f.u8(), f.u16()
	f.reserved(4)
	f.rule(flags <= 1, 1, "known flags", "%02x", flags)
	f.rule(0 < count && count <= maxSnapshotSet, 2, "1 to 256 snapshots", "%d", count)
	c, once := &control{Automatic: flags == 1}, map[uint64]bool{}
	for i := range int(count) {
		at := f.at
		m := setMember{f.u64(), f.u64(), f.text()}
		if f.err != nil {
			break
		}
		f.rule(m.Volume > 0 && !once[m.Volume], at, "a volume, once", "%d", m.Volume)
		f.rule((i == int(count)-1) == (m.Node == 0) && m.Node < rec.Seq, at+8, "a number before the record's of all but the last", "%d", m.Node)
		f.rule(i == 0 || m.Node == 0 || m.Node > c.Members[i-1].Node, at+8, "growing numbers", "%d", m.Node)
		f.rule(nameOK(m.Name), at+16, "a name of 1 to 128 B", "%q", m.Name)
		once[m.Volume] = true
		c.Members = append(c.Members, m)
	}
	f.rule(rec.Off == 0 && rec.Len == 0, -recordHeader+32, "no range", "%d+%d", rec.Off, rec.Len)
	return c, f.end()
}

func parseControl(rec *logRecord) (*control, error) {
	if rec.Kind < opCreate || rec.Kind > opClearBitmap {
		return nil, faultf(-recordHeader+4, "a known kind of control record", "%d", rec.Kind)
	}
	if rec.Kind == opSnapshotSet {
		return parseSnapshotSet(rec)
	}
	f := &fields{b: rec.payload}
	f.version(1)
	c := &control{Mode: f.u8()}
	f.reserved(6)
	c.Node, c.Size = f.u64(), f.u64()
	id := block.UUID(f.take(16))
	makes := rec.Kind == opCreate || rec.Kind == opClone
	if makes {
		p := f.cut()
		c.Cut, c.UUID = &p, id.String()
	} else {
		f.reserved(20)
	}
	f.reserved(20)
	at := f.at
	c.Name = f.text()
	named := makes || rec.Kind == opRename || rec.Kind == opSnapshot || rec.Kind == opRenameSnapshot || rec.Kind == opAddBitmap
	f.rule(named && nameOK(c.Name) || !named && c.Name == "", at, "a name where the kind has one", "%q", c.Name)
	f.rule(c.Mode <= 1, 1, "a known write mode", "%d", c.Mode)
	f.rule((makes || rec.Kind == opResize) == (c.Size != 0) && (c.Size == 0 || sizeOK(c.Size)), 16, "a size where the kind has one", "%d", c.Size)
	f.rule((rec.Kind >= opDeleteSnapshot && rec.Kind != opNumber && rec.Kind != opAddBitmap) == (c.Node != 0), 8, "a node where the kind has one", "%d", c.Node)
	f.rule(makes || id == block.UUID{}, 24, "no UUID", "%v", id)
	f.rule(rec.Kind == opResize || rec.Off == 0 && rec.Len == 0, -recordHeader+32, "no range", "%d+%d", rec.Off, rec.Len)
	return c, f.end()
}
