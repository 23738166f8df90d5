package journal

import "fmt"

// Pos is a place in the log: file id in the upper half, byte offset in that file in the lower. It names one 4 KiB sector of payload, or the
// header of a record without payload. Positions grow with sequence numbers and are never reused. Zero is before everything.
type Pos uint64

// makePos returns the position of a byte of a file.
func makePos(file uint32, off int64) Pos { return Pos(file)<<32 | Pos(uint32(off)) }

// File returns the id of the file.
func (p Pos) File() uint32 { return uint32(p >> 32) }

// Offset returns the offset in the file in bytes.
func (p Pos) Offset() int64 { return int64(uint32(p)) }

// String returns the position as file:offset, both as they are named elsewhere: the file in hexadecimal, the offset in decimal.
func (p Pos) String() string { return fmt.Sprintf("%08x:%d", p.File(), p.Offset()) }
