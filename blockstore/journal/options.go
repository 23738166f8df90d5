package journal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

const (
	// MinFileSize and MaxFileSize bound the length of a log file in bytes. Small files are for tests: a record must fit into one file.
	MinFileSize = 32 << 10
	MaxFileSize = 1 << 30

	defaultFileSize  = 64 << 20
	defaultCap       = 2 << 30
	defaultSyncEvery = time.Second
	defaultSyncBytes = 64 << 20

	maxSpares   = 4 // recycled files kept for reuse
	maxUnsealed = 4 // full files that wait for their seal; appends wait beyond
)

// ErrFailed is wrapped by every append and sync after a sync or a write has failed: what is on the device is not known any more, so nothing
// more is promised. What was synced before stays readable. A new Open starts from what the device has.
var ErrFailed = errors.New("the log has failed")

// Options are the parameters of a log. FS, Dir, StoreID and BootEpoch are required; the zero value of the others is a default.
type Options struct {
	FS  vfs.FS
	Dir string // of the log files; created if it is missing
	// Mirrors are further directories that have the same; at most MaxPlaces − 1. What is acknowledged is in all of them that are in sync (places.go).
	Mirrors []string
	StoreID block.UUID
	// BootEpoch is the number of this run of the store, already bumped and durable. It must be above that of every file in Dir.
	BootEpoch uint64
	// OwnerEpoch is the lease under which this process may write. Files of a higher one make Open fail.
	OwnerEpoch uint64
	// MinSeq is a floor for the sequence number of the next record; 0 is none. It matters only to a log that lost its end (AcceptLoss).
	MinSeq uint64

	// RetainFrom is a position at or before the one to replay from. Files from there on stay live until ReleaseBefore lets them go, as far as they are there and sound.
	RetainFrom Pos

	// Keys encrypt the log. nil is a log that is not encrypted; which of both it is never changes.
	Keys *keyring.Ring

	FileSize int64 // bytes, a multiple of 4096, at most MaxFileSize; default 64 MiB. Existing files keep theirs.
	// CapBytes limits the live bytes (Usage.Live); default 2 GiB. The directory may hold one prepared and four spare files more.
	CapBytes int64
	// StreamBytes is the room of records with FlagStream beside CapBytes; what they take beyond it counts against CapBytes. Default none.
	StreamBytes int64
	// ReserveBytes is the last part of CapBytes, which only AppendControl may use.
	ReserveBytes int64

	SyncEvery time.Duration // the log syncs by itself at least this often; default 1 s, negative is never
	SyncBytes int64         // … and whenever this many bytes are unsynced; default 64 MiB, negative is never

	// AcceptLoss makes Open go on where it can prove that durable records are damaged or missing: the log then ends before them.
	AcceptLoss bool

	Now    func() time.Time // default time.Now
	Events Events

	salts io.Reader // crypto/rand, but for tests that write golden bytes
}

// Events are callbacks for the owner's log; any may be nil. They must return quickly and must not call the log.
type Events struct {
	// Recovered is called once, by Open.
	Recovered func(Recovery)
	// Failed is called once, when the log fails.
	Failed func(error)
	// ClockBehind is called when the wall clock is found more than a second behind the time of the last record, once for each time it falls
	// back.
	ClockBehind func(by time.Duration)
	// Place is called when a directory of the log falls out or is in sync again.
	Place func(PlaceInfo)
	// Mended is called when a read has found damage in one directory and the bytes in another, which were written over it.
	Mended func(dir string, cause error)
}

// Recovery says what Open found.
type Recovery struct {
	Files    int    // replayed, whole or in part
	Scanned  int    // of them, files without a valid footer, whose records were read one by one
	Records  uint64 // handed to the callback
	LastSeq  uint64 // of the log; 0 if it is empty
	LastPos  Pos    // of that record
	Rejected int    // files after the end of the log, which were removed
	// Lost says what was given up because of AcceptLoss; nil if nothing was.
	Lost error
}

// withDefaults returns the options with the zero values filled in, or an error that wraps block.ErrInvalid.
func (o Options) withDefaults() (Options, error) {
	if o.FileSize == 0 {
		o.FileSize = defaultFileSize
	}
	if o.CapBytes == 0 {
		o.CapBytes = defaultCap
	}
	if o.SyncEvery == 0 {
		o.SyncEvery = defaultSyncEvery
	}
	if o.SyncBytes == 0 {
		o.SyncBytes = defaultSyncBytes
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.salts == nil {
		o.salts = rand.Reader
	}
	switch {
	case o.FS == nil || o.Dir == "":
		return o, fmt.Errorf("log without file system or directory: %w", block.ErrInvalid)
	case len(o.Mirrors) >= MaxPlaces:
		return o, fmt.Errorf("log in %d directories, at most %d: %w", 1+len(o.Mirrors), MaxPlaces, block.ErrInvalid)
	case o.FileSize%pageSize != 0 || o.FileSize < MinFileSize || o.FileSize > MaxFileSize:
		return o, fmt.Errorf("log file size %d: %w", o.FileSize, block.ErrInvalid)
	case o.CapBytes < o.FileSize || o.ReserveBytes < 0 || o.ReserveBytes >= o.CapBytes || o.StreamBytes < 0:
		return o, fmt.Errorf("log cap %d with reserve %d and files of %d bytes: %w", o.CapBytes, o.ReserveBytes, o.FileSize, block.ErrInvalid)
	case o.BootEpoch == 0:
		return o, fmt.Errorf("log without boot epoch: %w", block.ErrInvalid)
	}
	return o, nil
}
