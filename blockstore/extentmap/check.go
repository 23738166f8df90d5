package extentmap

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// checker reports damage of one encoded page, node or row.
type checker struct {
	kind string
	id   uint64
	data []byte
}

func (c checker) fail(at int, want, got string) error {
	return &block.CorruptError{Source: fmt.Sprintf("%s %d", c.kind, c.id), Offset: int64(at), Want: want, Got: got}
}

// header verifies the header of a page or node, which is least bytes long at least.
func (c checker) header(magic string, version uint16, least int) error {
	return c.start(magic, version, least, crcOffset)
}

// row verifies the short header of a row.
func (c checker) row(magic string, version uint16) error {
	if err := c.start(magic, version, rowHeader, rowCRC); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(c.data[8:]) != 0 {
		return c.fail(8, "reserved fields of zero", "others")
	}
	return nil
}

// start verifies length, magic, the checksum that lies at crc, and, once that is known to be good, the version.
func (c checker) start(magic string, version uint16, least, crc int) error {
	if len(c.data) < least {
		return c.fail(0, fmt.Sprintf("at least %d B", least), fmt.Sprintf("%d B", len(c.data)))
	}
	if got := string(c.data[:4]); got != magic {
		return c.fail(0, fmt.Sprintf("magic %q", magic), fmt.Sprintf("%q", got))
	}
	want, got := binary.LittleEndian.Uint32(c.data[crc:]), checksum(c.data, crc)
	if got != want {
		return c.fail(crc, fmt.Sprintf("crc32c %08x", want), fmt.Sprintf("%08x", got))
	}
	if got := binary.LittleEndian.Uint16(c.data[4:]); got != version {
		return fmt.Errorf("%s %d has version %d, want %d: %w", c.kind, c.id, got, version, block.ErrVersion)
	}
	return nil
}
