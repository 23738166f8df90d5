package blockstore

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// Key prefixes of the metadata (docs/format/meta.md). They are part of the disk format. Prefixes P, N, R, D and J belong to extentmap.
const (
	keyChunk    = 'C'
	keyHint     = 'H'
	keyVolume   = 'V'
	keySnapshot = 'S' // a node: snapshot or head
	keySegment  = 'G'
	keyMeta     = 'M'
)

const rowVersion = 1

func key64(prefix byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64([]byte{prefix}, id)
}

// chunkRow says where a chunk's bytes lie. 48 bytes.
type chunkRow struct {
	Segment  block.SegmentID
	FrameOff uint32 // bytes into the segment
	FrameLen uint32 // bytes of the whole frame as stored
	RawOff   uint32 // bytes into the decoded frame
	RawLen   uint32 // bytes
	Hash     [16]byte
	Flags    uint8 // chunkDamaged
	Base     block.ChunkID
}

const (
	chunkRowSize = 48
	// chunkDamaged marks a chunk whose bytes could not be read back: a dedup hit on it is a miss.
	chunkDamaged = 1 << 0
)

func (r *chunkRow) encode(dst []byte) []byte {
	le := binary.LittleEndian
	dst = le.AppendUint64(dst, uint64(r.Segment))
	dst = le.AppendUint32(dst, r.FrameOff)
	dst = le.AppendUint32(dst, r.FrameLen)
	dst = le.AppendUint32(dst, r.RawOff)
	dst = le.AppendUint32(dst, r.RawLen|uint32(r.Flags)<<24)
	dst = append(dst, r.Hash[:]...)
	return le.AppendUint64(dst, uint64(r.Base))
}

func decodeChunkRow(id block.ChunkID, b []byte) (r chunkRow, err error) {
	if len(b) != chunkRowSize {
		return r, &block.CorruptError{Source: fmt.Sprintf("chunk row %d", id), Want: "48 bytes", Got: fmt.Sprint(len(b))}
	}
	le := binary.LittleEndian
	r.Segment = block.SegmentID(le.Uint64(b))
	r.FrameOff, r.FrameLen, r.RawOff = le.Uint32(b[8:]), le.Uint32(b[12:]), le.Uint32(b[16:])
	r.RawLen, r.Flags = le.Uint32(b[20:])&0xffffff, b[23]
	copy(r.Hash[:], b[24:40])
	r.Base = block.ChunkID(le.Uint64(b[40:]))
	if r.FrameLen > segment.SegmentSize || uint64(r.RawOff)+uint64(r.RawLen) > segment.MaxFrameRaw {
		return r, &block.CorruptError{Source: fmt.Sprintf("chunk row %d", id), Offset: 12, Want: "lengths inside a frame", Got: fmt.Sprint(r.FrameLen, r.RawOff, r.RawLen)}
	}
	return r, nil
}

// volumeRow is the durable part of a volume.
type volumeRow struct {
	ID       block.VolumeID
	UUID     block.UUID
	Size     uint64 // bytes
	MapEpoch uint32
	Mode     WriteMode
	Head     nodeID
	Cut      cdc.Params
	Created  int64 // ns since the epoch
	Name     string
	Bitmaps  []bitmap
}

// volumeRowBitmaps is the version of a row with bitmaps; without any it is rowVersion.
const volumeRowBitmaps = 2

const bitmapAll = 1 << 0 // a bit of a bitmap's flags

