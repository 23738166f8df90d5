package cdc

import (
	"fmt"
	"math/bits"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says how chunks are cut. The values are part of the disk format.
type Kind uint8

const (
	// CDC cuts where the content says so; an insertion moves the cuts behind it along.
	CDC Kind = 1
	// Fixed cuts at the multiples of a size in the volume.
	Fixed Kind = 2
)

// String returns the kind as users write it.
func (k Kind) String() string {
	switch k {
	case CDC:
		return "cdc"
	case Fixed:
		return "fixed"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Bounds of the parameters, in bytes.
const (
	minAvg = 1 << 10
	maxAvg = 1 << 20
	maxMax = 4 << 20 // a chunk has to fit into a frame
)

// TableVersion1 is the first content-defined algorithm: gear hash over a table made by splitmix64, jump condition of JC.
const TableVersion1 = 1

// Params are recorded in the superblock and per volume. Volumes with different parameters do not share chunks. All sizes are in bytes.
type Params struct {
	Kind Kind
	// Min, Avg and Max bound a content-defined chunk; only the last of a run may be shorter than Min. Of a fixed cut all three are its size.
	Min, Avg, Max uint32
	// TableVersion names table and algorithm of a content-defined cut; 0 with Fixed.
	TableVersion uint8
}

// Default returns the parameters of a new store: content-defined, 4 KiB to 64 KiB, on average 16 KiB.
func Default() Params {
	return Params{Kind: CDC, Min: 4 << 10, Avg: 16 << 10, Max: 64 << 10, TableVersion: TableVersion1}
}

// FixedSize returns the parameters of cuts at multiples of size bytes.
func FixedSize(size uint32) Params { return Params{Kind: Fixed, Min: size, Avg: size, Max: size} }

// String returns the parameters as users write them, such as `cdc:4096/16384/65536 v1` or `fixed:65536`.
func (p Params) String() string {
	if p.Kind == Fixed {
		return fmt.Sprintf("fixed:%d", p.Avg)
	}
	return fmt.Sprintf("%v:%d/%d/%d v%d", p.Kind, p.Min, p.Avg, p.Max, p.TableVersion)
}

// Validate reports the first field that is out of bounds, as block.ErrInvalid, or an unknown table version, as block.ErrVersion.
func (p Params) Validate() error {
	bad := func(why string) error { return fmt.Errorf("cut parameters %v: %s: %w", p, why, block.ErrInvalid) }
	switch p.Kind {
	case Fixed:
		switch {
		case p.Min != p.Avg || p.Max != p.Avg:
			return bad("min, avg and max of a fixed cut differ")
		case p.Avg < block.Size || p.Avg > maxAvg || bits.OnesCount32(p.Avg) != 1:
			return bad("size is no power of two from 4 KiB to 1 MiB")
		case p.TableVersion != 0:
			return bad("a fixed cut has no table")
		}
		return nil
	case CDC:
		switch {
		case p.TableVersion != TableVersion1:
			return fmt.Errorf("cut parameters %v: %w", p, block.ErrVersion)
		case p.Avg < minAvg || p.Avg > maxAvg || bits.OnesCount32(p.Avg) != 1:
			return bad("average is no power of two from 1 KiB to 1 MiB")
		case p.Min < 256 || p.Min > p.Avg/2:
			return bad("minimum is not from 256 B to half the average")
		case p.Max < 2*p.Avg || p.Max > maxMax:
			return bad("maximum is not from twice the average to 4 MiB")
		}
		return nil
	}
	return bad("unknown kind")
}
