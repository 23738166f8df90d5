package check

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// volumeRow is V|volume.
type volumeRow struct {
	ID        uint64     `json:"id"`
	UUID      block.UUID `json:"-"`
	Name      string     `json:"name"`
	Size      uint64     `json:"size"`
	MapEpoch  uint32     `json:"mapEpoch"`
	Mode      uint8      `json:"mode"` // 0 writeback, 1 durable
	Head      uint64     `json:"head"` // node
	CreatedNs int64      `json:"createdNs"`
	Cut       cut        `json:"cut"`

	Bitmaps []bitmapRow `json:"bitmaps,omitempty"`
}

func parseVolumeRow(id uint64, b []byte) (*volumeRow, error) {
	f := &fields{b: b}
	version := f.u8()
	f.rule(version == 1 || version == 2, 0, "version 1 or 2", "%d", version)
	v := &volumeRow{Mode: f.u8()}
	f.reserved(2)
	v.MapEpoch, v.ID, v.UUID = f.u32(), f.u64(), block.UUID(f.take(16))
	v.Size, v.Head, v.CreatedNs, v.Cut = f.u64(), f.u64(), int64(f.u64()), f.cut()
	f.reserved(44)
	at := f.at
	v.Name = f.text()
	f.rule(v.Mode <= 1, 1, "a known write mode", "%d", v.Mode)
	f.rule(v.ID == id && id > 0, 8, fmt.Sprint("volume ", id), "%d", v.ID)
	f.rule(v.UUID[6]>>4 == 4 && v.UUID[8]>>6 == 2, 16, "a random UUID", "%v", v.UUID)
	f.rule(sizeOK(v.Size), 32, "a size of whole sectors below 8 EiB", "%d", v.Size)
	f.rule(nameOK(v.Name), at, "a name of 1 to 128 B", "%q", v.Name)
	if version == 2 {
		v.Bitmaps = f.bitmaps()
	}
	return v, f.end()
}

// Flags of nodes.
const (
	nodeClosed   = 1 << 0
	nodeStarted  = 1 << 1
	nodeResolved = 1 << 2
	nodeDeleted  = 1 << 3
	nodePurging  = 1 << 4

	// With the feature superSnapshots.
	nodeProtected = 1 << 5
	nodeAutomatic = 1 << 6
)

// nodeRow is S|node.
type nodeRow struct {
	ID        uint64 `json:"id"`
	Volume    uint64 `json:"volume"`
	Parent    uint64 `json:"parent"`
	Root      ref    `json:"root"`
	Flags     uint8  `json:"flags"`
	MapEpoch  uint32 `json:"mapEpoch"`
	Size      uint64 `json:"size"`
	Closed    uint64 `json:"closed"`
	CreatedNs int64  `json:"createdNs"`
	Bound     uint64 `json:"bound"`
	Mapped    uint64 `json:"mapped"`
	Name      string `json:"name"`
}

func (n *nodeRow) is(flag uint8) bool { return n.Flags&flag != 0 }

func parseNodeRow(id uint64, b []byte) (*nodeRow, error) {
	f := &fields{b: b}
	f.version(1)
	n := &nodeRow{Flags: f.u8()}
	n.Root.Level = f.u8()
	f.reserved(1)
	n.MapEpoch, n.ID, n.Volume, n.Parent = f.u32(), f.u64(), f.u64(), f.u64()
	n.Root.ID, n.Root.Birth = f.u64(), f.u64()
	n.Size, n.Closed, n.CreatedNs, n.Bound, n.Mapped = f.u64(), f.u64(), int64(f.u64()), f.u64(), f.u64()
	at := f.at
	n.Name = f.text()
	f.rule(n.Flags < 1<<7, 1, "known flags", "%02x", n.Flags)
	f.rule(n.ID == id && id > 0, 8, fmt.Sprint("node ", id), "%d", n.ID)
	f.rule(n.Volume > 0, 16, "a volume", "0")
	f.rule(n.Root.Level <= maxLevel && (n.Root.ID != 0 || n.Root == ref{}), 32, "a root", "%+v", n.Root)
	f.rule((n.Root.ID == 0) == (n.Root.Birth == 0), 40, "a birth if there is a root", "%+v", n.Root)
	f.rule(n.is(nodeStarted) || n.Root == ref{}, 32, "no root before the first destage", "%+v", n.Root)
	f.rule(!n.is(nodeResolved) || n.is(nodeClosed) && n.is(nodeStarted), 1, "resolved only what is closed and started", "%02x", n.Flags)
	f.rule(!n.is(nodePurging) || n.is(nodeDeleted), 1, "purging only what is deleted", "%02x", n.Flags)
	f.rule(!n.is(nodeProtected) || n.is(nodeClosed) && !n.is(nodeDeleted), 1, "protected only what is closed and not deleted", "%02x", n.Flags)
	f.rule(!n.is(nodeAutomatic) || n.is(nodeClosed), 1, "taken by a schedule only what is closed", "%02x", n.Flags)
	f.rule(n.is(nodeClosed) == (n.Closed != 0) && (n.Closed == 0 || n.Closed > n.ID), 56, "a barrier behind the start of a closed node, else 0", "%d", n.Closed)
	f.rule(!n.is(nodeClosed) && n.Size == 0 && n.CreatedNs == 0 && n.Name == "" || n.is(nodeClosed) && sizeOK(n.Size) && nameOK(n.Name), at, "a name and a size of a closed node alone", "%q, %d B", n.Name, n.Size)
	return n, f.end()
}
