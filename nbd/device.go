package nbd

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"

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

// ErrLongWait is a block.ErrWouldBlock of the Try methods that says more: the call that may wait could do so for minutes, as for data that is still to come. The server then keeps the
// connection's reader out of it, so that the client's other requests go on.
var ErrLongWait = fmt.Errorf("for long: %w", block.ErrWouldBlock)

// Paced is a Device that may be held to a rate, now or later. What waits for it holds no memory that others could need: see memory.
type Paced interface {
	// Limited reports whether the device is held to a rate now.
	Limited() bool
	// AwaitRate returns when a read, or a write, of n bytes could begin without a wait for the rate. It books nothing. The error is that of ctx, or that the device was closed.
	AwaitRate(ctx context.Context, write bool, n int64) error
}

// AheadFlusher is a Device that can be told that a Flush is probably about to come, when what was written before it has been replied and the client has yet to ask.
type AheadFlusher interface {
	// FlushAhead does what Flush does as far as it can, so that the Flush that follows has less to do or nothing. It reports no error: that is for the Flush.
	FlushAhead(ctx context.Context)
}

// Names of the metadata contexts that the server knows the form of, and what their statuses mean. A device offers whichever it can answer.
const (
	// ContextAllocation tells holes: StatusHole and StatusZero.
	ContextAllocation = "base:allocation"
	// ContextDepth tells which layer the bytes come from: 0 none, 1 the device's own, 2 the snapshot it stands on, and so on.
	ContextDepth = "qemu:allocation-depth"
	// ContextDirtyPrefix and the name of a bitmap, or of a snapshot that the changes are counted from, tell what has changed: StatusDirty.
	ContextDirtyPrefix = "qemu:dirty-bitmap:"
	// ContextTier tells the tier that the bytes lie in, as a number that the device's owner defines. The name is reserved for this project.
	ContextTier = "x-hv:tier"
	// ContextHeat tells how often the bytes were used of late, 0 for never; larger is hotter. The name is reserved for this project.
	ContextHeat = "x-hv:heat"
)

// Bits of a status.
const (
	StatusHole  uint32 = 1 << 0 // ContextAllocation: no space is taken up
	StatusZero  uint32 = 1 << 1 // ContextAllocation: reads as zeroes
	StatusDirty uint32 = 1 << 0 // ContextDirtyPrefix: changed
)

// StatusReporter is a Device that can also say what it knows about its bytes, for NBD_CMD_BLOCK_STATUS. A device without it offers no
// metadata contexts.
type StatusReporter interface {
	// MetaContexts returns the full names ("namespace:leaf") of the contexts to be had now, in the order to list them in. It must not
	// wait for a device. Names that are no valid strings of the protocol are left out by the server.
	MetaContexts() []string
	// BlockStatus tells the statuses of the bytes from r.Off on in one of those contexts: it calls emit for consecutive runs, each with its
	// length in bytes and its status, until emit returns false, the end of r is reached, or it has worked long enough. One byte is
	// the least that must be told; whoever wants the rest asks again from there. Runs are multiples of 512 bytes except at the ends of
	// r and of the device. Neighbours of one status may be told apart, the server joins them; the last run may go beyond r where that costs
	// nothing. emit neither waits nor keeps anything, so locks may be held over it.
	//
	// A context that is gone by now is an error that wraps block.ErrNotFound. On an error nothing of what was told counts.
	BlockStatus(ctx context.Context, metaContext string, r block.Range, emit func(length uint64, status uint32) (more bool)) error
}

// Export is a named device in a server's table.
type Export struct {
	Name        string
	Description string
	Device      Device
	// Tenant names whose share of the server's memory the connections count against; exports of one volume have one. Default: Name.
	Tenant string
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

// ClientExports is an Exports that also looks at who asks. A server that finds these methods calls them instead of Acquire and List.
type ClientExports interface {
	Exports
	// AcquireFor is Acquire for that client. An error that wraps ErrTLSRequired tells a client in plain text to come back with TLS.
	AcquireFor(client Client, name string) (e Export, release func(), err error)
	// ListFor is List for that client.
	ListFor(client Client) []Export
}

// Client is who asks for an export.
type Client struct {
	Addr net.Addr
	// Encrypted reports that the connection is under TLS.
	Encrypted bool
	// Certificate is what the client proved to be: its own certificate, verified up to one of the authorities of TLS.ClientCAFile. It is nil
	// for a client that showed none.
	Certificate *x509.Certificate
	// PSK is the identity of the pre-shared key that the client proved to have, "" for a client without one.
	PSK string
}

// ErrTLSRequired is what ClientExports returns for an export that is not to be had in plain text.
var ErrTLSRequired = errors.New("export needs TLS")