func (r *volumeRow) encode() []byte {
	e := &enc{}
	if len(r.Bitmaps) > 0 {
		e.u8(volumeRowBitmaps)
	} else {
		e.u8(rowVersion)
	}
	e.u8(uint8(r.Mode))
	e.zero(2)
	e.u32(r.MapEpoch)
	e.u64(uint64(r.ID))
	e.bytes(r.UUID[:])
	e.u64(r.Size)
	e.u64(uint64(r.Head))
	e.u64(uint64(r.Created))
	cut := make([]byte, 20)
	putCut(cut, r.Cut)
	e.bytes(cut)
	e.zero(44) // consistency group, class and policy ids, base-layer source, key id
	e.string(r.Name)
	if len(r.Bitmaps) == 0 {
		return e.b
	}
	e.u32(uint32(len(r.Bitmaps)))
	for i := range r.Bitmaps {
		b := &r.Bitmaps[i]
		flags := uint8(0)
		if b.All {
			flags = bitmapAll
		}
		e.u8(flags)
		e.zero(3)
		for _, v := range []uint64{b.ID, uint64(b.Epoch), uint64(b.Since), b.Size} {
			e.u64(v)
		}
		e.string(b.Name)
	}
	return e.b
}

// decodeBitmaps reads the bitmaps of a row that has some.
func decodeBitmaps(d *dec, volume block.VolumeID) ([]bitmap, error) {
	n := d.u32()
	if !d.short && (n == 0 || n > MaxBitmaps) {
		return nil, &block.CorruptError{Source: fmt.Sprintf("volume row %d", volume), Want: fmt.Sprintf("1 to %d bitmaps", MaxBitmaps), Got: fmt.Sprint(n)}
	}
	var all []bitmap
	for range min(n, MaxBitmaps) {
		flags := d.u8()
		d.zero(3)
		b := bitmap{ID: d.u64(), Epoch: nodeID(d.u64()), Since: int64(d.u64()), Size: d.u64(), All: flags&bitmapAll != 0, Name: d.string()}
		if !d.short && (flags&^bitmapAll != 0 || b.ID == 0 || uint64(b.Epoch) < b.ID) {
			return nil, &block.CorruptError{Source: fmt.Sprintf("volume row %d", volume), Want: "a bitmap with known flags that began when it was added or later", Got: fmt.Sprintf("flags %02x, %d, %d", flags, b.ID, b.Epoch)}
		}
		all = append(all, b)
	}
	return all, nil
}

func decodeVolumeRow(b []byte) (*volumeRow, error) {
	d := &dec{b: b}
	r := &volumeRow{}
	version := d.u8()
	if version != rowVersion && version != volumeRowBitmaps {
		return nil, fmt.Errorf("volume row version %d: %w", version, block.ErrVersion)
	}
	r.Mode = WriteMode(d.u8())
	d.zero(2)
	r.MapEpoch = d.u32()
	r.ID = block.VolumeID(d.u64())
	copy(r.UUID[:], d.take(16))
	r.Size = d.u64()
	r.Head = nodeID(d.u64())
	r.Created = int64(d.u64())
	r.Cut = getCut(d.take(20))
	d.zero(44)
	r.Name = d.string()
	if version == volumeRowBitmaps {
		var err error
		if r.Bitmaps, err = decodeBitmaps(d, r.ID); err != nil {
			return nil, err
		}
	}
	return r, d.end(fmt.Sprintf("volume row %d", r.ID))
}

// nodeRow is the durable part of a node.
type nodeRow struct {
	ID       nodeID
	Volume   block.VolumeID
	Parent   nodeID
	Root     extentmap.Root
	Flags    nodeFlags
	MapEpoch uint32
	Size     uint64 // bytes; of a snapshot
	Closed   uint64 // seq of the barrier; 0 for a head
	Created  int64  // ns since the epoch; of a snapshot
	Bound    nodeID // births above it belong to this node and its children alone
	Mapped   uint64 // bytes of extents in the root
	Name     string
}

func (r *nodeRow) encode() []byte {
	e := &enc{}
	e.u8(rowVersion)
	e.u8(uint8(r.Flags))
	e.u8(r.Root.Level)
	e.zero(1)
	e.u32(r.MapEpoch)
	e.u64(uint64(r.ID))
	e.u64(uint64(r.Volume))
	e.u64(uint64(r.Parent))
	e.u64(r.Root.ID)
	e.u64(uint64(r.Root.Birth))
	e.u64(r.Size)
	e.u64(r.Closed)
	e.u64(uint64(r.Created))
	e.u64(uint64(r.Bound))
	e.u64(r.Mapped)
	e.string(r.Name)
	return e.b
}

