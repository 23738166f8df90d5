package extentmap

import (
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says what an extent's bytes are. A hole is the absence of an extent. These constants are part of the disk format and should not be changed.
type Kind uint8

const (
	// KindZero reads as zeros, but is allocated.
	KindZero Kind = 1
	// KindChunk is a run of bytes of a chunk, and the only kind that holds a reference.
	KindChunk Kind = 2
	// KindExternal is a run of bytes of a source outside the store (an import that is still going on).
	KindExternal Kind = 3
	// KindDamaged is known to be lost; reading it is an error.
	KindDamaged Kind = 4
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case KindZero:
		return "zero"
	case KindChunk:
		return "chunk"
	case KindExternal:
		return "external"
	case KindDamaged:
		return "damaged"
	}
	return fmt.Sprintf("kind(%d)", uint8(k))
}

// Extent is a run of bytes of a volume. An extent never crosses a region border. Offsets and lengths may have any alignment.
type Extent struct {
	Off      uint64        // byte offset in the volume
	Len      uint32        // bytes, at least 1
	Kind     Kind          //
	Chunk    block.ChunkID // of KindChunk; the source's id of KindExternal; else 0
	ChunkOff uint32        // byte offset in the raw chunk, of KindChunk; else 0
	Birth    block.Epoch   // epoch of the layer that inserted it
	Hash8    [8]byte       // first 8 bytes of the chunk's hash, of KindChunk; offset in the source (little-endian), of KindExternal; else 0
}

// End returns the first byte after the extent.
func (e Extent) End() uint64 { return e.Off + uint64(e.Len) }

// External makes an extent that reads source from byte offset from.
func External(off uint64, length uint32, source, from uint64) Extent {
	e := Extent{Off: off, Len: length, Kind: KindExternal, Chunk: block.ChunkID(source)}
	binary.LittleEndian.PutUint64(e.Hash8[:], from)
	return e
}

// Source returns the source and the byte offset in it, of an extent of KindExternal.
func (e Extent) Source() (source, from uint64) {
	return uint64(e.Chunk), binary.LittleEndian.Uint64(e.Hash8[:])
}

// Slice returns the part of the extent in [lo, hi). The range must overlap the extent; birth and hash stay as they are.
func (e Extent) Slice(lo, hi uint64) Extent {
	if lo > e.Off {
		e.advance(uint32(lo - e.Off))
	}
	if hi < e.End() {
		e.Len = uint32(hi - e.Off)
	}
	return e
}

// advance drops the first n bytes.
func (e *Extent) advance(n uint32) {
	e.Off += uint64(n)
	e.Len -= n
	switch e.Kind {
	case KindChunk:
		e.ChunkOff += n
	case KindExternal:
		binary.LittleEndian.PutUint64(e.Hash8[:], binary.LittleEndian.Uint64(e.Hash8[:])+uint64(n))
	}
}

// problem names the first rule that an extent breaks by itself, whatever page it is in; "" if none.
func (e Extent) problem() string {
	bare := e.ChunkOff == 0 && e.Chunk == 0 && e.Hash8 == [8]byte{}
	switch {
	case e.Len == 0:
		return "an empty extent"
	case e.Kind == KindChunk && e.Chunk == 0:
		return "a chunk extent without a chunk"
	case e.Kind == KindChunk && e.ChunkOff+e.Len < e.ChunkOff:
		return "a chunk offset out of bounds"
	case e.Kind == KindExternal && (e.Chunk == 0 || e.ChunkOff != 0):
		return "an external extent without a source or with a chunk offset"
	case e.Kind == KindExternal && binary.LittleEndian.Uint64(e.Hash8[:]) > 1<<63-uint64(e.Len):
		return "a source offset out of bounds"
	case (e.Kind == KindZero || e.Kind == KindDamaged) && !bare:
		return "a zero or damaged extent with a chunk"
	case e.Kind < KindZero || e.Kind > KindDamaged:
		return e.Kind.String()
	}
	return ""
}
