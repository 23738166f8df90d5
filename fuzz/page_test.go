package fuzz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
)

// FuzzRegionPage decodes any bytes as a region page, or, by their magic, as the directory or a part of one. What is accepted obeys the format's rules and encodes to the same bytes; what is not is a named error.
// The checksum is set right first, or no input would get past it.
func FuzzRegionPage(f *testing.F) {
	external := extentmap.External(3<<24+8192, 512, 2, 65536)
	external.Birth = 40
	f.Add(extentmap.EncodePage(7, 3, 40, []extentmap.Extent{
		{Off: 3 << 24, Len: 4096, Kind: extentmap.KindZero, Birth: 40},
		{Off: 3<<24 + 4096, Len: 3, Kind: extentmap.KindChunk, Chunk: 513, ChunkOff: 5, Birth: 9, Hash8: [8]byte{1, 2, 3}},
		external,
		{Off: 4<<24 - 1, Len: 1, Kind: extentmap.KindDamaged, Birth: 1},
	}))
	f.Add(extentmap.EncodePage(7, 3, 1, nil))
	f.Add([]byte("HvPg"))
	f.Add(extentmap.EncodePart(7, 3, 40, []extentmap.Extent{{Off: 3 << 24, Len: 4096, Kind: extentmap.KindZero, Birth: 40}}))
	f.Add(extentmap.EncodeDirectory(7, 3, 40, []extentmap.Part{{ID: 5, Birth: 9, Count: 40}, {ID: 6, Birth: 40, Start: 4096, Count: 1}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = checksummed(data, 44)
		decode, encode := extentmap.DecodePage, extentmap.EncodePage
		switch {
		case extentmap.IsDirectory(data):
			directory(t, data)
			return
		case extentmap.IsPart(data):
			decode, encode = extentmap.DecodePart, extentmap.EncodePart
		}
		page, err := decode(7, 3, data)
		if err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		extents := make([]extentmap.Extent, page.Len())
		next := page.Region() << 24
		for i := range extents {
			e := page.Extent(i)
			if e.Off < next || e.End() <= e.Off || e.End() > 4<<24 || e.Birth == 0 || e.Birth > page.Birth() {
				t.Fatalf("extent %d is %+v after %d", i, e, next)
			}
			extents[i], next = e, e.End()
		}
		if again := encode(page.ID(), page.Region(), page.Birth(), extents); !bytes.Equal(again, data) {
			t.Fatalf("encodes as\n%x, was\n%x", again, data)
		}
	})
}

func directory(t *testing.T, data []byte) {
	d, err := extentmap.DecodeDirectory(7, 3, data)
	if err != nil {
		if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
			t.Fatalf("unnamed error: %v", err)
		}
		return
	}
	var parts []extentmap.Part
	for i := range d.Len() {
		parts = append(parts, d.Part(i))
		if i > 0 && parts[i].Start <= parts[i-1].Start {
			t.Fatalf("part %d is %+v after %+v", i, parts[i], parts[i-1])
		}
	}
	birth := block.Epoch(binary.LittleEndian.Uint64(data[16:]))
	if again := extentmap.EncodeDirectory(7, 3, birth, parts); !bytes.Equal(again, data) {
		t.Fatalf("encodes as\n%x, was\n%x", again, data)
	}
}

// FuzzRadixNode decodes any bytes as a radix node.
func FuzzRadixNode(f *testing.F) {
	s := extentmap.Subtree{ID: 8, Level: 2, Region: 65536, Birth: 41}
	f.Add(extentmap.EncodeNode(s, func(i int) (uint64, block.Epoch) { return uint64(i % 3), 7 }))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = checksummed(data, 44)
		node, err := extentmap.DecodeNode(s, data)
		if err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		again := extentmap.EncodeNode(s, func(i int) (uint64, block.Epoch) {
			c := node.Child(i)
			if c.ID != 0 && (c.Birth == 0 || c.Birth > s.Birth || c.Level != 1 || c.Region != s.Region+uint64(i)*256) {
				t.Fatalf("child %d is %+v", i, c)
			}
			return c.ID, c.Birth
		})
		if !bytes.Equal(again, data) {
			t.Fatalf("encodes as\n%x, was\n%x", again, data)
		}
	})
}

// FuzzDeadlistRow decodes any bytes as a deadlist row.
func FuzzDeadlistRow(f *testing.F) {
	f.Add(extentmap.EncodeDead([]extentmap.Dead{{Kind: extentmap.DeadPage, ID: 5}, {Kind: extentmap.DeadSubtree, Level: 2, Region: 65536, ID: 9}, {Kind: extentmap.DeadChunk, ID: 513}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = checksummed(data, 12)
		dead, err := extentmap.DecodeDead(extentmap.DeadKey{}, data)
		if err != nil {
			if !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, block.ErrVersion) {
				t.Fatalf("unnamed error: %v", err)
			}
			return
		}
		if again := extentmap.EncodeDead(dead); !bytes.Equal(again, data) {
			t.Fatalf("encodes as\n%x, was\n%x", again, data)
		}
	})
}

// checksummed returns data with a right crc32c in the four bytes at, over all the others.
func checksummed(data []byte, at int) []byte {
	if len(data) < at+4 {
		return data
	}
	data = bytes.Clone(data)
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(crc32.Checksum(data[:at], table), table, data[at+4:])
	binary.LittleEndian.PutUint32(data[at:], sum)
	return data
}
