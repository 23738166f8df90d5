package transfer

import (
	"errors"
	"math"
)

const (
	magic   = "HVSTREAM"
	version = 1

	// MaxPayload bounds the payload of a data frame, in bytes.
	MaxPayload = 4 << 20
	maxMessage = 4 << 10

	// UnknownSize is the size in the header of a stream whose sender does not know it yet.
	UnknownSize = math.MaxUint64
)

type kind uint32

const (
	kindData kind = 1 + iota
	kindHole
	kindEnd
	kindFailed
)

// frame is what a frame says, without its payload.
type frame struct {
	kind    kind
	payload uint32 // bytes that follow
	off     uint64 // bytes
	length  uint64 // bytes of the content
	sum     uint32 // crc32c of the payload
}

// ErrCut means that a stream ended before its end frame.
var ErrCut = errors.New("stream ended early")

// RemoteError is a failure that the sender reported in the stream.
type RemoteError struct{ Message string }

// Error is the sender's own text.
func (e *RemoteError) Error() string { return e.Message }
