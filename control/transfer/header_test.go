package transfer

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A header is taken as it was sealed, and refused with any bit of it otherwise, or if it is another stream's.
func TestHeader(t *testing.T) {
	corrupt := func(want, got string) error {
		return &block.CorruptError{Source: "test", Want: want, Got: got}
	}
	read := func(h Header) (uint64, error) {
		if err := h.Check(corrupt); err != nil {
			return 0, err
		}
		return h.Stream("HVTEST\r\n", 3, corrupt)
	}
	good := NewHeader("HVTEST\r\n", 3, 1<<40)
	if size, err := read(good); err != nil || size != 1<<40 {
		t.Errorf("read %d, %v", size, err)
	}
	for bit := range 8 * HeaderSize {
		bad := good
		bad[bit/8] ^= 1 << (bit % 8)
		if _, err := read(bad); !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("with bit %d: %v", bit, err)
		}
	}
	for name, c := range map[string]struct {
		at   int
		to   byte
		want error
	}{
		"another magic":    {0, 'h', block.ErrCorrupt},
		"a newer version":  {8, 4, block.ErrVersion},
		"flags":            {12, 1, block.ErrCorrupt},
		"a reserved field": {24, 1, block.ErrCorrupt},
	} {
		bad := good
		bad[c.at] = c.to
		bad.Seal()
		if _, err := read(bad); !errors.Is(err, c.want) {
			t.Errorf("%s, sealed: %v, want %v", name, err, c.want)
		}
	}
	if got := binary.LittleEndian.Uint32(good[8:]); string(good[:6]) != "HVTEST" || got != 3 {
		t.Errorf("its bytes are %x", good)
	}
}
