package block

import (
	"encoding/hex"
	"fmt"
)

// VolumeID names a volume inside one store. Ids are dense, start at 1 and are never reused.
type VolumeID uint64

// ChunkID names a chunk inside one store. Ids are dense, start at 1, are assigned when a chunk is first stored and never reused.
type ChunkID uint64

// SegmentID names a segment inside one store. Ids are dense, start at 1 and are never reused.
type SegmentID uint64

// Epoch is a point in the life of the store: the sequence number of a log record. The birth of an extent, page or node is the first
// sequence number of the layer that brought it; a snapshot's epoch is the sequence number of its barrier.
type Epoch uint64

// UUID is a random 16-byte identity (RFC 9562 version 4).
type UUID [16]byte

// String formats the identity in the usual 8-4-4-4-12 form.
func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Hash is the full identity of a chunk: BLAKE3-256 keyed with the domain key.
type Hash [32]byte

// String returns the hash in hexadecimal.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }
