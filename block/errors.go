package block

import (
	"errors"
	"fmt"
)

// Sentinels that callers test with errors.Is. The words are what a user reads at the end of a wrapped error.
var (
	ErrCorrupt    = errors.New("data is corrupt")
	ErrNotFound   = errors.New("not found")
	ErrExists     = errors.New("already exists")
	ErrNoSpace    = errors.New("no space left in the store")
	ErrReadOnly   = errors.New("read-only")
	ErrClosed     = errors.New("closed")
	ErrInUse      = errors.New("in use")
	ErrProtected  = errors.New("protected")
	ErrInvalid    = errors.New("invalid argument")
	ErrOutOfRange = errors.New("outside the volume")
	ErrLocked     = errors.New("locked by another process")
	ErrVersion    = errors.New("format version not supported")
	// ErrWouldBlock is returned by the Try methods when the answer needs a wait: a device read, log space, a sync.
	ErrWouldBlock = errors.New("operation would block")
)

// CorruptError says where bytes failed their check. It matches ErrCorrupt.
type CorruptError struct {
	Source string // the unit, such as `segment 00012f` or `log file 7`
	Offset int64  // bytes into the unit
	Want   string // the expected value or property
	Got    string // what was found
}

// Error describes the damage: where, what was expected and what was found.
func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s at %d: want %s, got %s: %v", e.Source, e.Offset, e.Want, e.Got, ErrCorrupt)
}

// Is reports whether target is ErrCorrupt.
func (e *CorruptError) Is(target error) bool { return target == ErrCorrupt }
