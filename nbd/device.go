package nbd

import (
	"context"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Write is one WRITE request of a batch, already validated against the device's size.
type Write = block.Write

// Device is what an export serves: a flat run of bytes. All methods may be called at once from any number of goroutines. Offsets and
// lengths are in bytes, inside Size, and may have any alignment. A returned error wraps a sentinel of package block, from which the
// server chooses the errno.
//
// Ordering: an effect is visible to every call that begins after the call that made it has returned. Overlapping calls that run at once
// are applied in any order, each whole.
type Device interface {
	// Size is the length of the device in bytes. It may grow or shrink between calls.
	Size() uint64
	// ReadOnly reports whether writes, trims and zeroes are refused.
	ReadOnly() bool

	// TryReadAt is ReadAt for a caller that must not wait: it returns block.ErrWouldBlock, with p undefined, when bytes would have to
	// come from a device instead of from memory.
	TryReadAt(p []byte, off uint64, holes []block.Range) ([]block.Range, error)
	// ReadAt fills p with the bytes at off. It appends to holes those sub-ranges (absolute offsets, ascending, not touching) that are
	// known to read as zeroes because nothing is stored there; p is zeroed there as well.
	ReadAt(ctx context.Context, p []byte, off uint64, holes []block.Range) ([]block.Range, error)

	// TryWrite applies a batch in order, with one append, or returns block.ErrWouldBlock having applied nothing.
	TryWrite(batch []Write, fua bool) error
	// Write applies a batch in order, waiting for log space where it must. When it returns nil the writes survive the death of this
	// process; with fua, or on a durable device, also a power loss. On an error none, some or all of the batch may have been applied.
	Write(ctx context.Context, batch []Write, fua bool) error

	// Trim discards a range: it reads as zeroes afterwards (whole blocks; the rest of the range may keep its bytes).
	Trim(ctx context.Context, r block.Range, fua bool) error
	// Zero makes a range read as zeroes. With noHole the space stays reserved where the device can reserve. The server announces fast
	// zeroing, so this must cost no more than a write of the two blocks at the ends, however long the range; a device that cannot
	// do that returns an error that wraps errors.ErrUnsupported.
	Zero(ctx context.Context, r block.Range, noHole, fua bool) error
	// Flush makes every effect whose call had returned before Flush was called durable, on every connection.
	Flush(ctx context.Context) error
	// Prefetch brings a range into memory. It is a hint and may do nothing.
	Prefetch(ctx context.Context, r block.Range) error
}

// Export is a named device in a server's table.
type Export struct {
	Name        string
	Description string
	Device      Device
	// MinBlock, PreferredBlock and MaxBlock are the constraints announced with NBD_INFO_BLOCK_SIZE, in bytes.
	MinBlock, PreferredBlock, MaxBlock uint32
}

// Exports finds what a server serves. Acquire is called once per connection that enters transmission; release when it ends.
type Exports interface {
	// Acquire returns the export of that name ("" is the default export, if there is one) or an error that wraps block.ErrNotFound.
	// The device stays open until release is called.
	Acquire(name string) (e Export, release func(), err error)
	// List returns the names and descriptions for NBD_OPT_LIST.
	List() []Export
}
