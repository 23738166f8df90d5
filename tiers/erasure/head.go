package erasure

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format and should not be changed.
const (
	headSize    = 4 << 10
	headMagic   = "HNPARITY"
	headVersion = 1
)

// Offsets in a head (docs/format/parity.md).
const (
	hdVersion    = 8
	hdData       = 12 // u8 k, u8 m, u8 stripes of this group, u8 zero
	hdStore      = 16
	hdSegment    = 32
	hdGeneration = 40
	hdFooterCRC  = 44
	hdSize       = 48
	hdStripes    = 56
	hdGroup      = 60
	hdReserved   = 64 // key id and what encryption needs: zero
	hdSums       = 124
	hdCRC        = headSize - 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// head is what precedes and follows the parity columns of a group.
type head struct {
	id    Identity
	shape Shape
	group int
	sums  []uint32 // of the group's columns: shard after shard, data first, stripe after stripe
}

func (h *head) append(dst []byte) []byte {
	l := newLayout(h.shape, h.id.SizeBytes)
	at := len(dst)
	dst = append(dst, make([]byte, headSize)...)
	b, le := dst[at:], binary.LittleEndian
	copy(b, headMagic)
	le.PutUint32(b[hdVersion:], headVersion)
	b[hdData], b[hdData+1], b[hdData+2] = byte(l.k), byte(l.m), byte(l.stripesOf(h.group))
	copy(b[hdStore:], h.id.StoreID[:])
	le.PutUint64(b[hdSegment:], uint64(h.id.Segment))
	le.PutUint32(b[hdGeneration:], h.id.Generation)
	le.PutUint32(b[hdFooterCRC:], h.id.FooterCRC)
	le.PutUint64(b[hdSize:], uint64(h.id.SizeBytes))
	le.PutUint32(b[hdStripes:], uint32(l.stripes))
	le.PutUint32(b[hdGroup:], uint32(h.group))
	for i, sum := range h.sums {
		le.PutUint32(b[hdSums+4*i:], sum)
	}
	le.PutUint32(b[hdCRC:], crc32.Checksum(b[:hdCRC], castagnoli))
	return dst
}

// parseHead decodes and checks a head. Its offsets in errors are those in the head.
func parseHead(b []byte) (*head, error) {
	bad := func(off int64, want, got string) error {
		return &block.CorruptError{Source: "parity head", Offset: off, Want: want, Got: got}
	}
	le := binary.LittleEndian
	if len(b) != headSize || string(b[:8]) != headMagic {
		return nil, bad(0, headMagic, fmt.Sprintf("%q", b[:min(8, len(b))]))
	}
	if want, got := le.Uint32(b[hdCRC:]), crc32.Checksum(b[:hdCRC], castagnoli); got != want {
		return nil, bad(hdCRC, fmt.Sprintf("crc %08x", want), fmt.Sprintf("%08x", got))
	}
	if v := le.Uint32(b[hdVersion:]); v != headVersion {
		return nil, fmt.Errorf("parity version %d: %w", v, block.ErrVersion)
	}
	h := &head{
		id: Identity{StoreID: block.UUID(b[hdStore : hdStore+16]), Segment: block.SegmentID(le.Uint64(b[hdSegment:])), Generation: le.Uint32(b[hdGeneration:]),
			SizeBytes: int64(le.Uint64(b[hdSize:])), FooterCRC: le.Uint32(b[hdFooterCRC:])},
		shape: Shape{Data: int(b[hdData]), Parity: int(b[hdData+1])},
	}
	if h.shape.None() || h.shape.Validate() != nil {
		return nil, bad(hdData, "a valid shape", h.shape.String())
	}
	if h.id.SizeBytes < 1 || h.id.SizeBytes > maxSize {
		return nil, bad(hdSize, "a segment of at most 64 MiB", fmt.Sprintf("%d B", h.id.SizeBytes))
	}
	l := newLayout(h.shape, h.id.SizeBytes)
	group := le.Uint32(b[hdGroup:])
	if group >= uint32(l.groups) || le.Uint32(b[hdStripes:]) != uint32(l.stripes) || int(b[hdData+2]) != l.stripesOf(int(group)) {
		return nil, bad(hdStripes, fmt.Sprintf("%d stripes in %d groups", l.stripes, l.groups), fmt.Sprintf("%d, %d of them in group %d", le.Uint32(b[hdStripes:]), b[hdData+2], group))
	}
	h.group = int(group)
	n := l.stripesOf(h.group) * (l.k + l.m)
	if b[hdData+3] != 0 || !isZero(b[hdReserved:hdSums]) || !isZero(b[hdSums+4*n:hdCRC]) {
		return nil, bad(hdReserved, "zeroes in reserved bytes", "other bytes")
	}
	h.sums = make([]uint32, n)
	for i := range h.sums {
		h.sums[i] = le.Uint32(b[hdSums+4*i:])
	}
	return h, h.checkMissing(&l)
}

// checkMissing wants the checksum of a column that the segment does not have to be zero.
func (h *head) checkMissing(l *layout) error {
	n := l.stripesOf(h.group)
	for i := range l.k {
		for t := range n {
			if l.column(h.group*groupStripes+t, i) >= l.columns && h.sums[i*n+t] != 0 {
				return &block.CorruptError{Source: "parity head", Offset: int64(hdSums + 4*(i*n+t)), Want: "0 for a column behind the end", Got: fmt.Sprintf("%08x", h.sums[i*n+t])}
			}
		}
	}
	return nil
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
