package dedup

import (
	"bytes"
	"encoding/binary"
)

// IsZero reports whether p holds nothing but zeroes. An empty slice does.
//
// Comparing p with itself shifted by eight bytes lets the runtime's vector comparison do the work and needs no page of zeroes in the cache:
// all bytes equal the ones eight before them, and the first eight are zero.
func IsZero(p []byte) bool {
	if len(p) < 8 {
		for _, b := range p {
			if b != 0 {
				return false
			}
		}
		return true
	}
	return binary.LittleEndian.Uint64(p) == 0 && bytes.Equal(p[:len(p)-8], p[8:])
}
