package backup

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// These constants are part of the repository format and should not be changed.
const (
	// RegionSize is how many bytes of content a page describes.
	RegionSize = 16 << 20
	// pagesPerDirectory is how many pages a directory lists.
	pagesPerDirectory = 1024
	// MaxContent bounds content, bytes: 4,096 directories fit into a manifest.
	MaxContent = 4096 * pagesPerDirectory * RegionSize

	extentSize = 36 // of a chunk
	sliceSize  = 44
	treeHeader = 8
	// maxSliced bounds the chunk that a slice is of: no pack has a longer one.
	maxSliced = 4 << 20
)

var (
	pageMagic      = [4]byte{'H', 'V', 'B', 'P'} // of whole chunks
	slicedMagic    = [4]byte{'H', 'V', 'B', 'S'} // of slices of chunks
	directoryMagic = [4]byte{'H', 'V', 'B', 'D'}
)

// extent is a piece of a region: a chunk, or a slice of one, or zeroes if its id is zero.
type extent struct {
	id     block.Hash
	length uint32 // of the piece, bytes
	at     uint32 // where it begins in the chunk
	of     uint32 // length of the chunk
}

func zeroes(length uint32) extent { return extent{length: length} }

// wholeChunk is an extent that is a chunk.
func wholeChunk(id block.Hash, length uint32) extent {
	return extent{id: id, length: length, of: length}
}

func (e *extent) isZero() bool { return e.id == (block.Hash{}) }

// sliced reports whether the extent is a part of its chunk.
func (e *extent) sliced() bool { return e.length != e.of && !e.isZero() }

// slice returns what is from in on, and length bytes long, of an extent.
func (e *extent) slice(in, length int) extent {
	out := *e
	if out.length = uint32(length); !e.isZero() {
		out.at += uint32(in)
	}
	return out
}

// bytes returns what the extent has of its chunk.
func (e *extent) bytes(chunk []byte) ([]byte, error) {
	if len(chunk) != int(e.of) {
		return nil, treeError("page", 0, fmt.Sprintf("a chunk of %d B", e.of), fmt.Sprint(len(chunk)))
	}
	return chunk[e.at : e.at+e.length], nil
}

// regions is how many regions content of that size has.
func regions(size uint64) uint64 { return (size + RegionSize - 1) / RegionSize }

// regionLength is how many bytes of the content region n has.
func regionLength(size, n uint64) int { return int(min(RegionSize, size-n*RegionSize)) }

// encodePage returns a page. One without slices looks as if there were none.
func encodePage(extents []extent) []byte {
	magic, size := pageMagic, extentSize
	if slices.ContainsFunc(extents, func(e extent) bool { return e.sliced() }) {
		magic, size = slicedMagic, sliceSize
	}
	b := make([]byte, treeHeader, treeHeader+size*len(extents))
	copy(b, magic[:])
	binary.LittleEndian.PutUint32(b[4:], uint32(len(extents)))
	for i := range extents {
		e := &extents[i]
		b = binary.LittleEndian.AppendUint32(b, e.length)
		if size == sliceSize {
			b = binary.LittleEndian.AppendUint32(b, e.at)
			b = binary.LittleEndian.AppendUint32(b, e.of)
		}
		b = append(b, e.id[:]...)
	}
	return b
}

func treeError(what string, at int, want, got string) error {
	return &block.CorruptError{Source: what + " of a backup", Offset: int64(at), Want: want, Got: got}
}

// decodePage returns the extents of a region of that length, which they cover exactly.
func decodePage(b []byte, length int) ([]extent, error) {
	size := extentSize
	switch {
	case len(b) >= treeHeader && [4]byte(b[:4]) == slicedMagic:
		size = sliceSize
	case len(b) < treeHeader || [4]byte(b[:4]) != pageMagic:
		return nil, treeError("page", 0, "the magic of a page", "other bytes")
	}
	n := binary.LittleEndian.Uint32(b[4:])
	b = b[treeHeader:]
	if uint64(n)*uint64(size) != uint64(len(b)) {
		return nil, treeError("page", 4, fmt.Sprintf("extents of %d B", len(b)), fmt.Sprint(n))
	}
	extents := make([]extent, n)
	covered := uint64(0)
	for i := range extents {
		e, x := &extents[i], b[size*i:size*i+size]
		e.length, e.id = binary.LittleEndian.Uint32(x), block.Hash(x[size-32:])
		if covered += uint64(e.length); e.length == 0 {
			return nil, treeError("page", treeHeader+size*i, "a length", "0")
		}
		if size == sliceSize {
			e.at, e.of = binary.LittleEndian.Uint32(x[4:]), binary.LittleEndian.Uint32(x[8:])
			if end := uint64(e.at) + uint64(e.length); e.isZero() && (e.at != 0 || e.of != 0) || !e.isZero() && (end > uint64(e.of) || e.of > maxSliced) {
				return nil, treeError("page", treeHeader+size*i+4, fmt.Sprintf("a slice of a chunk of at most %d B, or zeroes", maxSliced), fmt.Sprintf("%d B at %d of %d", e.length, e.at, e.of))
			}
		} else if !e.isZero() {
			e.of = e.length
		}
	}
	if covered != uint64(length) {
		return nil, treeError("page", 0, fmt.Sprintf("extents over %d B", length), fmt.Sprint(covered))
	}
	return extents, nil
}

func encodeDirectory(pages []block.Hash) []byte {
	b := make([]byte, treeHeader, treeHeader+32*len(pages))
	copy(b, directoryMagic[:])
	binary.LittleEndian.PutUint32(b[4:], uint32(len(pages)))
	for i := range pages {
		b = append(b, pages[i][:]...)
	}
	return b
}

// decodeDirectory returns the pages of a directory, which has n.
func decodeDirectory(b []byte, n int) ([]block.Hash, error) {
	if len(b) < treeHeader || [4]byte(b[:4]) != directoryMagic {
		return nil, treeError("directory", 0, "the magic of a directory", "other bytes")
	}
	if got := binary.LittleEndian.Uint32(b[4:]); int(got) != n || len(b) != treeHeader+32*n {
		return nil, treeError("directory", 4, fmt.Sprintf("%d pages", n), fmt.Sprintf("%d in %d B", got, len(b)))
	}
	pages := make([]block.Hash, n)
	for i := range pages {
		pages[i] = block.Hash(b[treeHeader+32*i : treeHeader+32*i+32])
	}
	return pages, nil
}
