package transfer

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// HeaderSize is the size of the header of a stream, and of that of each of its frames, in bytes.
const HeaderSize = 32

// Header is the header of a stream, or of a frame: 28 bytes and their CRC32C, little-endian. All streams about volumes have it, those of control/replica too.
type Header [HeaderSize]byte

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// NewHeader returns the header of a stream: what it is, in 8 bytes, the version of that, and the size of what it is about, in bytes.
func NewHeader(magic string, version uint32, sizeBytes uint64) (h Header) {
	copy(h[:8], magic)
	binary.LittleEndian.PutUint32(h[8:], version)
	binary.LittleEndian.PutUint64(h[16:], sizeBytes)
	h.Seal()
	return h
}

// Seal sets the checksum over what is in the header.
func (h *Header) Seal() {
	binary.LittleEndian.PutUint32(h[HeaderSize-4:], h.sum())
}

func (h *Header) sum() uint32 { return crc32.Checksum(h[:HeaderSize-4], castagnoli) }

// Check reports a checksum that is wrong as corrupt makes an error of it.
func (h *Header) Check(corrupt func(want, got string) error) error {
	want := h.sum()
	if got := binary.LittleEndian.Uint32(h[HeaderSize-4:]); got != want {
		return corrupt(fmt.Sprintf("header crc %08x", want), fmt.Sprintf("%08x", got))
	}
	return nil
}

// Stream returns the size that a header whose checksum is right has, in bytes, if it is that of such a stream. Else the error is block.ErrVersion, or what corrupt makes.
func (h *Header) Stream(magic string, version uint32, corrupt func(want, got string) error) (sizeBytes uint64, err error) {
	le := binary.LittleEndian
	if string(h[:8]) != magic {
		return 0, corrupt(fmt.Sprintf("magic %q", magic), fmt.Sprintf("%q", h[:8]))
	}
	if v := le.Uint32(h[8:]); v != version {
		return 0, fmt.Errorf("stream has version %d, this program reads version %d: %w", v, version, block.ErrVersion)
	}
	if le.Uint32(h[12:]) != 0 || le.Uint32(h[24:]) != 0 {
		return 0, corrupt("zero in reserved fields", "something else")
	}
	return le.Uint64(h[16:]), nil
}
