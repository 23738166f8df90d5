package journal

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Sizes of the format, in bytes. These constants are part of the format and must not be changed.
const (
	pageSize    = 4096 // header and footer each take a page, and each append is padded to one
	coreSize    = 512  // header and footer lie in the first sector of their page: devices write a sector whole or not at all
	recordSize  = 96   // header of a record
	descSize    = 20   // descriptor of a sector
	footerBound = 96   // bytes of a footer before its tag
	sectorSize  = block.Size

	formatVersion = 1
)

// Magic numbers. They are part of the format.
const (
	fileMagic   = "HNXLOGF\n"
	footerMagic = "HNXLOGE\n"
	recordMagic = 0x524c4e48 // "HNLR"
)

// castagnoli is the polynomial of every checksum here; hash/crc32 uses the processor's instruction for it.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var le = binary.LittleEndian

// FileHeader is the first page of a log file.
type FileHeader struct {
	StoreID    block.UUID
	ID         uint32 // of the file; also its name
	KeyID      uint32 // of the master key that the file is encrypted with; 0 if it is not
	BootEpoch  uint64 // of the run that wrote the file
	OwnerEpoch uint64 // of the lease under which it was written
	Salt       [32]byte
	PrevID     uint32 // the file before this one in the log; 0 for the first of all
	PrevChain  uint32 // the chain value at the end of that file
	FirstSeq   uint64 // sequence number of the first record
	Created    int64  // nanoseconds since 1970; not before any earlier record
	Durable    uint64 // highest sequence number known to be synced when the header was written
	Capacity   int64  // length of the file in bytes; the footer is its last page
}

// encode fills page with the header and returns the seed of the file's chain.
func (h *FileHeader) encode(page []byte) (seed uint32) {
	clear(page[:pageSize])
	copy(page, fileMagic)
	le.PutUint32(page[8:], formatVersion)
	le.PutUint32(page[12:], pageSize)
	copy(page[16:], h.StoreID[:])
	le.PutUint32(page[32:], h.ID)
	le.PutUint32(page[36:], h.KeyID)
	le.PutUint64(page[40:], h.BootEpoch)
	le.PutUint64(page[48:], h.OwnerEpoch)
	copy(page[56:], h.Salt[:])
	le.PutUint32(page[88:], h.PrevID)
	le.PutUint32(page[92:], h.PrevChain)
	le.PutUint64(page[96:], h.FirstSeq)
	le.PutUint64(page[104:], uint64(h.Created))
	le.PutUint64(page[112:], h.Durable)
	le.PutUint64(page[120:], uint64(h.Capacity))
	seed = crc32.Checksum(page[:coreSize-4], castagnoli)
	le.PutUint32(page[coreSize-4:], seed)
	return seed
}

// ParseFileHeader decodes the first page of a log file and returns the seed of its chain: the checksum of the header, salt included. The
// error wraps block.ErrCorrupt or block.ErrVersion and has no source; the caller knows the file.
func ParseFileHeader(page []byte) (h FileHeader, seed uint32, err error) {
	if len(page) != pageSize || string(page[:8]) != fileMagic {
		return h, 0, damaged("file header magic", 0)
	}
	seed = le.Uint32(page[coreSize-4:])
	if got := crc32.Checksum(page[:coreSize-4], castagnoli); got != seed {
		return h, 0, damaged("file header checksum", coreSize-4)
	}
	if v := le.Uint32(page[8:]); v != formatVersion {
		return h, 0, fmt.Errorf("log format %d: %w", v, block.ErrVersion)
	}
	if le.Uint32(page[12:]) != pageSize {
		return h, 0, damaged("file header size", 12)
	}
	if !allZero(page[128:coreSize-4]) || !allZero(page[coreSize:]) {
		return h, 0, damaged("zeroes in reserved bytes of the file header", 128)
	}
	copy(h.StoreID[:], page[16:])
	h.ID = le.Uint32(page[32:])
	h.KeyID = le.Uint32(page[36:])
	h.BootEpoch = le.Uint64(page[40:])
	h.OwnerEpoch = le.Uint64(page[48:])
	copy(h.Salt[:], page[56:])
	h.PrevID = le.Uint32(page[88:])
	h.PrevChain = le.Uint32(page[92:])
	h.FirstSeq = le.Uint64(page[96:])
	h.Created = int64(le.Uint64(page[104:]))
	h.Durable = le.Uint64(page[112:])
	h.Capacity = int64(le.Uint64(page[120:]))
	if h.ID == 0 || h.PrevID >= h.ID || h.FirstSeq == 0 || h.Created < 0 || h.Capacity%pageSize != 0 || h.Capacity < MinFileSize || h.Capacity > MaxFileSize {
		return h, 0, damaged("file header in bounds", 32)
	}
	return h, seed, nil
}

