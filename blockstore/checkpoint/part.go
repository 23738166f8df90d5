package checkpoint

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the disk format and should not be changed.
const (
	// MaxPart bounds a part in bytes: what a frame holds.
	MaxPart = 4 << 20
	// MaxKey bounds a key in bytes.
	MaxKey = 64

	magic       = "HNCKPART"
	version     = 1
	headerSize  = 64
	rowHeader   = 6
	deletedMark = ^uint32(0)
)

// PartTarget is the size at which a part is closed, in bytes. It is advice: a larger row makes a larger part.
const PartTarget = 1 << 20

// Kind says what a checkpoint holds. The values are part of the disk format.
type Kind uint8

const (
	Full  Kind = 1 // every row of a moment
	Delta Kind = 2 // what changed between two moments
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case Full:
		return "full"
	case Delta:
		return "delta"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Header says of which checkpoint a part is, and which part.
type Header struct {
	Kind   Kind
	Last   bool   // the checkpoint is complete with this part
	Number uint64 // of the checkpoint: the chunk id of its first part. Later checkpoints have higher numbers
	// Base is the number of the checkpoint whose moment a delta begins at; 0 of a full one.
	Base       uint64
	Part       uint32 // from 0
	Rows       uint32 // in this part
	RowsBefore uint64 // in the parts before
	// Previous is the first half of the hash of the part before, zero in the first: parts that belong together form a chain.
	Previous [16]byte
}

// Builder makes the parts of one checkpoint. The zero value, after Reset, is ready for use.
type Builder struct {
	h   Header
	buf []byte
}

// Reset begins a part. Rows of h is not used.
func (b *Builder) Reset(h Header) {
	b.h = h
	b.h.Rows = 0
	if b.buf == nil {
		b.buf = make([]byte, 0, PartTarget+PartTarget/8)
	}
	b.buf = append(b.buf[:0], make([]byte, headerSize)...)
}

// Rows returns how many rows the part has so far.
func (b *Builder) Rows() uint32 { return b.h.Rows }

// Len returns the length of the part so far, in bytes.
func (b *Builder) Len() int { return len(b.buf) }

// Fits reports whether one more row of these lengths should go into the part, rather than into the next, if the part shall not grow beyond target.
func (b *Builder) Fits(key, value, target int) bool {
	return b.h.Rows == 0 || len(b.buf)+rowHeader+key+value <= target
}

// Set adds a row. The caller has asked Fits.
func (b *Builder) Set(key, value []byte) {
	b.row(key, uint32(len(value)))
	b.buf = append(b.buf, value...)
}

// Delete adds the absence of a row.
func (b *Builder) Delete(key []byte) { b.row(key, deletedMark) }

func (b *Builder) row(key []byte, n uint32) {
	b.buf = binary.LittleEndian.AppendUint16(b.buf, uint16(len(key)))
	b.buf = binary.LittleEndian.AppendUint32(b.buf, n)
	b.buf = append(b.buf, key...)
	b.h.Rows++
}

// Bytes ends the part and returns it, lent until the next Reset.
func (b *Builder) Bytes(last bool) []byte {
	b.h.Last = last
	p, le := b.buf, binary.LittleEndian
	copy(p, magic)
	le.PutUint32(p[8:], version)
	p[12] = byte(b.h.Kind)
	p[13] = 0
	if last {
		p[13] = 1
	}
	le.PutUint64(p[16:], b.h.Number)
	le.PutUint64(p[24:], b.h.Base)
	le.PutUint32(p[32:], b.h.Part)
	le.PutUint32(p[36:], b.h.Rows)
	le.PutUint64(p[40:], b.h.RowsBefore)
	copy(p[48:64], b.h.Previous[:])
	return p
}

// Part is a decoded part. It borrows the bytes it was decoded from.
type Part struct {
	Header
	rows []byte
}

// Decode checks a part: its header, that its rows fill it exactly, and that each has a key of a table that checkpoints know. Every failure matches block.ErrCorrupt, but an
// unknown version, which is block.ErrVersion.
func Decode(p []byte) (Part, error) {
	bad := func(off int, want string, got any) (Part, error) {
		return Part{}, &block.CorruptError{Source: "checkpoint part", Offset: int64(off), Want: want, Got: fmt.Sprint(got)}
	}
	if len(p) < headerSize || len(p) > MaxPart {
		return bad(0, "64 B to 4 MiB", len(p))
	}
	le := binary.LittleEndian
	if string(p[:8]) != magic {
		return bad(0, magic, fmt.Sprintf("%q", p[:8]))
	}
	if v := le.Uint32(p[8:]); v != version {
		return Part{}, fmt.Errorf("checkpoint part version %d: %w", v, block.ErrVersion)
	}
	h := Header{
		Kind: Kind(p[12]), Last: p[13] == 1, Number: le.Uint64(p[16:]), Base: le.Uint64(p[24:]), Part: le.Uint32(p[32:]), Rows: le.Uint32(p[36:]),
		RowsBefore: le.Uint64(p[40:]), Previous: [16]byte(p[48:64]),
	}
	switch {
	case h.Kind != Full && h.Kind != Delta:
		return bad(12, "a full checkpoint or a delta", h.Kind)
	case p[13] > 1:
		return bad(13, "flag 0 or 1", p[13])
	case p[14] != 0 || p[15] != 0:
		return bad(14, "zeroes in reserved bytes", fmt.Sprintf("%x", p[14:16]))
	case h.Number == 0:
		return bad(16, "a number", 0)
	case (h.Kind == Full) != (h.Base == 0) || h.Base >= h.Number:
		return bad(24, "the base of a delta, below its number", h.Base)
	case h.Part == 0 && (h.RowsBefore != 0 || h.Previous != [16]byte{}):
		return bad(40, "nothing before the first part", h.RowsBefore)
	}
	part := Part{Header: h, rows: p[headerSize:]}
	n, r := uint32(0), part.Each()
	for r.Next() {
		if want := r.problem(); want != "" {
			return bad(headerSize+r.at, want, fmt.Sprintf("%q", r.Key))
		}
		n++
	}
	if n != h.Rows || len(r.rest) != 0 {
		return bad(36, fmt.Sprintf("%d rows that fill the part", h.Rows), fmt.Sprintf("%d, and %d B", n, len(r.rest)))
	}
	return part, nil
}

// Each returns an iterator over the rows of the part.
func (p *Part) Each() Rows { return Rows{rest: p.rows} }

// Rows goes through the rows of a part:
//
//	for r := p.Each(); r.Next(); {
//		use(r.Key, r.Value)
//	}
type Rows struct {
	Key     []byte
	Value   []byte // nil of a row that was deleted
	Deleted bool

	rest []byte
	at   int // bytes of rows so far
}

// Next goes to the next row and reports whether there is one.
func (r *Rows) Next() bool {
	if len(r.rest) < rowHeader {
		return false
	}
	k, v := int(binary.LittleEndian.Uint16(r.rest)), binary.LittleEndian.Uint32(r.rest[2:])
	r.Deleted = v == deletedMark
	if r.Deleted {
		v = 0
	}
	if uint64(rowHeader)+uint64(k)+uint64(v) > uint64(len(r.rest)) {
		return false
	}
	end := rowHeader + k + int(v)
	r.Key, r.Value = r.rest[rowHeader:rowHeader+k:rowHeader+k], nil
	if !r.Deleted {
		r.Value = r.rest[rowHeader+k : end : end]
	}
	r.rest, r.at = r.rest[end:], r.at+end
	return true
}

// problem names what a row must have and has not; "" if nothing.
func (r *Rows) problem() string {
	if len(r.Key) == 0 || len(r.Key) > MaxKey {
		return "a key of 1 to 64 B"
	}
	switch r.Key[0] {
	case 'D', 'J', 'N', 'P', 'R', 'S', 'T', 'V':
		return ""
	case 'M':
		if !r.Deleted && len(r.Key) == 2 {
			return ""
		}
	case 'L':
		if !r.Deleted && len(r.Key) == 9 && len(r.Value) == liveBytes {
			return ""
		}
	}
	return "a row of a table that checkpoints hold"
}
