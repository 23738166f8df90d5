package segment_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
)

var update = flag.Bool("update", false, "write the golden files that do not exist yet")

// goldenChunks are the same for ever.
func goldenChunks() []segment.Chunk {
	return []segment.Chunk{
		{ID: 1, Hash: block.Hash(bytes.Repeat([]byte{0x11}, 32)), Raw: bytes.Repeat([]byte("all work and no play "), 40)},
		{ID: 0xfedcba9876543210, Hash: block.Hash(bytes.Repeat([]byte{0x22, 0x33}, 16)), Raw: bytes.Repeat([]byte{7}, 500)},
	}
}

// goldenMeta is the segment in testdata/segment.
var goldenMeta = segment.Meta{StoreID: block.UUID{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, ID: 0x0102030405060708, Generation: 0x0a0b0c0d,
	Class: segment.Cold, DomainID: [16]byte{0xd0, 0xd1, 0xd2, 0xd3}}

func golden(t *testing.T, name string, made func() []byte) []byte {
	t.Helper()
	path := filepath.Join("testdata", name)
	b, err := os.ReadFile(path)
	if os.IsNotExist(err) && *update {
		b = made()
		err = os.WriteFile(path, b, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Golden files stay readable for ever. Compressed bytes may be made differently by a newer compressor, so only raw frames are also written alike.
func TestGoldenFrames(t *testing.T) {
	for _, codec := range []segment.Codec{segment.None, segment.S2, segment.Zstd} {
		made := func() []byte { return encode(t, codec, goldenChunks()...) }
		b := golden(t, "frame."+codec.String(), made)
		f, err := segment.ParseFrame(b)
		if err != nil || f.Codec != codec || int(f.Size) != len(b) {
			t.Fatalf("%v: %+v, %v", codec, f, err)
		}
		checkFrame(t, b, goldenChunks())
		if codec == segment.None && !bytes.Equal(b, made()) {
			t.Errorf("%v is written differently now", codec)
		}
	}
}

func TestGoldenSegment(t *testing.T) {
	made := func() []byte {
		f := &memFile{}
		w, err := segment.NewWriter(f, goldenMeta)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range goldenChunks() {
			if _, err := w.Append(encode(t, segment.None, c)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := w.Seal(0x1122334455667788); err != nil {
			t.Fatal(err)
		}
		return f.b
	}
	b := golden(t, "segment", made)
	f := &memFile{b: b}
	footer, err := segment.Check(f, f.size())
	if err != nil {
		t.Fatal(err)
	}
	if footer.ID != goldenMeta.ID || footer.SealEpoch != 0x1122334455667788 || footer.Frames != 2 || footer.Class != segment.Cold {
		t.Errorf("%+v", footer)
	}
	if m, err := segment.ReadHeader(f, f.size()); err != nil || m != goldenMeta {
		t.Errorf("%+v, %v", m, err)
	}
	if !bytes.Equal(b, made()) {
		t.Error("segments are written differently now")
	}
}
