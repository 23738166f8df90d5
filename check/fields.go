package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func crc(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

func crcMore(sum uint32, p []byte) uint32 { return crc32.Update(sum, castagnoli, p) }

// fault is one broken rule of a format: where in the unit, what was expected, what was found.
type fault struct {
	off       int64
	want, got string
}

func (f *fault) Error() string { return fmt.Sprintf("at %d: want %s, got %s", f.off, f.want, f.got) }

func faultf(off int64, want, got string, args ...any) error {
	return &fault{off: off, want: want, got: fmt.Sprintf(got, args...)}
}

// asFault turns the error of a decoder into a fault.
func asFault(err error) fault {
	var f *fault
	if errors.As(err, &f) {
		return *f
	}
	return fault{want: "readable data", got: err.Error()}
}

// fields reads a little-endian structure from the front to the back and keeps the first rule that is broken.
type fields struct {
	b   []byte
	at  int
	err error
}

func (f *fields) take(n int) []byte {
	if f.err == nil && n > len(f.b)-f.at {
		f.err = faultf(int64(f.at), fmt.Sprintf("%d B more", n), "%d B", len(f.b)-f.at)
	}
	if f.err != nil {
		return make([]byte, n)
	}
	p := f.b[f.at : f.at+n : f.at+n]
	f.at += n
	return p
}

func (f *fields) u8() uint8   { return f.take(1)[0] }
func (f *fields) u16() uint16 { return binary.LittleEndian.Uint16(f.take(2)) }
func (f *fields) u32() uint32 { return binary.LittleEndian.Uint32(f.take(4)) }
func (f *fields) u64() uint64 { return binary.LittleEndian.Uint64(f.take(8)) }

// reserved reads n bytes that must be zero.
func (f *fields) reserved(n int) {
	at := f.at
	if p := f.take(n); f.err == nil && !allZero(p) {
		f.err = faultf(int64(at), "zeroes in reserved bytes", "%x", p[:min(n, 16)])
	}
}

// magic reads a constant.
func (f *fields) magic(want string) {
	at := f.at
	if got := f.take(len(want)); f.err == nil && string(got) != want {
		f.err = faultf(int64(at), fmt.Sprintf("magic %q", want), "%q", got)
	}
}

// version reads a version field of the given bytes, of which only 1 is known.
func (f *fields) version(n int) {
	at := f.at
	if p := f.take(n); f.err == nil && (p[0] != 1 || !allZero(p[1:])) {
		f.err = faultf(int64(at), "version 1", "%x", p)
	}
}

// text reads a string with its length in front, u16.
func (f *fields) text() string { return string(f.take(int(f.u16()))) }

// rule notes that a rule about the bytes at off is broken.
func (f *fields) rule(ok bool, off int, want, got string, args ...any) {
	if f.err == nil && !ok {
		f.err = faultf(int64(off), want, got, args...)
	}
}

// end notes bytes that are left, and returns the first fault.
func (f *fields) end() error {
	f.rule(f.at == len(f.b), f.at, "the end", "%d B more", len(f.b)-f.at)
	return f.err
}

// sumWithout checks the CRC32C that lies at off and covers all of p but its own four bytes.
func sumWithout(p []byte, off int) error {
	return checkSum(off, crcMore(crc(p[:off]), p[off+4:]), binary.LittleEndian.Uint32(p[off:]))
}

func checkSum(off int, want, got uint32) error {
	if want != got {
		return faultf(int64(off), fmt.Sprintf("crc %08x", want), "%08x", got)
	}
	return nil
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
