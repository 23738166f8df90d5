package blockstore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/cockroachdb/pebble/v2/vfs"
	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// These constants are part of the disk format (docs/format/super.md) and must not be changed.
const (
	superSize    = 4096
	superMagic   = "HVSUPER\x00"
	superVersion = 1
	superCrcAt   = superSize - 4

	flagClean       = 1 << 0 // the store was closed in order
	flagInitialized = 1 << 1 // metadata and log exist
)

// Features of a store; all are in features.go.
const (
	// incompatParity says that segment rows may have a shape of parity, bytes that must be zero without it.
	incompatParity = 1 << 0
	// incompatDisks says that the store has, or had, several disks: parts of segments may lie elsewhere, and directories have labels.
	incompatDisks = 1 << 1
	// incompatEncrypted says that log and segments are encrypted, and that the keys are in the file keys.
	incompatEncrypted = 1 << 2
	// incompatSnapshots says that the log may have the records, and rows of nodes the flags, of snapshots that were renamed, protected, or taken together or by a schedule.
	incompatSnapshots = 1 << 3
	// incompatStreams says that the log may have writes of streams, whose payload begins at a page.
	incompatStreams = 1 << 4
	// incompatParts says that maps may have pages that are kept in parts.
	incompatParts = 1 << 5
	// roCompatHistory says that volumes have history, or had: a program that does not know it would release the log before it is copied.
	roCompatHistory = 1 << 0
	// roCompatBitmaps says that volumes have bitmaps, or had: a program that does not know them would change maps without a word to them.
	roCompatBitmaps = 1 << 1
	// roCompatHistoryParity says that files of history have sidecars, or had: a program that does not know them would leave them beside files that it has thinned.
	roCompatHistoryParity = 1 << 2
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// superblock is what a store is, in one page. Two copies alternate; the valid one with the higher generation counts.
type superblock struct {
	Generation  uint64
	StoreID     block.UUID
	DomainID    dedup.DomainID
	Compat      uint64
	ROCompat    uint64
	Incompat    uint64
	Flags       uint64
	Created     int64 // ns since the epoch
	BootEpoch   uint64
	OwnerEpoch  uint64
	Cut         cdc.Params
	Checkpoints [2]checkpointPointer // the newest full checkpoint; the newest that was noted when the superblock was written
}

// checkpointPointer says where a metadata checkpoint starts.
type checkpointPointer struct {
	Segment block.SegmentID
	Offset  uint64 // of the frame of its first part
	Seq     uint64 // its number
}

func (s *superblock) encode() []byte {
	b := make([]byte, superSize)
	le := binary.LittleEndian
	copy(b, superMagic)
	le.PutUint32(b[8:], superVersion)
	le.PutUint64(b[16:], s.Generation)
	copy(b[24:40], s.StoreID[:])
	copy(b[40:56], s.DomainID[:])
	le.PutUint64(b[56:], s.Compat)
	le.PutUint64(b[64:], s.ROCompat)
	le.PutUint64(b[72:], s.Incompat)
	le.PutUint64(b[80:], s.Flags)
	le.PutUint64(b[88:], uint64(s.Created))
	le.PutUint64(b[96:], s.BootEpoch)
	le.PutUint64(b[104:], s.OwnerEpoch)
	putCut(b[112:132], s.Cut)
	for i, c := range s.Checkpoints {
		at := b[136+24*i:]
		le.PutUint64(at, uint64(c.Segment))
		le.PutUint64(at[8:], c.Offset)
		le.PutUint64(at[16:], c.Seq)
	}
	// 184..512: four key slots of 80 bytes, reserved for encryption at rest.
	le.PutUint32(b[superCrcAt:], crc32.Checksum(b[:superCrcAt], castagnoli))
	return b
}

func decodeSuper(b []byte, source string) (*superblock, error) {
	corrupt := func(at int64, want, got string) error {
		return &block.CorruptError{Source: source, Offset: at, Want: want, Got: got}
	}
	if len(b) != superSize {
		return nil, corrupt(0, "4096 bytes", fmt.Sprint(len(b)))
	}
	if string(b[:8]) != superMagic {
		return nil, corrupt(0, "superblock magic", fmt.Sprintf("%q", b[:8]))
	}
	le := binary.LittleEndian
	if sum := crc32.Checksum(b[:superCrcAt], castagnoli); sum != le.Uint32(b[superCrcAt:]) {
		return nil, corrupt(superCrcAt, fmt.Sprintf("crc %08x", sum), fmt.Sprintf("%08x", le.Uint32(b[superCrcAt:])))
	}
	if v := le.Uint32(b[8:]); v != superVersion {
		return nil, fmt.Errorf("%s has format version %d, this program reads version %d: %w", source, v, superVersion, block.ErrVersion)
	}
	s := &superblock{
		Generation: le.Uint64(b[16:]),
		Compat:     le.Uint64(b[56:]), ROCompat: le.Uint64(b[64:]), Incompat: le.Uint64(b[72:]),
		Flags:     le.Uint64(b[80:]),
		Created:   int64(le.Uint64(b[88:])),
		BootEpoch: le.Uint64(b[96:]), OwnerEpoch: le.Uint64(b[104:]),
		Cut: getCut(b[112:132]),
	}
	copy(s.StoreID[:], b[24:40])
	copy(s.DomainID[:], b[40:56])
	for i := range s.Checkpoints {
		at := b[136+24*i:]
		s.Checkpoints[i] = checkpointPointer{block.SegmentID(le.Uint64(at)), le.Uint64(at[8:]), le.Uint64(at[16:])}
	}
	for _, reserved := range [][2]int{{12, 16}, {113, 116}, {129, 136}, {184, superCrcAt}} {
		for i := reserved[0]; i < reserved[1]; i++ {
			if b[i] != 0 {
				return nil, corrupt(int64(i), "zero in a reserved byte", fmt.Sprint(b[i]))
			}
		}
	}
	if err := s.checkFeatures(source); err != nil {
		return nil, err
	}
	return s, nil
}

func superPath(fs vfs.FS, dir string, i uint64) string {
	return fs.PathJoin(dir, fmt.Sprintf("super.%d", i&1))
}

// readSuper returns the newest valid superblock, or ErrNotFound when the directory holds none at all. A single damaged copy is tolerated: the other one counts, as it
// was written before or after it; two damaged copies, or a damaged one alone, are an error.
func readSuper(fs vfs.FS, dir string) (*superblock, error) {
	var best *superblock
	var bad error
	found := 0
	for i := range uint64(2) {
		path := superPath(fs, dir, i)
		b, err := readSmallFile(fs, path, superSize)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		found++
		if err != nil {
			bad = err
			continue
		}
		s, err := decodeSuper(b, path)
		if err != nil {
			bad = err
			if errors.Is(err, block.ErrVersion) {
				return nil, err
			}
			continue
		}
		if best == nil || s.Generation > best.Generation {
			best = s
		}
	}
	switch {
	case best != nil:
		return best, nil
	case found == 0:
		return nil, fmt.Errorf("superblock in %s: %w", dir, block.ErrNotFound)
	default:
		return nil, fmt.Errorf("no valid superblock in %s: %w", dir, bad)
	}
}

// writeSuper makes s durable under the next generation, over the older of the two copies.
func writeSuper(fs vfs.FS, dir string, s *superblock) error {
	s.Generation++
	path := superPath(fs, dir, s.Generation)
	if err := writeFileAtomic(fs, dir, path, s.encode()); err != nil {
		return fmt.Errorf("write superblock %s: %w", path, err)
	}
	return nil
}

// updateSuper changes the superblock and makes it durable.
func (s *Store) updateSuper(change func(*superblock)) error {
	s.superMu.Lock()
	defer s.superMu.Unlock()
	compat, roCompat, incompat := s.super.Compat, s.super.ROCompat, s.super.Incompat
	change(s.super)
	if err := writeSuper(s.fs, s.opts.Dir, s.super); err != nil {
		s.super.Compat, s.super.ROCompat, s.super.Incompat = compat, roCompat, incompat // nothing may rely on what is not there
		return err
	}
	s.copySuper(s.super)
	return nil
}

// writeFileAtomic replaces path with the given bytes, for its owner alone: temporary file, sync, rename, sync of the folder.
func writeFileAtomic(fs vfs.FS, dir, path string, b []byte) error {
	tmp := path + ".tmp"
	f, err := fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	// A file in memory has no descriptor, and nobody else to hide from. The key must not be readable for a moment: the mode comes before the bytes.
	if fd := f.Fd(); fd != vfs.InvalidFd {
		if err := unix.Fchmod(int(fd), 0o600); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	if _, err := f.Write(b); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Sync(); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := fs.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(fs, dir)
}

func syncDir(fs vfs.FS, dir string) error {
	d, err := fs.OpenDir(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readSmallFile reads a file of at most limit bytes.
func readSmallFile(fs vfs.FS, path string, limit int) ([]byte, error) {
	f, err := fs.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(b) > limit {
		return nil, &block.CorruptError{Source: path, Offset: int64(limit), Want: "end of file", Got: "more bytes"}
	}
	return b, nil
}

// putCut and getCut are the 20 bytes that a superblock and a volume row keep of cut parameters.
func putCut(b []byte, p cdc.Params) {
	le := binary.LittleEndian
	le.PutUint32(b, uint32(p.Kind))
	le.PutUint32(b[4:], p.Min)
	le.PutUint32(b[8:], p.Avg)
	le.PutUint32(b[12:], p.Max)
	le.PutUint32(b[16:], uint32(p.TableVersion))
}

func getCut(b []byte) cdc.Params {
	le := binary.LittleEndian
	return cdc.Params{Kind: cdc.Kind(le.Uint32(b)), Min: le.Uint32(b[4:]), Avg: le.Uint32(b[8:]), Max: le.Uint32(b[12:]), TableVersion: uint8(le.Uint32(b[16:]))}
}
