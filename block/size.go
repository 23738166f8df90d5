package block

// The four scales of the store, never mixed (docs/architecture.md, "Four scales").
const (
	// SectorSize is the smallest unit that an NBD client may address, in bytes.
	SectorSize = 512
	// Size is the addressing unit of overlays and of the log, in bytes. A write that covers part of a block is completed by
	// read-modify-write before it reaches the log.
	Size = 4 << 10
	// RegionSize is the span of one region page, in bytes. No chunk crosses a region border.
	RegionSize = 16 << 20
	// BlocksPerRegion is the number of blocks in a region.
	BlocksPerRegion = RegionSize / Size
	// MaxVolumeSize is the largest size of a volume, in bytes: 8 EiB less one region, so that an end offset never overflows int64.
	MaxVolumeSize = 1<<63 - RegionSize
)

// Range is a run of bytes [Off, Off+Len).
type Range struct {
	Off uint64 // bytes
	Len uint64 // bytes
}

// End returns the first byte after the range.
func (r Range) End() uint64 { return r.Off + r.Len }
