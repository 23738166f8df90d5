package extentmap

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

var update = flag.Bool("update", false, "write golden files that are missing")

// goldenExtents are those of docs/format/page.md.
func goldenExtents() []Extent {
	base := uint64(3) << regionBits
	x := External(base+8192, 512, 2, 65536)
	x.Birth = 40
	return []Extent{
		{Off: base, Len: 4096, Kind: KindZero, Birth: 40},
		{Off: base + 4096, Len: 3, Kind: KindChunk, Chunk: 513, ChunkOff: 5, Birth: 9, Hash8: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}},
		x,
		{Off: base + block.RegionSize - 1, Len: 1, Kind: KindDamaged, Birth: 1},
	}
}

var goldenParts = []Part{{ID: 5, Birth: 9, Start: 0, Count: 40}, {ID: 6, Birth: 40, Start: 4096, Count: 1}, {ID: 3, Birth: 1, Start: 16777215, Count: 64}}

var goldenNode = Subtree{ID: 8, Level: 2, Region: 65536, Birth: 41}

func goldenChild(i int) (uint64, block.Epoch) {
	switch i {
	case 0:
		return 7, 40
	case 64:
		return 5, 2
	case 255:
		return 6, 41
	}
	return 0, 0
}

var (
	goldenDead = []Dead{{Kind: DeadPage, ID: 5}, {Kind: DeadSubtree, Level: 2, Region: 65536, ID: 9}, {Kind: DeadChunk, ID: 513}}
	goldenJob  = Job{Kind: JobSubtree, Subtree: Subtree{ID: 9, Level: 2, Region: 65536, Birth: 40}, Snapshot: 30, Previous: 20, Cursor: 526337}
)

// formats are the kinds of values: how golden bytes are made, and how they are read.
func formats() map[string]struct {
	encoded []byte
	decode  func([]byte) (any, error)
	want    any
	crc     int
} {
	type format = struct {
		encoded []byte
		decode  func([]byte) (any, error)
		want    any
		crc     int
	}
	return map[string]format{
		"page": {EncodePage(7, 3, 40, goldenExtents()), func(b []byte) (any, error) {
			p, err := DecodePage(7, 3, b)
			return extentsOf(p), err
		}, goldenExtents(), crcOffset},
		"directory": {EncodeDirectory(7, 3, 40, goldenParts), func(b []byte) (any, error) {
			d, err := DecodeDirectory(7, 3, b)
			return partsOf(d), err
		}, goldenParts, crcOffset},
		"part": {EncodePart(7, 3, 40, goldenExtents()), func(b []byte) (any, error) {
			p, err := DecodePart(7, 3, b)
			return extentsOf(p), err
		}, goldenExtents(), crcOffset},
		"node": {EncodeNode(goldenNode, goldenChild), func(b []byte) (any, error) {
			n, err := DecodeNode(goldenNode, b)
			if err != nil {
				return nil, err
			}
			return childrenOf(n), nil
		}, map[int]ref{0: {7, 40}, 64: {5, 2}, 255: {6, 41}}, crcOffset},
		"deadlist": {EncodeDead(goldenDead), func(b []byte) (any, error) { return decodedDead(b) }, goldenDead, rowCRC},
		"job":      {EncodeJob(goldenJob), func(b []byte) (any, error) { return DecodeJob(1, 1, b) }, goldenJob, rowCRC},
	}
}

func decodedDead(b []byte) ([]Dead, error) { return DecodeDead(DeadKey{}, b) }

func extentsOf(p Page) []Extent {
	var all []Extent
	for i := range p.Len() {
		all = append(all, p.Extent(i))
	}
	return all
}

func partsOf(d Directory) []Part {
	var all []Part
	for i := range d.Len() {
		all = append(all, d.Part(i))
	}
	return all
}

func childrenOf(n Node) map[int]ref {
	all := make(map[int]ref)
	for i := n.next(0); i < Fanout; i = n.next(i + 1) {
		all[i] = n.child(i)
	}
	return all
}

func TestGoldenBytes(t *testing.T) {
	for name, f := range formats() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", name+".golden")
			if _, err := os.Stat(path); *update && errors.Is(err, os.ErrNotExist) {
				if err := os.WriteFile(path, []byte(hexLines(f.encoded)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			golden, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(golden, f.encoded) {
				t.Errorf("encoder writes\n%swant\n%s", hexLines(f.encoded), hexLines(golden))
			}
			if got, err := f.decode(golden); err != nil || !reflect.DeepEqual(got, f.want) {
				t.Errorf("golden bytes read as %+v, %v; want %+v", got, err, f.want)
			}
		})
	}
}

