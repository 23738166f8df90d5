package erasure

import (
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Shape is how many data shards a segment is cut into and how many parity shards are added: each stripe of Data columns survives the loss of Parity of them. The zero value
// is no parity.
type Shape struct{ Data, Parity int }

// Default costs an eighth of a segment.
var Default = Shape{Data: 16, Parity: 2}

// Bounds of a shape. A head of 4 KiB has room for the checksums of 31 shards.
const (
	minData   = 2
	maxParity = 8
	maxShards = 31
)

// None reports whether there is no parity.
func (s Shape) None() bool { return s == Shape{} }

// Validate reports a shape that no sidecar can have. No parity is valid.
func (s Shape) Validate() error {
	if s.None() || s.Data >= minData && s.Parity >= 1 && s.Parity <= maxParity && s.Parity <= s.Data && s.Data+s.Parity <= maxShards {
		return nil
	}
	return fmt.Errorf("parity %d+%d: want %d or more data shards, 1 to %d parity shards and no more than data shards, %d together at most: %w",
		s.Data, s.Parity, minData, maxParity, maxShards, block.ErrInvalid)
}

// String is "16+2" and the like, or "off".
func (s Shape) String() string {
	if s.None() {
		return "off"
	}
	return fmt.Sprintf("%d+%d", s.Data, s.Parity)
}

// ParseShape is the inverse of String.
func ParseShape(text string) (s Shape, err error) {
	if text == "off" {
		return s, nil
	}
	if _, err := fmt.Sscanf(text, "%d+%d", &s.Data, &s.Parity); err != nil || s.String() != text {
		return Shape{}, fmt.Errorf("parity %q: want DATA+PARITY, such as %v, or off: %w", text, Default, block.ErrInvalid)
	}
	return s, s.Validate()
}
