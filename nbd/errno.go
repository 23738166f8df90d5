package nbd

import (
	"errors"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// errno is an error number of the protocol. NBD_ESHUTDOWN (108) is missing on purpose: guests see it as an I/O error, whereas a closed
// socket makes a client with a reconnect delay come back and repeat what was not replied.
type errno uint32

const (
	errnoOK       errno = 0
	errnoPerm     errno = 1
	errnoIO       errno = 5
	errnoNoMem    errno = 12
	errnoInvalid  errno = 22
	errnoNoSpace  errno = 28
	errnoOverflow errno = 75
	errnoNotSup   errno = 95
)

// refusal is an answer other than success: the number and the words that go with it in a structured reply. The words are constant, so
// that nothing of the host's inside leaks to a guest. The zero value is success.
type refusal struct {
	errno errno
	text  string
}

// What check may say, and what a device's error becomes.
var (
	accepted          = refusal{}
	refuseCommand     = refusal{errnoInvalid, "unknown command"}
	refuseFlags       = refusal{errnoInvalid, "unknown or unnegotiated command flag"}
	refuseFlushRange  = refusal{errnoInvalid, "flush with an offset or a length"}
	refuseUnsplit     = refusal{errnoOverflow, "read longer than 32 MiB"}
	refuseLength      = refusal{errnoInvalid, "payload longer than 32 MiB"}
	refusePayload     = refusal{errnoInvalid, "write without a payload"}
	refuseContexts    = refusal{errnoInvalid, "no metadata contexts were agreed on"}
	refuseNothing     = refusal{errnoInvalid, "block status of nothing"}
	refuseFilter      = refusal{errnoInvalid, "malformed choice of metadata contexts"}
	refuseReadOnly    = refusal{errnoPerm, "export is read-only"}
	refuseBeyond      = refusal{errnoInvalid, "beyond the end of the export"}
	refuseBeyondWrite = refusal{errnoNoSpace, "beyond the end of the export"}

	refuseNoSpace   = refusal{errnoNoSpace, "no space left in the store"}
	refuseInvalid   = refusal{errnoInvalid, "invalid argument"}
	refuseMemory    = refusal{errnoNoMem, "out of memory"}
	refuseSupport   = refusal{errnoNotSup, "not supported by the device"}
	refuseCorrupt   = refusal{errnoIO, "data is corrupt"}
	refuseUndefined = refusal{errnoIO, "input/output error"}
)

// refusalOf chooses the answer for a device's error. What it does not know is EIO.
func refusalOf(err error) refusal {
	switch {
	case err == nil:
		return accepted
	case errors.Is(err, block.ErrCorrupt):
		return refuseCorrupt
	case errors.Is(err, block.ErrNoSpace), errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return refuseNoSpace
	case errors.Is(err, block.ErrReadOnly), errors.Is(err, syscall.EROFS):
		return refuseReadOnly
	case errors.Is(err, block.ErrOutOfRange), errors.Is(err, block.ErrInvalid):
		return refuseInvalid
	case errors.Is(err, errors.ErrUnsupported):
		return refuseSupport
	case errors.Is(err, syscall.ENOMEM):
		return refuseMemory
	}
	return refuseUndefined
}
