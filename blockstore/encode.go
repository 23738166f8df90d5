package blockstore

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// enc appends little-endian fields of rows and control records.
type enc struct{ b []byte }

func (e *enc) u8(v uint8)     { e.b = append(e.b, v) }
func (e *enc) u32(v uint32)   { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *enc) u64(v uint64)   { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *enc) bytes(v []byte) { e.b = append(e.b, v...) }
func (e *enc) zero(n int)     { e.b = append(e.b, make([]byte, n)...) }
func (e *enc) string(s string) {
	e.b = append(binary.LittleEndian.AppendUint16(e.b, uint16(len(s))), s...)
}

// dec reads what enc wrote. The first read past the end makes every further read return zero values; err says so.
type dec struct {
	b     []byte
	at    int
	short bool
}

func (d *dec) take(n int) []byte {
	if d.short || n > len(d.b)-d.at {
		d.short = true
		return make([]byte, n)
	}
	p := d.b[d.at : d.at+n]
	d.at += n
	return p
}

func (d *dec) u8() uint8   { return d.take(1)[0] }
func (d *dec) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *dec) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

// string reads a name: at most 64 KiB by its length field.
func (d *dec) string() string {
	n := int(binary.LittleEndian.Uint16(d.take(2)))
	if d.short || n > len(d.b)-d.at {
		d.short = true
		return ""
	}
	return string(d.take(n))
}

// zero reads n reserved bytes and notes those that are not zero.
func (d *dec) zero(n int) {
	for _, c := range d.take(n) {
		if c != 0 {
			d.short = true
		}
	}
}

// end reports whether exactly all bytes were read and reserved ones were zero.
func (d *dec) end(source string) error {
	if d.short || d.at != len(d.b) {
		return &block.CorruptError{Source: source, Offset: int64(d.at), Want: "a row of its version", Got: fmt.Sprintf("%d bytes", len(d.b))}
	}
	return nil
}