func hexLines(b []byte) string {
	var s strings.Builder
	for ; len(b) > 16; b = b[16:] {
		fmt.Fprintf(&s, "%x\n", b[:16])
	}
	fmt.Fprintf(&s, "%x\n", b)
	return s.String()
}

// A flipped bit anywhere is caught by the checksum, and a cut or a longer value too.
func TestDamageIsFound(t *testing.T) {
	for name, f := range formats() {
		for bit := range len(f.encoded) * 8 {
			bad := bytes.Clone(f.encoded)
			bad[bit/8] ^= 1 << (bit % 8)
			if _, err := f.decode(bad); !errors.Is(err, block.ErrCorrupt) {
				t.Fatalf("%s with bit %d flipped: %v", name, bit, err)
			}
		}
		for n := range len(f.encoded) {
			if _, err := f.decode(f.encoded[:n]); !errors.Is(err, block.ErrCorrupt) {
				t.Fatalf("%s cut at %d: %v", name, n, err)
			}
		}
		if _, err := f.decode(append(bytes.Clone(f.encoded), 0)); !errors.Is(err, block.ErrCorrupt) {
			t.Fatalf("%s with one byte more: %v", name, err)
		}
	}
}

// Fields that break a rule are found though the checksum is right, as a bug of a writer would leave them.
func TestEachFieldIsChecked(t *testing.T) {
	le := binary.LittleEndian
	u64 := func(at int, v uint64) func([]byte) { return func(b []byte) { le.PutUint64(b[at:], v) } }
	u32 := func(at int, v uint32) func([]byte) { return func(b []byte) { le.PutUint32(b[at:], v) } }
	u8 := func(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
	entry := func(i, at int) int { return headerSize + i*entrySize + at }
	ofPart := func(i, at int) int { return headerSize + i*partSize + at }
	child := func(i int) int { return childrenAt + i*childSize }
	for _, tc := range []struct {
		format, field string
		change        func([]byte)
	}{
		{"page", "magic", u8(0, 'X')},
		{"page", "flags", u8(6, 1)},
		{"page", "id", u64(8, 8)},
		{"page", "birth zero", u64(16, 0)},
		{"page", "birth below an extent's", u64(16, 39)},
		{"page", "region", u64(24, 4)},
		{"page", "count less", u32(32, 3)},
		{"page", "count more", u32(32, 5)},
		{"page", "count huge", u32(32, 1<<31)},
		{"page", "reserved", u8(36, 1)},
		{"page", "reserved end", u8(43, 1)},
		{"page", "offset out of order", u32(entry(1, 0), 4095)},
		{"page", "offset beyond the region", u32(entry(3, 0), block.RegionSize)},
		{"page", "offset near 2^32", u32(entry(3, 0), 1<<32-1)},
		{"page", "length zero", u32(entry(0, 4), 0)},
		{"page", "length over the next", u32(entry(0, 4), 4097)},
		{"page", "length beyond the region", u32(entry(3, 4), 2)},
		{"page", "kind zero", u8(entry(0, 8), 0)},
		{"page", "kind unknown", u8(entry(0, 8), 5)},
		{"page", "extent flags", u8(entry(0, 9), 1)},
		{"page", "extent reserved", u8(entry(0, 10), 1)},
		{"page", "extent reserved end", u8(entry(0, 11), 1)},
		{"page", "chunk offset of a zero", u32(entry(0, 12), 1)},
		{"page", "chunk offset out of bounds", u32(entry(1, 12), 1<<32-2)},
		{"page", "chunk offset of an external", u32(entry(2, 12), 1)},
		{"page", "chunk zero", u64(entry(1, 16), 0)},
		{"page", "source zero", u64(entry(2, 16), 0)},
		{"page", "chunk of a damaged", u64(entry(3, 16), 1)},
		{"page", "extent birth zero", u64(entry(1, 24), 0)},
		{"page", "extent birth above the page's", u64(entry(1, 24), 41)},
		{"page", "hash of a zero", u64(entry(0, 32), 1)},
		{"page", "source offset out of bounds", u64(entry(2, 32), 1<<63-511)},
		{"directory", "magic", u8(0, 'X')},
		{"directory", "id", u64(8, 8)},
		{"directory", "birth below a part's", u64(16, 39)},
		{"directory", "region", u64(24, 4)},
		{"directory", "count", u32(32, 2)},
		{"directory", "part zero", u64(ofPart(0, 0), 0)},
		{"directory", "itself as a part", u64(ofPart(0, 0), 7)},
		{"directory", "part birth zero", u64(ofPart(1, 8), 0)},
		{"directory", "part birth above the page's", u64(ofPart(1, 8), 41)},
		{"directory", "start out of order", u32(ofPart(1, 16), 0)},
		{"directory", "start beyond the region", u32(ofPart(2, 16), block.RegionSize)},
		{"directory", "extents zero", u32(ofPart(0, 20), 0)},
		{"directory", "extents too many", u32(ofPart(0, 20), MaxExtents-64)},
		{"part", "magic", u8(3, 'g')},
		{"part", "id", u64(8, 8)},
		{"part", "region", u64(24, 4)},
		{"part", "count", u32(32, 3)},
		{"part", "offset out of order", u32(entry(1, 0), 4095)},
		{"part", "extent birth above the part's", u64(entry(1, 24), 41)},
		{"node", "magic", u8(0, 'X')},
		{"node", "level", u8(6, 1)},
		{"node", "reserved", u8(7, 1)},
		{"node", "id", u64(8, 7)},
		{"node", "birth", u64(16, 42)},
		{"node", "region", u64(24, 0)},
		{"node", "count", u8(32, 2)},
		{"node", "reserved middle", u8(34, 1)},
		{"node", "reserved end", u8(43, 1)},
		{"node", "bitmap more", u8(48, 3)},
		{"node", "bitmap less", u8(48, 0)},
		{"node", "child id", u64(child(1), 0)},
		{"node", "child birth zero", u64(child(1)+8, 0)},
		{"node", "child birth above the node's", u64(child(1)+8, 42)},
		{"deadlist", "magic", u8(0, 'X')},
		{"deadlist", "count", u8(6, 2)},
		{"deadlist", "count zero", u8(6, 0)},
		{"deadlist", "reserved", u8(8, 1)},
		{"deadlist", "kind zero", u8(16, 0)},
		{"deadlist", "kind unknown", u8(16, 5)},
		{"deadlist", "level of a page", u8(17, 1)},
		{"deadlist", "region of a page", u8(18, 1)},
		{"deadlist", "id", u64(24, 0)},
		{"deadlist", "level of a subtree", u8(33, 6)},
		{"deadlist", "region of a subtree", u8(34, 1)},
		{"job", "magic", u8(0, 'X')},
		{"job", "kind zero", u8(6, 0)},
		{"job", "kind unknown", u8(6, 4)},
		{"job", "kind without a subtree", u8(6, 2)},
		{"job", "level", u8(7, 6)},
		{"job", "reserved", u8(8, 1)},
		{"job", "id", u64(16, 0)},
		{"job", "region", u64(24, 1)},
		{"job", "birth", u64(32, 0)},
	} {
		f := formats()[tc.format]
		bad := bytes.Clone(f.encoded)
		tc.change(bad)
		le.PutUint32(bad[f.crc:], checksum(bad, f.crc))
		var corrupt *block.CorruptError
		if got, err := f.decode(bad); !errors.As(err, &corrupt) || !errors.Is(err, block.ErrCorrupt) {
			t.Errorf("%s, %s: read as %v, %v", tc.format, tc.field, got, err)
		}
	}
}

func TestOtherVersionIsRefused(t *testing.T) {
	for name, f := range formats() {
		b := bytes.Clone(f.encoded)
		b[4] = 2
		binary.LittleEndian.PutUint32(b[f.crc:], checksum(b, f.crc))
		if _, err := f.decode(b); !errors.Is(err, block.ErrVersion) {
			t.Errorf("%s of version 2: %v", name, err)
		}
	}
}

func TestNodeFindsChildren(t *testing.T) {
	for _, step := range []int{1, 3, 64, 255, 256} {
		s := Subtree{ID: 1, Level: 1, Birth: 9}
		n, err := DecodeNode(s, EncodeNode(s, func(i int) (uint64, block.Epoch) {
			if i%step != 0 {
				return 0, 0
			}
			return uint64(i + 100), 9
		}))
		if err != nil {
			t.Fatal(err)
		}
		for i := range Fanout {
			want, next := ref{}, min(Fanout, (i+step-1)/step*step)
			if i%step == 0 {
				want = ref{uint64(i + 100), 9}
			}
			if got := n.child(i); got != want {
				t.Fatalf("step %d child %d: %v", step, i, got)
			}
			if got := n.next(i); got != next {
				t.Fatalf("step %d next of %d: %d, want %d", step, i, got, next)
			}
		}
		if n.next(Fanout) != Fanout {
			t.Fatal("next of 256")
		}
	}
}