// Footer is the last page of a sealed file. A file is sealed only when all its records are synced.
type Footer struct {
	ID         uint32
	BootEpoch  uint64
	Records    uint64
	FirstSeq   uint64
	LastSeq    uint64 // FirstSeq−1 in a file without records
	MinTime    int64  // nanoseconds since 1970; zero in a file without records
	MaxTime    int64
	DataEnd    int64 // offset of the first byte after the last record
	IndexOff   int64 // bytes
	IndexLen   int64 // bytes
	FinalChain uint32
	IndexSum   uint32   // CRC32C of the index, continued from the seed of the file
	Tag        [32]byte // of an encrypted file: authenticates the fields above and the index; else zeroes
}

// encode fills page with the footer of the file with the given seed.
func (f *Footer) encode(page []byte, seed uint32) {
	clear(page[:pageSize])
	copy(page, footerMagic)
	le.PutUint32(page[8:], formatVersion)
	le.PutUint32(page[12:], f.ID)
	le.PutUint64(page[16:], f.BootEpoch)
	le.PutUint64(page[24:], f.Records)
	le.PutUint64(page[32:], f.FirstSeq)
	le.PutUint64(page[40:], f.LastSeq)
	le.PutUint64(page[48:], uint64(f.MinTime))
	le.PutUint64(page[56:], uint64(f.MaxTime))
	le.PutUint64(page[64:], uint64(f.DataEnd))
	le.PutUint64(page[72:], uint64(f.IndexOff))
	le.PutUint64(page[80:], uint64(f.IndexLen))
	le.PutUint32(page[88:], f.FinalChain)
	le.PutUint32(page[92:], f.IndexSum)
	copy(page[footerBound:], f.Tag[:])
	le.PutUint32(page[coreSize-4:], crc32.Update(seed, castagnoli, page[:coreSize-4]))
}

// ParseFooter decodes the last page of the file that h and seed describe. A footer of an earlier life of a recycled file fails its
// checksum, which continues from the seed. The error wraps block.ErrCorrupt or block.ErrVersion.
func ParseFooter(page []byte, h *FileHeader, seed uint32) (f Footer, err error) {
	at := h.Capacity - pageSize
	if len(page) != pageSize || string(page[:8]) != footerMagic {
		return f, damaged("footer magic", at)
	}
	if got := crc32.Update(seed, castagnoli, page[:coreSize-4]); got != le.Uint32(page[coreSize-4:]) {
		return f, damaged("footer checksum", at+coreSize-4)
	}
	if v := le.Uint32(page[8:]); v != formatVersion {
		return f, fmt.Errorf("log footer format %d: %w", v, block.ErrVersion)
	}
	if !allZero(page[footerBound+len(f.Tag):coreSize-4]) || !allZero(page[coreSize:]) || h.KeyID == 0 && !allZero(page[footerBound:coreSize-4]) {
		return f, damaged("zeroes in reserved bytes of the footer", at+96)
	}
	f = Footer{
		ID: le.Uint32(page[12:]), BootEpoch: le.Uint64(page[16:]), Records: le.Uint64(page[24:]),
		FirstSeq: le.Uint64(page[32:]), LastSeq: le.Uint64(page[40:]),
		MinTime: int64(le.Uint64(page[48:])), MaxTime: int64(le.Uint64(page[56:])),
		DataEnd: int64(le.Uint64(page[64:])), IndexOff: int64(le.Uint64(page[72:])), IndexLen: int64(le.Uint64(page[80:])),
		FinalChain: le.Uint32(page[88:]), IndexSum: le.Uint32(page[92:]), Tag: [32]byte(page[footerBound:]),
	}
	if f.ID != h.ID || f.BootEpoch != h.BootEpoch || f.FirstSeq != h.FirstSeq || f.LastSeq-f.FirstSeq+1 != f.Records {
		return f, damaged("footer that fits its header", at+12)
	}
	if f.DataEnd < pageSize || f.DataEnd > at || f.IndexOff != roundUp(f.DataEnd) || f.IndexLen < 0 || f.IndexLen > at-f.IndexOff ||
		f.Records > uint64(f.DataEnd-pageSize)/recordSize {
		return f, damaged("footer in bounds", at+64)
	}
	return f, nil
}

// damaged describes a check that failed at off; the source is filled in by inFile.
func damaged(want string, off int64) error {
	return &block.CorruptError{Offset: off, Want: want, Got: "something else"}
}

// inFile names the file in an error of this package's decoders.
func inFile(id uint32, err error) error {
	if c, ok := err.(*block.CorruptError); ok && c.Source == "" {
		return &block.CorruptError{Source: fileSource(id), Offset: c.Offset, Want: c.Want, Got: c.Got}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", fileSource(id), err)
	}
	return nil
}

// fileSource names a file in errors as it is named on disk.
func fileSource(id uint32) string { return fmt.Sprintf("log file %08x", id) }

// roundUp returns n rounded up to a whole page.
func roundUp(n int64) int64 { return (n + pageSize - 1) &^ (pageSize - 1) }

// zeroPage pads appends.
var zeroPage [pageSize]byte

// allZero reports whether p holds nothing but zeroes.
func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), pageSize)
		if string(p[:n]) != string(zeroPage[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}
