package segment

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
)

// purposeFrames is part of the disk format.
const purposeFrames = "hyper-nixos 2026 at rest: frames"

const (
	nonceSize = 12
	tagSize   = 16
)

// Key seals and opens the frames of one segment. It is derived from a master key and the identity of the segment: store, id and generation. Each frame has a random nonce, as an id may be given again after a crash.
// A Key may be used by several goroutines at once.
type Key struct {
	id   uint32
	aead cipher.AEAD
}

// NewKey returns the key of a segment under the master key id, as its header or a frame names it; the ring's error if it has no such key.
func NewKey(ring *keyring.Ring, id uint32, segment block.SegmentID, generation uint32) (*Key, error) {
	master, err := ring.Segment(id)
	if err != nil {
		return nil, err
	}
	salt := binary.LittleEndian.AppendUint64(append([]byte(nil), ring.Store[:]...), uint64(segment))
	salt = binary.LittleEndian.AppendUint32(salt, generation)
	return &Key{id: id, aead: master.Derive(salt, purposeFrames).AEAD()}, nil
}

// bind gathers what the tag of a frame at off covers beside its payload: the place, header and chunk table, without tag and checksums of what is sealed.
func bind(dst, head []byte, off uint32) []byte {
	dst = binary.LittleEndian.AppendUint32(dst[:0], off)
	at := len(dst)
	dst = append(dst, head...)
	h := dst[at:]
	clear(h[fhPayloadCRC : fhPayloadCRC+4])
	clear(h[fhTag : fhTag+tagSize])
	clear(h[fhCRC : fhCRC+4])
	return dst
}

// seal seals an encoded frame in place, for its offset in the segment. b holds the frame alone. scratch is reused.
func (k *Key) seal(b []byte, off uint32, scratch []byte) []byte {
	le := binary.LittleEndian
	table := frameHeaderSize + int(le.Uint32(b[fhChunks:]))*chunkEntrySize
	h, payload := b[:frameHeaderSize], b[table:]
	le.PutUint32(h[fhKeyID:], k.id)
	rand.Read(h[fhNonce : fhNonce+nonceSize])
	bound := bind(scratch, b[:table], off)
	at := len(bound)
	bound = k.aead.Seal(bound, h[fhNonce:fhNonce+nonceSize], payload, bound[:at:at])
	sealed := bound[at:]
	copy(h[fhTag:], sealed[copy(payload, sealed):])
	le.PutUint32(h[fhPayloadCRC:], crc32.Checksum(payload, castagnoli))
	le.PutUint32(h[fhCRC:], crc32.Checksum(h[:fhCRC], castagnoli))
	return bound
}

// Open opens a frame that lies at off in the segment of the key. Its payload is in the decoder's memory then, and is valid until the next Open. A tag that does not fit is block.ErrCorrupt: the frame
// was changed or moved, or is another key's.
func (f *Frame) Open(key *Key, off uint32, dec *Decoder) error {
	if f.KeyID != key.id {
		return corruptFrame(fhKeyID, fmt.Sprintf("key %d", key.id), fmt.Sprint(f.KeyID))
	}
	h := f.head
	dec.bound = bind(dec.bound, h, off)
	dec.sealed = append(append(dec.sealed[:0], f.payload...), h[fhTag:fhTag+tagSize]...)
	plain, err := key.aead.Open(dec.sealed[:0], h[fhNonce:fhNonce+nonceSize], dec.sealed, dec.bound)
	if err != nil {
		return corruptFrame(fhTag, "its authentication tag", "another: the frame was changed or moved, or is another key's")
	}
	f.payload, f.KeyID = plain, 0
	return nil
}
