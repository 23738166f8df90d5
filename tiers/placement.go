package tiers

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// State says what a placement is good for. The values are part of the disk format.
type State uint8

const (
	Live     State = 1 // read from it
	Incoming State = 2 // being written: not to be read yet
	Outgoing State = 3 // about to be deleted: read only if nothing else is left
	Damaged  State = 4 // failed a check: read only if nothing else is left
)

// String returns the state's name.
func (s State) String() string {
	switch s {
	case Live:
		return "live"
	case Incoming:
		return "incoming"
	case Outgoing:
		return "outgoing"
	case Damaged:
		return "damaged"
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// Placement is one copy of a segment.
type Placement struct {
	Tier       string // name of a tier of the Set, 1 to 64 B
	Key        string // in that tier, 1 to 512 B
	Generation uint32 // of the segment's bytes
	State      State
	VerifiedAt int64 // ns since the epoch when the copy was last read and checked; 0 never
}

// PlacementList is all copies of a segment, the preferred one first.
type PlacementList []Placement

// Bounds of a list.
const (
	placementVersion = 1
	maxPlacements    = 16
	maxTierName      = 64
	maxKey           = 512
)

// AppendPlacement appends the encoding of a list: version u8, count u8, zero u16; per copy tier length u8, key length u16, state u8, generation u32, verified at i64, tier,
// key. All integers are little-endian. A list outside the bounds is block.ErrInvalid.
func AppendPlacement(dst []byte, list PlacementList) ([]byte, error) {
	if len(list) > maxPlacements {
		return nil, fmt.Errorf("%d placements of one segment, at most %d: %w", len(list), maxPlacements, block.ErrInvalid)
	}
	le := binary.LittleEndian
	dst = append(dst, placementVersion, byte(len(list)), 0, 0)
	for i := range list {
		p := &list[i]
		if err := p.check(); err != nil {
			return nil, fmt.Errorf("placement %d of a segment: want %w: %w", i, err, block.ErrInvalid)
		}
		dst = append(dst, byte(len(p.Tier)))
		dst = le.AppendUint16(dst, uint16(len(p.Key)))
		dst = append(dst, byte(p.State))
		dst = le.AppendUint32(dst, p.Generation)
		dst = le.AppendUint64(dst, uint64(p.VerifiedAt))
		dst = append(dst, p.Tier...)
		dst = append(dst, p.Key...)
	}
	return dst, nil
}

// placementFixed is the length of a copy's encoding without its strings.
const placementFixed = 16

// DecodePlacement decodes a list that fills all of b. The strings are copies. Anything but the encoding of a list is block.ErrCorrupt, an unknown
// version block.ErrVersion.
func DecodePlacement(b []byte) (PlacementList, error) {
	total := len(b)
	bad := func(want string) (PlacementList, error) {
		return nil, &block.CorruptError{Source: "placement list", Offset: int64(total - len(b)), Want: want, Got: fmt.Sprintf("%x", b[:min(len(b), 24)])}
	}
	if len(b) < 4 {
		return bad("4 B")
	}
	if b[0] != placementVersion {
		return nil, fmt.Errorf("placement list version %d: %w", b[0], block.ErrVersion)
	}
	n := int(b[1])
	if n > maxPlacements || b[2] != 0 || b[3] != 0 {
		return bad("at most 16 copies and zeroes")
	}
	list := make(PlacementList, 0, n)
	le := binary.LittleEndian
	for b = b[4:]; n > 0; n-- {
		if len(b) < placementFixed {
			return bad("a copy")
		}
		tier, key := int(b[0]), int(le.Uint16(b[1:]))
		if len(b) < placementFixed+tier+key {
			return bad("a tier and a key")
		}
		p := Placement{
			Tier: string(b[placementFixed:][:tier]), Key: string(b[placementFixed+tier:][:key]),
			State: State(b[3]), Generation: le.Uint32(b[4:]), VerifiedAt: int64(le.Uint64(b[8:])),
		}
		if err := p.check(); err != nil {
			return bad(err.Error())
		}
		list = append(list, p)
		b = b[placementFixed+tier+key:]
	}
	if len(b) > 0 {
		return bad("nothing behind the last copy")
	}
	return list, nil
}

// check reports what of p is out of bounds.
func (p *Placement) check() error {
	switch {
	case len(p.Tier) == 0 || len(p.Tier) > maxTierName:
		return fmt.Errorf("a tier name of 1 to %d B", maxTierName)
	case len(p.Key) == 0 || len(p.Key) > maxKey:
		return fmt.Errorf("a key of 1 to %d B", maxKey)
	case p.State < Live || p.State > Damaged:
		return fmt.Errorf("a known state, not %v", p.State)
	}
	return nil
}
