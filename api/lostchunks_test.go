package api

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

func encodeChunks(all ...blockstore.ChunkBytes) (b []byte) {
	for _, c := range all {
		b = binary.LittleEndian.AppendUint64(b, uint64(c.ID))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(c.Raw)))
		b = append(b, c.Raw...)
	}
	return b
}

// A body of chunks is read as it was sent; one that is cut off anywhere else than between two, or promises too much, is refused before it is allocated.
func TestReadChunks(t *testing.T) {
	want := []blockstore.ChunkBytes{{ID: 7, Raw: []byte("seven")}, {ID: 1 << 40, Raw: nil}, {ID: 9, Raw: bytes.Repeat([]byte{9}, 5000)}}
	body := encodeChunks(want...)
	got, err := readChunks(bytes.NewReader(body))
	if err != nil || len(got) != len(want) {
		t.Fatalf("%d chunks are read as %d, %v", len(want), len(got), err)
	}
	for i := range want {
		if got[i].ID != want[i].ID || !bytes.Equal(got[i].Raw, want[i].Raw) {
			t.Errorf("chunk %d is read as %+v", i, got[i])
		}
	}
	between := map[int]bool{0: true, 17: true, 29: true, len(body): true}
	for n := range len(body) + 1 {
		if _, err := readChunks(bytes.NewReader(body[:n])); between[n] != (err == nil) || err != nil && !errors.Is(err, block.ErrInvalid) {
			t.Fatalf("cut off at %d: %v", n, err)
		}
	}
	long := binary.LittleEndian.AppendUint32(make([]byte, 8), maxChunkRaw+1)
	if _, err := readChunks(bytes.NewReader(long)); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a chunk that is too long: %v", err)
	}
	if _, err := readChunks(bytes.NewReader(make([]byte, chunkHead*(maxHealed+1)))); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("too many chunks: %v", err)
	}
}

func FuzzReadChunks(f *testing.F) {
	f.Add(encodeChunks(blockstore.ChunkBytes{ID: 3, Raw: []byte("abc")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		all, err := readChunks(bytes.NewReader(b))
		if err == nil && !bytes.Equal(encodeChunks(all...), b) {
			t.Errorf("%x is read as %+v", b, all)
		}
	})
}
