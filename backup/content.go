package backup

import (
	"encoding/binary"
	"fmt"

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

	extentSize = 36
	treeHeader = 8
)

var (
	pageMagic      = [4]byte{'H', 'V', 'B', 'P'}
	directoryMagic = [4]byte{'H', 'V', 'B', 'D'}
)

// extent is a piece of a region: a whole chunk, or zeroes if its id is zero.
type extent struct {
	id     block.Hash
	length uint32
}

// regions is how many regions content of that size has.
func regions(size uint64) uint64 { return (size + RegionSize - 1) / RegionSize }

// regionLength is how many bytes of the content region n has.
func regionLength(size, n uint64) int { return int(min(RegionSize, size-n*RegionSize)) }

func encodePage(extents []extent) []byte {
	b := make([]byte, treeHeader, treeHeader+extentSize*len(extents))
	copy(b, pageMagic[:])
	binary.LittleEndian.PutUint32(b[4:], uint32(len(extents)))
	for i := range extents {
		b = binary.LittleEndian.AppendUint32(b, extents[i].length)
		b = append(b, extents[i].id[:]...)
	}
	return b
}

func treeError(what string, at int, want, got string) error {
	return &block.CorruptError{Source: what + " of a backup", Offset: int64(at), Want: want, Got: got}
}

// decodePage returns the extents of a region of that length, which they cover exactly.
func decodePage(b []byte, length int) ([]extent, error) {
	if len(b) < treeHeader || [4]byte(b[:4]) != pageMagic {
		return nil, treeError("page", 0, "the magic of a page", "other bytes")
	}
	n := binary.LittleEndian.Uint32(b[4:])
	b = b[treeHeader:]
	if uint64(n)*extentSize != uint64(len(b)) {
		return nil, treeError("page", 4, fmt.Sprintf("extents of %d B", len(b)), fmt.Sprint(n))
	}
	extents := make([]extent, n)
	covered := uint64(0)
	for i := range extents {
		e := &extents[i]
		e.length, e.id = binary.LittleEndian.Uint32(b[extentSize*i:]), block.Hash(b[extentSize*i+4:extentSize*i+extentSize])
		if covered += uint64(e.length); e.length == 0 {
			return nil, treeError("page", treeHeader+extentSize*i, "a length", "0")
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