func decodeNodeRow(b []byte) (*nodeRow, error) {
	d := &dec{b: b}
	r := &nodeRow{}
	if v := d.u8(); v != rowVersion {
		return nil, fmt.Errorf("node row version %d: %w", v, block.ErrVersion)
	}
	r.Flags = nodeFlags(d.u8())
	r.Root.Level = d.u8()
	d.zero(1)
	r.MapEpoch = d.u32()
	r.ID = nodeID(d.u64())
	r.Volume = block.VolumeID(d.u64())
	r.Parent = nodeID(d.u64())
	r.Root.ID = d.u64()
	r.Root.Birth = block.Epoch(d.u64())
	r.Size = d.u64()
	r.Closed = d.u64()
	r.Created = int64(d.u64())
	r.Bound = nodeID(d.u64())
	r.Mapped = d.u64()
	r.Name = d.string()
	return r, d.end(fmt.Sprintf("node row %d", r.ID))
}

// segmentState is the life of a segment.
type segmentState uint8

const (
	segmentOpen   segmentState = 1 // being appended to; Size bytes of it are synced and referenced
	segmentSealed segmentState = 2 // has its directory and footer
)

// segmentRow is what the store knows of a segment without opening it.
type segmentRow struct {
	ID          block.SegmentID
	Generation  uint32
	Class       segment.Class
	State       segmentState
	Size        uint64 // bytes of the file that count
	TotalRaw    uint64 // raw bytes of all chunks ever stored in it
	LiveRaw     uint64 // raw bytes of chunks that still have a row
	TotalChunks uint32
	LiveChunks  uint32
	Parity      erasure.Shape // of the sidecar that was made; none: there is none that counts
	// Born is, of a segment that was filled out of others, the id that had been given last when the youngest data in it was destaged; 0: its own.
	Born      block.SegmentID
	Placement tiers.PlacementList
}

func (r *segmentRow) encode() ([]byte, error) {
	e := &enc{}
	e.u8(rowVersion)
	e.u8(uint8(r.Class))
	e.u8(uint8(r.State))
	e.zero(1)
	e.u32(r.Generation)
	e.u64(uint64(r.ID))
	e.u64(r.Size)
	e.u64(r.TotalRaw)
	e.u64(r.LiveRaw)
	e.u32(r.TotalChunks)
	e.u32(r.LiveChunks)
	e.u8(uint8(r.Parity.Data))
	e.u8(uint8(r.Parity.Parity))
	e.zero(6)
	e.u64(uint64(r.Born))
	return tiers.AppendPlacement(e.b, r.Placement)
}

func decodeSegmentRow(b []byte) (*segmentRow, error) {
	d := &dec{b: b}
	r := &segmentRow{}
	if v := d.u8(); v != rowVersion {
		return nil, fmt.Errorf("segment row version %d: %w", v, block.ErrVersion)
	}
	r.Class = segment.Class(d.u8())
	r.State = segmentState(d.u8())
	d.zero(1)
	r.Generation = d.u32()
	r.ID = block.SegmentID(d.u64())
	r.Size, r.TotalRaw, r.LiveRaw = d.u64(), d.u64(), d.u64()
	r.TotalChunks, r.LiveChunks = d.u32(), d.u32()
	r.Parity = erasure.Shape{Data: int(d.u8()), Parity: int(d.u8())}
	d.zero(6)
	r.Born = block.SegmentID(d.u64())
	if r.Parity.Validate() != nil {
		return nil, &block.CorruptError{Source: fmt.Sprintf("segment row %d", r.ID), Offset: 48, Want: "a shape of parity", Got: r.Parity.String()}
	}
	if d.short {
		return nil, d.end(fmt.Sprintf("segment row %d", r.ID))
	}
	var err error
	r.Placement, err = tiers.DecodePlacement(b[d.at:])
	if err != nil {
		return nil, fmt.Errorf("segment row %d: %w", r.ID, err)
	}
	return r, nil
}
