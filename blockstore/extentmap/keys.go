package extentmap

import (
	"encoding/binary"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// The first byte of a key is its table. These constants are part of the disk format and should not be changed.
const (
	prefixPage = 'P'
	prefixNode = 'N'
	prefixRef  = 'R'
	prefixDead = 'D'
	prefixJob  = 'J'
)

func key(prefix byte, fields ...uint64) []byte {
	k := make([]byte, 1, 1+8*len(fields))
	k[0] = prefix
	for _, f := range fields {
		k = binary.BigEndian.AppendUint64(k, f)
	}
	return k
}

// PageKey is the key of a region page.
func PageKey(id uint64) []byte { return key(prefixPage, id) }

// NodeKey is the key of a radix node.
func NodeKey(id uint64) []byte { return key(prefixNode, id) }

// RefKey is the key of a reference count.
func RefKey(chunk block.ChunkID) []byte { return key(prefixRef, uint64(chunk)) }
