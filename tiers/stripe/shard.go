package stripe

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// These constants are part of the disk format (docs/format/shard.md) and must not be changed.
const (
	columnSize   = 4096
	headSize     = 4096
	sumsPerPage  = headSize/4 - 1
	shardMagic   = "HNSHARD\n"
	shardVersion = 1
	maxSize      = 64 << 20
	maxShards    = 31
)

var (
	castagnoli = crc32.MakeTable(crc32.Castagnoli)
	le         = binary.LittleEndian
)

// CheckShape reports a shape that no tier can have. The zero value, whole segments, is valid.
func CheckShape(s erasure.Shape) error {
	if s.None() || s.Data >= 1 && s.Parity >= 1 && s.Parity <= 8 && s.Data+s.Parity <= maxShards {
		return nil
	}
	return fmt.Errorf("stripes of %d+%d shards: want 1 or more of data, 1 to 8 of parity, %d together at most: %w", s.Data, s.Parity, maxShards, block.ErrInvalid)
}

// ParseShape reads DATA+PARITY, or off.
func ParseShape(text string) (s erasure.Shape, err error) {
	if text == "off" || text == "" {
		return s, nil
	}
	if _, err := fmt.Sscanf(text, "%d+%d", &s.Data, &s.Parity); err != nil || fmt.Sprintf("%d+%d", s.Data, s.Parity) != text {
		return erasure.Shape{}, fmt.Errorf("stripes %q: want DATA+PARITY, such as 3+1, or off: %w", text, block.ErrInvalid)
	}
	return s, CheckShape(s)
}

// shardName names a shard: which segment, how it was cut, which shard, and how long the segment is.
type shardName struct {
	segment string // key of the segment
	shape   erasure.Shape
	index   int
	size    int64
}

const shardSuffix = ".shard"

func (n *shardName) String() string {
	return fmt.Sprintf("%s.%d+%d.%02d.%08x%s", n.segment[:len(n.segment)-len(".seg")], n.shape.Data, n.shape.Parity, n.index, n.size, shardSuffix)
}

// parseShardName is the inverse of String; ok is false for any other name.
func parseShardName(name string) (n shardName, ok bool) {
	var id uint64
	var generation uint32
	if len(name) > 80 {
		return n, false
	}
	if _, err := fmt.Sscanf(name, "%016x.%08x.%d+%d.%02d.%08x"+shardSuffix, &id, &generation, &n.shape.Data, &n.shape.Parity, &n.index, &n.size); err != nil {
		return n, false
	}
	n.segment = tiers.SegmentKey(block.SegmentID(id), generation)
	if n.shape.None() || CheckShape(n.shape) != nil || n.index < 0 || n.index >= n.shape.Data+n.shape.Parity || n.size < 1 || n.size > maxSize {
		return n, false
	}
	return n, n.String() == name
}

// layout says where the columns of a segment and its shards lie.
type layout struct {
	shape   erasure.Shape
	size    int64
	columns int // of the segment; the last one may be short
	stripes int // columns of each shard
	pages   int // of checksums
}

func newLayout(shape erasure.Shape, size int64) layout {
	l := layout{shape: shape, size: size, columns: int((size + columnSize - 1) / columnSize)}
	l.stripes = (l.columns + shape.Data - 1) / shape.Data
	l.pages = (l.stripes + sumsPerPage - 1) / sumsPerPage
	return l
}

func (l *layout) total() int          { return l.shape.Data + l.shape.Parity }
func (l *layout) sumPage(t int) int64 { return headSize + int64(t/sumsPerPage)*headSize }
func (l *layout) columnOff(t int) int64 {
	return headSize + int64(l.pages)*headSize + int64(t)*columnSize
}
func (l *layout) shardSize() int64       { return l.columnOff(l.stripes) }
func (l *layout) place(c int) (i, t int) { return c / l.stripes, c % l.stripes }

// head is the first page of a shard.
type head struct {
	shape      erasure.Shape
	index      int
	storeID    block.UUID
	segment    block.SegmentID
	generation uint32
	footer     uint32 // the last four bytes of the segment
	size       int64  // of the segment
}

