package control

import (
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// maxName is the longest name of a volume, snapshot or token, in bytes.
const maxName = 128

// CheckName accepts 1 to 128 bytes of [A-Za-z0-9._-] that do not begin with a dot or a dash. kind says in the error what the name is of.
func CheckName(kind, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s name is empty: %w", kind, block.ErrInvalid)
	case len(name) > maxName:
		return fmt.Errorf("%s name has %d bytes, at most %d are allowed: %w", kind, len(name), maxName, block.ErrInvalid)
	case name[0] == '.' || name[0] == '-':
		return fmt.Errorf("%s name %q begins with %q; begin with a letter or a digit: %w", kind, name, name[:1], block.ErrInvalid)
	}
	for _, r := range name {
		switch {
		case r == '@':
			return fmt.Errorf("%s name %q contains '@', which separates a volume from its snapshot: %w", kind, name, block.ErrInvalid)
		case r == '/':
			return fmt.Errorf("%s name %q contains '/'; names have no folders: %w", kind, name, block.ErrInvalid)
		case !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r):
			return fmt.Errorf("%s name %q contains %q; use letters, digits, '.', '_' and '-': %w", kind, name, r, block.ErrInvalid)
		}
	}
	return nil
}

// checkVolume and the like check each name that came from outside before the engine sees it.
func checkVolume(name string) error   { return CheckName("volume", name) }
func checkSnapshot(name string) error { return CheckName("snapshot", name) }

// checkVolumeSnapshot checks both names of a snapshot.
func checkVolumeSnapshot(volume, snapshot string) error {
	if err := checkVolume(volume); err != nil {
		return err
	}
	return checkSnapshot(snapshot)
}

// checkSize accepts sizes that a volume can have.
func checkSize(sizeBytes uint64) error {
	switch {
	case sizeBytes < block.SectorSize:
		return fmt.Errorf("size of %d bytes is below one sector of %d: %w", sizeBytes, block.SectorSize, block.ErrInvalid)
	case sizeBytes > block.MaxVolumeSize:
		return fmt.Errorf("size of %d bytes is above the largest volume of %d (8 EiB less 16 MiB): %w", sizeBytes, uint64(block.MaxVolumeSize), block.ErrInvalid)
	case sizeBytes%block.SectorSize != 0:
		return fmt.Errorf("size of %d bytes is not a multiple of %d; the next is %d: %w",
			sizeBytes, block.SectorSize, roundUp(sizeBytes), block.ErrInvalid)
	}
	return nil
}

// roundUp returns the least multiple of the sector size that is not below n.
func roundUp(n uint64) uint64 {
	return (n + block.SectorSize - 1) / block.SectorSize * block.SectorSize
}

// Chunks are bounded by what a frame and a region can hold, and by what the index of smaller ones would take.
const (
	minFixedChunk = 4 << 10
	maxFixedChunk = 1 << 20
	minAverage    = 4 << 10
	maxAverage    = 64 << 10
)

// ParseChunking reads "cdc" (or nothing), "cdc:SIZE", SIZE being the average, a power of two from 4KiB to 64KiB, and "fixed:SIZE", SIZE being one from 4KiB to 1MiB.
func ParseChunking(text string) (blockstore.Chunking, error) {
	if text == "" || text == "cdc" {
		return blockstore.Chunking{}, nil
	}
	kind, size, ok := strings.Cut(text, ":")
	if !ok || kind != "fixed" && kind != "cdc" {
		return blockstore.Chunking{}, fmt.Errorf("chunking %q: use cdc, cdc:SIZE or fixed:SIZE, such as fixed:64KiB: %w", text, block.ErrInvalid)
	}
	n, err := units.ParseSize(size)
	if err != nil {
		return blockstore.Chunking{}, fmt.Errorf("chunking %q: %w", text, err)
	}
	if kind == "cdc" {
		if n < minAverage || n > maxAverage || n&(n-1) != 0 {
			return blockstore.Chunking{}, fmt.Errorf("chunking %q: the average must be a power of two from 4KiB to 64KiB: %w", text, block.ErrInvalid)
		}
		return blockstore.Chunking{AverageBytes: uint32(n)}, nil
	}
	if n < minFixedChunk || n > maxFixedChunk || n&(n-1) != 0 {
		return blockstore.Chunking{}, fmt.Errorf("chunking %q: the size must be a power of two from 4KiB to 1MiB: %w", text, block.ErrInvalid)
	}
	return blockstore.Chunking{FixedBytes: uint32(n)}, nil
}
