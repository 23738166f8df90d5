package journal

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"sync"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// A log that is encrypted has a vault for each file. Its keys are derived from the whole header, random salt included, so those of two lives of a file differ, and a file under another name or in another place
// of the log opens with none. The nonce is the offset in the file. So no offset may take two different contents: after a write that failed the file takes no more (contents.spent), and recovery
// never appends to a file.
//
// Checksums, chain and the sums of sectors are those of the sealed bytes: everything but reading what a record holds works as without encryption, and needs no key.

// Sizes and purposes of the format. They must not be changed.
const (
	tagSize       = secret.Overhead
	boundSize     = 128 // bytes of the header page that keys are derived from
	sealedSector  = sectorSize + tagSize
	purposeFile   = "hyper-nixos 2026 at rest: log file"
	purposeFooter = "hyper-nixos 2026 at rest: log footer"

	nonceSector = 0 // first byte of a nonce; the last eight are the offset in the file
	nonceRecord = 1
)

// errForged says that checksums hold and a tag does not: nobody who had the key wrote that. Unlike a bad checksum it is not how a log ends.
var errForged = errors.New("the authentication tag does not fit: the bytes were changed or moved, or are those of another key")

// vault seals and opens what is in one file. Its methods may be called at once, but for sealing.
type vault struct {
	aead cipher.AEAD
	foot secret.Secret
	// tags holds, for each page of the file, the tag of the sector that begins in it: sectors are a page long and do not overlap, so there is one at most. An entry is written before anybody learns of
	// the position of its sector. It takes 1/256 of the file.
	tags [][tagSize]byte
}

// openVault returns the vault of the file whose header page begins with page; nil for a file that is not encrypted.
func openVault(keys *keyring.Ring, h *FileHeader, page []byte) (*vault, error) {
	switch {
	case h.KeyID == 0 && keys == nil:
		return nil, nil
	case h.KeyID == 0:
		return nil, damaged("a file that is encrypted, as the store is", 36)
	case keys == nil:
		return nil, keyring.ErrNoKey
	}
	key, err := keys.Log(h.KeyID)
	if err != nil {
		return nil, err
	}
	return &vault{
		aead: key.Derive(page[:boundSize], purposeFile).AEAD(), foot: key.Derive(page[:boundSize], purposeFooter),
		tags: make([][tagSize]byte, h.Capacity/pageSize),
	}, nil
}

// scratch is what sealing and opening take: nonce, a sector and its tag, and what is bound to a tag.
type scratch struct {
	nonce  [12]byte
	sector [sealedSector]byte
	bound  []byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func (s *scratch) at(kind byte, off int64) []byte {
	s.nonce[0] = kind
	le.PutUint64(s.nonce[4:], uint64(off))
	return s.nonce[:]
}

// tag is the place of the tag of the sector at off.
func (v *vault) tag(off int64) *[tagSize]byte { return &v.tags[off/pageSize] }

// sealSectors seals the payload pieces of a write, whose first sector will lie at off, into dst, and notes the tags.
func (v *vault) sealSectors(dst []byte, pieces [][]byte, off int64) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	fill := dst
	for _, p := range pieces {
		fill = fill[copy(fill, p):]
	}
	for ; len(dst) > 0; dst, off = dst[sectorSize:], off+sectorSize {
		out := v.aead.Seal(s.sector[:0], s.at(nonceSector, off), dst[:sectorSize], nil)
		copy(dst, out[:sectorSize])
		*v.tag(off) = [tagSize]byte(out[sectorSize:])
	}
}

// open turns sectors that lie at off into what they hold, in place.
func (v *vault) open(p []byte, file uint32, off int64) error {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	for ; len(p) > 0; p, off = p[sectorSize:], off+sectorSize {
		copy(s.sector[:], p[:sectorSize])
		copy(s.sector[sectorSize:], v.tag(off)[:])
		if _, err := v.aead.Open(p[:0], s.at(nonceSector, off), s.sector[:], nil); err != nil {
			return forged(file, off)
		}
	}
	return nil
}

// bind gathers what the tag of a record covers beside a payload: its header but for checksums, tag and what was durable, which no index has, and the descriptors.
func (s *scratch) bind(head, descs []byte) []byte {
	s.bound = append(append(append(s.bound[:0], head[:48]...), head[56:68]...), descs...)
	return s.bound
}

// sealRecord returns the tag of a record whose header will lie at off, and seals the payload of a control record in place.
func (v *vault) sealRecord(head, descs, payload []byte, off int64) (tag [tagSize]byte) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	out := v.aead.Seal(nil, s.at(nonceRecord, off), payload, s.bind(head, descs))
	copy(payload, out)
	return [tagSize]byte(out[len(payload):])
}

// openRecord checks the tag of a record whose header lies at off, and returns the payload of a control record.
func (v *vault) openRecord(head, descs, payload []byte, file uint32, off int64) ([]byte, error) {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	sealed := append(append(make([]byte, 0, len(payload)+tagSize), payload...), head[72:88]...)
	plain, err := v.aead.Open(sealed[:0], s.at(nonceRecord, off), sealed, s.bind(head, descs))
	if err != nil {
		return nil, forged(file, off)
	}
	return plain, nil
}

// takeTags notes the tags of sectors at off that were read: one every stride bytes of b.
func (v *vault) takeTags(b []byte, stride int, sectors uint32, off int64) {
	for i := range int(sectors) {
		*v.tag(off + int64(i)*sectorSize) = [tagSize]byte(b[i*stride:])
	}
}

// appendTags appends what the index has of a record beside its entry: the tags of its sectors, which lie at off, or that of a control record.
func (v *vault) appendTags(dst []byte, h *RecordHeader, off int64) []byte {
	if h.Kind >= FirstControl {
		return append(dst, h.Tag[:]...)
	}
	sectors := h.Sectors
	for i := range int64(sectors) {
		dst = append(dst, v.tag(off + i*sectorSize)[:]...)
	}
	return dst
}

// forged is the error of a tag that does not fit.
func forged(file uint32, off int64) error {
	return fmt.Errorf("%w: %w", errForged, &block.CorruptError{Source: fileSource(file), Offset: off, Want: "its authentication tag", Got: "another"})
}

// tagLen is how many bytes an index has for each sector beside its sum.
func (f *logFile) tagLen() int64 {
	if f.vault == nil {
		return 0
	}
	return tagSize
}

// tagLen is the same of the files that the log begins.
func (o *Options) tagLen() int64 {
	if o.Keys == nil {
		return 0
	}
	return tagSize
}
