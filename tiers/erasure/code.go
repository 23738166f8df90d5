package erasure

import (
	"fmt"

	"github.com/klauspost/reedsolomon"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Code computes parity for whoever keeps the shards in places of their own (tiers/stripe). It is the code of a sidecar; a single data shard is allowed, whose parity is a copy of it. Its methods may be called at once.
type Code struct {
	shape Shape
	rs    reedsolomon.Encoder
}

// NewCode returns the code of a shape.
func NewCode(s Shape) (*Code, error) {
	if s.Data < 1 || s.Parity < 1 || s.Parity > maxParity || s.Data+s.Parity > maxShards {
		return nil, fmt.Errorf("code %d+%d: %w", s.Data, s.Parity, block.ErrInvalid)
	}
	rs, err := reedsolomon.New(s.Data, s.Parity, reedsolomon.WithMaxGoroutines(1))
	if err != nil {
		return nil, fmt.Errorf("make code %v: %w", s, err)
	}
	return &Code{s, rs}, nil
}

// Shape returns the shape that the code was made for.
func (c *Code) Shape() Shape { return c.shape }

// Encode fills the parity shards, which follow the data shards; all have one length.
func (c *Code) Encode(shards [][]byte) error { return c.rs.Encode(shards) }

// Reconstruct fills the shards that are nil. It needs as many others as there are data shards; too few are block.ErrCorrupt. What it fills in is to be compared with a checksum.
func (c *Code) Reconstruct(shards [][]byte) error {
	if err := c.rs.Reconstruct(shards); err != nil {
		return fmt.Errorf("reconstruct: %w: %w", err, block.ErrCorrupt)
	}
	return nil
}