func (h *head) append(dst []byte) []byte {
	b := make([]byte, headSize)
	copy(b, shardMagic)
	le.PutUint32(b[8:], shardVersion)
	b[12], b[13], b[14] = byte(h.shape.Data), byte(h.shape.Parity), byte(h.index)
	copy(b[16:], h.storeID[:])
	le.PutUint64(b[32:], uint64(h.segment))
	le.PutUint32(b[40:], h.generation)
	le.PutUint32(b[44:], h.footer)
	le.PutUint64(b[48:], uint64(h.size))
	le.PutUint32(b[headSize-4:], crc32.Checksum(b[:headSize-4], castagnoli))
	return append(dst, b...)
}

// parseHead decodes a head with every bound checked. The error wraps block.ErrCorrupt or block.ErrVersion.
func parseHead(b []byte) (h head, err error) {
	bad := func(off int64, want string) (head, error) {
		return head{}, &block.CorruptError{Source: "head of a shard", Offset: off, Want: want, Got: "other bytes"}
	}
	if len(b) != headSize || string(b[:8]) != shardMagic {
		return bad(0, "4096 B with their magic")
	}
	if crc32.Checksum(b[:headSize-4], castagnoli) != le.Uint32(b[headSize-4:]) {
		return bad(headSize-4, "a crc that fits")
	}
	if v := le.Uint32(b[8:]); v != shardVersion {
		return head{}, fmt.Errorf("shard of version %d: %w", v, block.ErrVersion)
	}
	h = head{shape: erasure.Shape{Data: int(b[12]), Parity: int(b[13])}, index: int(b[14]), segment: block.SegmentID(le.Uint64(b[32:])), generation: le.Uint32(b[40:]), footer: le.Uint32(b[44:]), size: int64(le.Uint64(b[48:]))}
	copy(h.storeID[:], b[16:])
	if h.shape.None() || CheckShape(h.shape) != nil || h.index >= h.shape.Data+h.shape.Parity || h.size < 1 || h.size > maxSize {
		return bad(12, "values in bounds")
	}
	if b[15] != 0 || len(bytes.TrimLeft(b[56:headSize-4], "\x00")) != 0 {
		return bad(15, "zeroes in reserved bytes")
	}
	return h, nil
}

// sumsOf encodes the pages of checksums of a shard.
func sumsOf(sums []uint32) []byte {
	var b []byte
	for len(sums) > 0 {
		n := min(sumsPerPage, len(sums))
		page := make([]byte, headSize)
		for i, s := range sums[:n] {
			le.PutUint32(page[4*i:], s)
		}
		le.PutUint32(page[headSize-4:], crc32.Checksum(page[:headSize-4], castagnoli))
		b, sums = append(b, page...), sums[n:]
	}
	return b
}

// readSum reads the checksum of column t of a shard through buf, a page.
func (l *layout) readSum(readAt func([]byte, int64) error, buf []byte, t int) (uint32, error) {
	off := l.sumPage(t)
	if err := readAt(buf, off); err != nil {
		return 0, err
	}
	if crc32.Checksum(buf[:headSize-4], castagnoli) != le.Uint32(buf[headSize-4:]) {
		return 0, &block.CorruptError{Source: "checksums of a shard", Offset: off, Want: "a crc that fits", Got: "another one"}
	}
	return le.Uint32(buf[4*(t%sumsPerPage):]), nil
}

// full is io.ReaderAt without partial reads.
func full(r io.ReaderAt) func([]byte, int64) error {
	return func(p []byte, off int64) error {
		n, err := r.ReadAt(p, off)
		if n == len(p) {
			return nil
		}
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
}

// ParseHead decodes the first page of a shard and returns it as a writer would write it. The error wraps block.ErrCorrupt or block.ErrVersion.
func ParseHead(b []byte) ([]byte, error) {
	h, err := parseHead(b)
	if err != nil {
		return nil, err
	}
	return h.append(nil), nil
}
