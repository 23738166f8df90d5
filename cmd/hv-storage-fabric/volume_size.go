package main

import (
	"errors"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// sizeUnits tells in the help of a flag which units a size may have.
const sizeUnits = "K, M, G, T (as KiB, MiB, GiB, TiB: 1G is 1GiB) or the decimal kB, MB, GB, TB"

// volumeSize is the value of a flag --size, in bytes. A number that is too large for any size gets an error that names the largest volume.
type volumeSize struct{ units.Size }

// Set reads the text. hvd checks the rest, such as whole sectors.
func (s *volumeSize) Set(text string) error {
	err := s.Size.Set(text)
	if errors.Is(err, units.ErrTooLarge) {
		return fmt.Errorf("a volume has at most 8 EiB less 16 MiB (%d bytes); %w", uint64(block.MaxVolumeSize), err)
	}
	return err
}
