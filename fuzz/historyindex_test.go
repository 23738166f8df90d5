package fuzz

import (
	"encoding/binary"
	"hash/crc32"
	"os"
	"testing"
)

// FuzzHistoryIndex reads a file of history whose index is anything, with checksums that fit: where frames lie, which payload is whose, and what records did are bounded by what the reader checks, and not by luck.
func FuzzHistoryIndex(f *testing.F) {
	const header, footer, entry = 512, 128, 32
	le, table := binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	var whole [][]byte
	for i, name := range []string{"placed", "thinned", "history"} {
		b, err := os.ReadFile("../blockstore/history/testdata/" + name + ".golden")
		if err != nil {
			f.Fatal(err)
		}
		whole = append(whole, b)
		end := len(b) - footer
		f.Add(uint8(i), b[le.Uint64(b[end+40:]):end], b[end+16:end+40], le.Uint64(b[end+76:]))
	}
	f.Fuzz(func(t *testing.T, which uint8, index, fields []byte, tables uint64) {
		b := whole[int(which)%len(whole)]
		end := len(b) - footer
		off := le.Uint64(b[end+40:])
		foot := append([]byte(nil), b[end:]...)
		copy(foot[16:40], fields) // frames, payload, last record
		if le.Uint32(b[8:]) == 3 {
			le.PutUint64(foot[76:], tables)
		}
		b = append(append([]byte(nil), b[:off]...), index...)
		for at := int(off); at+entry <= len(b); at += entry { // payload that is where a frame may be has its sum, however it is compressed
			from := uint64(le.Uint32(b[at:])) + 64 + uint64(le.Uint32(b[at+20:]))
			if to := from + uint64(le.Uint32(b[at+12:])); to <= off {
				le.PutUint32(b[at+24:], crc32.Checksum(b[from:to], table))
			}
		}
		index = b[off:]
		le.PutUint64(foot[48:], uint64(len(index)))
		le.PutUint32(foot[56:], crc32.Checksum(index, table))
		le.PutUint32(foot[124:], crc32.Update(le.Uint32(b[header-4:]), table, foot[:124]))
		readHistory(t, append(b, foot...))
	})
}
