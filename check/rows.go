package check

import (
	"errors"
	"fmt"
	"hash/crc64"
	"path/filepath"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// chunkRow is C|chunk.
type chunkRow struct {
	Segment  uint64   `json:"segment"`
	FrameOff uint32   `json:"frameOffset"`
	FrameLen uint32   `json:"frameLength"`
	RawOff   uint32   `json:"rawOffset"`
	RawLen   uint32   `json:"rawLength"`
	Flags    uint8    `json:"flags"`
	Hash     [16]byte `json:"-"`
	Base     uint64   `json:"base"`
}

const chunkDamaged = 1 << 0

func parseChunkRow(b []byte) (chunkRow, error) {
	f := &fields{b: b}
	c := chunkRow{Segment: f.u64(), FrameOff: f.u32(), FrameLen: f.u32(), RawOff: f.u32()}
	word := f.u32()
	c.RawLen, c.Flags = word&0xffffff, uint8(word>>24)
	c.Hash, c.Base = [16]byte(f.take(16)), f.u64()
	if c.lost() {
		f.rule(c.FrameOff == 0 && c.FrameLen == 0 && c.RawOff == 0, 8, "no frame of a lost chunk", "%d+%d", c.FrameOff, c.FrameLen)
		f.rule(c.RawLen > 0 && allZero(c.Hash[8:]) && c.Flags == chunkDamaged && c.Base == 0, 20, "a length and half of the hash of a lost chunk", "%d, %x", c.RawLen, c.Hash)
		return c, f.end()
	}
	f.rule(c.Segment > 0, 0, "a segment", "0")
	f.rule(c.FrameOff >= segHeaderSize && uint64(c.FrameOff)+uint64(c.FrameLen) <= segMaxSize, 8, "a frame inside a segment", "%d+%d", c.FrameOff, c.FrameLen)
	f.rule(c.RawLen > 0 && uint64(c.RawOff)+uint64(c.RawLen) <= frameMaxRaw, 16, "a chunk inside a frame", "%d+%d", c.RawOff, c.RawLen)
	f.rule(c.Flags&^chunkDamaged == 0, 23, "known flags", "%02x", c.Flags)
	f.rule(c.Base == 0, 40, "no base", "%d", c.Base)
	return c, f.end()
}

// lost reports whether the chunk is in no segment.
func (c *chunkRow) lost() bool { return c.Segment == 0 && c.Flags&chunkDamaged != 0 }

// counterRow is M|c.
type counterRow struct {
	AppliedSeq uint64     `json:"appliedSeq"`
	Watermark  uint64     `json:"watermark"`
	Chunk      uint64     `json:"lastChunk"`
	Page       uint64     `json:"lastPage"`
	Segment    uint64     `json:"lastSegment"`
	NextVolume uint64     `json:"nextVolume"`
	Row        uint64     `json:"lastRow"`
	Unique     uint64     `json:"uniqueBytes"`
	Shared     uint64     `json:"sharedBytes"`
	StoreID    block.UUID `json:"-"`
	Segments   uint64     `json:"segments"`
	Nodes      uint64     `json:"nodes"`
	Lost       uint64     `json:"lostChunks"`
	RowSum     uint64     `json:"-"`
	Version    uint8      `json:"version"`
}

func parseCounters(b []byte) (c counterRow, err error) {
	f := &fields{b: b}
	c.Version = f.u8()
	f.rule(c.Version == 1 || c.Version == 2, 0, "version 1 or 2", "%d", c.Version)
	f.reserved(7)
	for _, p := range []*uint64{&c.AppliedSeq, &c.Watermark, &c.Chunk, &c.Page, &c.Segment, &c.NextVolume, &c.Row, &c.Unique, &c.Shared} {
		*p = f.u64()
	}
	c.StoreID = block.UUID(f.take(16))
	c.Segments, c.Nodes = f.u64(), f.u64()
	if c.Version == 2 {
		c.Lost, c.RowSum = f.u64(), f.u64()
	}
	f.reserved(8)
	return c, f.end()
}

// placement is one copy of a segment.
type placement struct {
	Tier       string `json:"tier"`
	Key        string `json:"key"`
	Generation uint32 `json:"generation"`
	State      uint8  `json:"state"` // 1 live, 2 incoming, 3 outgoing, 4 damaged
	VerifiedNs int64  `json:"verifiedNs"`
}

// segmentRow is G|segment.
type segmentRow struct {
	ID          uint64      `json:"id"`
	Generation  uint32      `json:"generation"`
	Class       uint8       `json:"class"`
	State       uint8       `json:"state"` // 1 open, 2 sealed
	Size        uint64      `json:"size"`
	TotalRaw    uint64      `json:"totalRaw"`
	LiveRaw     uint64      `json:"liveRaw"`
	TotalChunks uint32      `json:"totalChunks"`
	LiveChunks  uint32      `json:"liveChunks"`
	ParityData  uint8       `json:"parityData"` // data shards of the sidecar; 0 none
	Parity      uint8       `json:"parity"`     // parity shards
	Born        uint64      `json:"born"`       // segment that was begun last when the youngest data in it was destaged; 0: itself
	Copies      []placement `json:"copies"`
}

const (
	segmentOpen   = 1
	segmentSealed = 2
)

func parseSegmentRow(id uint64, b []byte) (*segmentRow, error) {
	f := &fields{b: b}
	f.version(1)
	s := &segmentRow{Class: f.u8(), State: f.u8()}
	f.reserved(1)
	s.Generation, s.ID, s.Size, s.TotalRaw, s.LiveRaw = f.u32(), f.u64(), f.u64(), f.u64(), f.u64()
	s.TotalChunks, s.LiveChunks = f.u32(), f.u32()
	s.ParityData, s.Parity = f.u8(), f.u8()
	f.reserved(6)
	s.Born = f.u64()
	f.rule(s.ParityData|s.Parity == 0 || parityShapeOK(int(s.ParityData), int(s.Parity)), 48, "a valid shape of parity, or none", "%d+%d", s.ParityData, s.Parity)
	f.rule(s.ID == id, 8, fmt.Sprint("segment ", id), "%d", s.ID)
	f.rule(1 <= s.Class && s.Class <= 6, 1, "a known class", "%d", s.Class)
	f.rule(s.State == segmentOpen || s.State == segmentSealed, 2, "a known state", "%d", s.State)
	f.rule(segHeaderSize <= s.Size && s.Size <= segMaxSize, 16, "a size from 4 KiB to 64 MiB", "%d", s.Size)
	f.rule(s.LiveRaw <= s.TotalRaw && s.LiveChunks <= s.TotalChunks, 32, "no more live than all", "%d of %d B, %d of %d chunks", s.LiveRaw, s.TotalRaw, s.LiveChunks, s.TotalChunks)
	f.placements(s)
	return s, f.end()
}

func (f *fields) placements(s *segmentRow) {
	f.version(1)
	at := f.at
	n := int(f.u8())
	f.reserved(2)
	f.rule(1 <= n && n <= 16, at, "1 to 16 copies", "%d", n)
	live := false
	for i := 0; i < n && f.err == nil; i++ {
		at := f.at
		tier, key := int(f.u8()), int(f.u16())
		p := placement{State: f.u8(), Generation: f.u32(), VerifiedNs: int64(f.u64())}
		f.rule(1 <= tier && tier <= 64 && 1 <= key && key <= 512, at, "a tier of 1 to 64 B and a key of 1 to 512 B", "%d and %d", tier, key)
		p.Tier, p.Key = string(f.take(tier)), string(f.take(key))
		f.rule(1 <= p.State && p.State <= 4, at+3, "a known state", "%d", p.State)
		f.rule(p.Generation == s.Generation, at+4, fmt.Sprint("generation ", s.Generation), "%d", p.Generation)
		f.rule(p.Tier != localTier || p.Key == segmentKey(s.ID, s.Generation), at+16, "key "+segmentKey(s.ID, s.Generation), "%q", p.Key)
		if f.err == nil {
			s.Copies = append(s.Copies, p)
			live = live || p.State == copyLive
		}
	}
	f.rule(live, at, "a live copy", "none")
}

// copyLive is the state of a copy that is read.
const copyLive = 1

// localTier is the tier in the data directory itself.
const localTier = "local"

// segmentKey names a segment in a tier.
func segmentKey(id uint64, generation uint32) string {
	return fmt.Sprintf("%016x.%08x.seg", id, generation)
}

// segmentPath is where a segment of the local tier lies, relative to the data directory.
func segmentPath(key string) string { return filepath.Join("segments", key[14:16], key) }

// checkRows reads what is small: counters, volumes, nodes, segments. Pages, chunks and references follow in their own steps.
func (r *run) checkRows() error {
	if err := r.checkKeys(); err != nil {
		return err
	}
	if err := r.readCounters(); err != nil {
		return err
	}
	if err := r.readTree(); err != nil {
		return err
	}
	return r.meta.table(tableSegment, func(key, value []byte) error {
		id := keyField(key, 0)
		r.sumRow(key, value)
		row, err := parseSegmentRow(id, value)
		if err != nil {
			r.noteErr(unit(key), err)
		}
		r.expect(row.Born <= r.tree.counters.Segment, unit(key), 56, fmt.Sprintf("a segment up to %d", r.tree.counters.Segment), row.Born)
		r.segments[id] = &segmentState{row: row}
		return nil
	})
}

var countersUnit = "M|c"

var rowSumTable = crc64.MakeTable(crc64.ECMA)

// sumRow adds a row of volumes, nodes or segments to the sum that the counters have.
func (r *run) sumRow(key, value []byte) {
	r.rowSum += crc64.Update(crc64.Update(0, rowSumTable, key), rowSumTable, value)
}

func (r *run) readCounters() error {
	b, err := r.meta.get([]byte(countersUnit[:1] + countersUnit[2:]))
	if errors.Is(err, errNoRow) {
		r.fail(countersUnit, 0, "the counters of the store", "no row")
		return nil
	}
	if err != nil {
		return err
	}
	if r.tree.counters, err = parseCounters(b); err != nil {
		r.noteErr(countersUnit, err)
	}
	return r.meta.table(tableMeta, func(key, _ []byte) error {
		r.expect(unit(key) == countersUnit || unit(key) == journaledUnit, unit(key), 0, "a known name", string(key[1:]))
		return nil
	})
}

// name limits of volumes and snapshots (docs/format/meta.md).
func nameOK(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	for _, c := range []byte(s) {
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-') {
			return false
		}
	}
	return true
}

func sizeOK(n uint64) bool {
	return n >= block.SectorSize && n%block.SectorSize == 0 && n <= block.MaxVolumeSize
}
