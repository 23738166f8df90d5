package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"

	"github.com/cockroachdb/pebble/v2"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
)

// These constants are part of the disk format (docs/format/scrub.md) and must not be changed.
const (
	scrubFile    = "scrub"
	scrubMagic   = "HNSCRUB\x00"
	scrubVersion = 1
	// scrubsHistory is the version of the record of a scrub that has come to files of history.
	scrubsHistory = 2
	scrubSize     = 128
	scrubCrcAt    = scrubSize - 4
)

// scrubRecord is what outlives the process of a scrub.
type scrubRecord struct {
	State    ScrubState
	FindOnly bool
	StoreID  block.UUID
	Run      uint64
	Started  int64 // ns since the epoch; what was verified since is done
	Ended    int64 // ns since the epoch; 0 while it has not
	Segments uint64
	Bytes    uint64
	Damaged  uint64
	Mended   uint64
	Files    uint64          // of history that were looked at
	At       history.FileKey // the last one of these
}

// version is that of the format: the oldest that can say what is there.
func (r *scrubRecord) version() uint32 {
	if r.Files == 0 {
		return scrubVersion
	}
	return scrubsHistory
}

func (r *scrubRecord) encode() []byte {
	b, le := make([]byte, scrubSize), binary.LittleEndian
	copy(b, scrubMagic)
	le.PutUint32(b[8:], r.version())
	b[12] = byte(r.State)
	if r.FindOnly {
		b[13] = 1
	}
	copy(b[16:], r.StoreID[:])
	for i, v := range []uint64{r.Run, uint64(r.Started), uint64(r.Ended), r.Segments, r.Bytes, r.Damaged, r.Mended} {
		le.PutUint64(b[32+8*i:], v)
	}
	le.PutUint64(b[88:], r.Files)
	le.PutUint64(b[96:], uint64(r.At.Volume))
	le.PutUint32(b[104:], r.At.ID)
	le.PutUint32(b[scrubCrcAt:], crc32.Checksum(b[:scrubCrcAt], castagnoli))
	return b
}

func decodeScrub(b []byte, source string) (r scrubRecord, err error) {
	bad := func(at int64, want, got string) (scrubRecord, error) {
		return scrubRecord{}, &block.CorruptError{Source: source, Offset: at, Want: want, Got: got}
	}
	le := binary.LittleEndian
	if len(b) != scrubSize || string(b[:8]) != scrubMagic {
		return bad(0, "the record of a scrub, 128 B", fmt.Sprintf("%d B", len(b)))
	}
	if sum := crc32.Checksum(b[:scrubCrcAt], castagnoli); sum != le.Uint32(b[scrubCrcAt:]) {
		return bad(scrubCrcAt, fmt.Sprintf("crc %08x", sum), fmt.Sprintf("%08x", le.Uint32(b[scrubCrcAt:])))
	}
	version := le.Uint32(b[8:])
	if version != scrubVersion && version != scrubsHistory {
		return r, fmt.Errorf("%s has format version %d, this program reads up to version %d: %w", source, version, scrubsHistory, block.ErrVersion)
	}
	reserved := 88
	r = scrubRecord{State: ScrubState(b[12]), FindOnly: b[13] == 1, StoreID: block.UUID(b[16:32])}
	for i, p := range []*uint64{&r.Run, nil, nil, &r.Segments, &r.Bytes, &r.Damaged, &r.Mended} {
		if p != nil {
			*p = le.Uint64(b[32+8*i:])
		}
	}
	r.Started, r.Ended = int64(le.Uint64(b[40:])), int64(le.Uint64(b[48:]))
	if version == scrubsHistory {
		reserved = 108
		r.Files, r.At = le.Uint64(b[88:]), history.FileKey{Volume: block.VolumeID(le.Uint64(b[96:])), ID: le.Uint32(b[104:])}
		if r.Files == 0 || r.At.Volume == 0 || r.At.ID == 0 {
			return bad(88, "a file of history that it has come to", fmt.Sprintf("%d files, the last one %08x of volume %d", r.Files, r.At.ID, r.At.Volume))
		}
	}
	if r.State < ScrubRunning || r.State > ScrubCancelled || b[13] > 1 || r.Run == 0 || r.Mended > r.Damaged {
		return bad(12, "a scrub in a known state", fmt.Sprintf("%v, run %d, %d of %d mended", r.State, r.Run, r.Mended, r.Damaged))
	}
	for i, c := range b[:scrubCrcAt] {
		if (i == 14 || i == 15 || i >= reserved) && c != 0 {
			return bad(int64(i), "zero in a reserved byte", fmt.Sprint(c))
		}
	}
	return r, nil
}

// writeScrub makes the record durable.
func (s *Store) writeScrub(r *scrubRecord) error {
	r.StoreID = s.super.StoreID
	return writeFileAtomic(s.fs, s.opts.Dir, s.path(scrubFile), r.encode())
}

// readScrub reads the record of an earlier run, or returns block.ErrNotFound.
func (s *Store) readScrub() (scrubRecord, error) {
	b, err := readSmallFile(s.fs, s.path(scrubFile), scrubSize)
	if errors.Is(err, os.ErrNotExist) {
		return scrubRecord{}, block.ErrNotFound
	}
	if err != nil {
		return scrubRecord{}, err
	}
	r, err := decodeScrub(b, s.path(scrubFile))
	if err == nil && r.StoreID != s.super.StoreID {
		return r, &block.CorruptError{Source: s.path(scrubFile), Offset: 16, Want: "store " + s.super.StoreID.String(), Got: r.StoreID.String()}
	}
	return r, err
}

// tableBounds are those of all rows under a prefix.
func tableBounds(prefix byte) *pebble.IterOptions {
	return &pebble.IterOptions{LowerBound: []byte{prefix}, UpperBound: []byte{prefix + 1}}
}
