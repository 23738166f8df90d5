package blockstore

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
	"github.com/hyper-nixos/hyper-nixos/tiers"
)

var updateGolden = flag.Bool("update-golden", false, "write golden files that are missing")

var (
	goldenUUID   = block.UUID{0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x46, 0x17, 0x98, 0x19, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f}
	goldenDomain = dedup.DomainID{0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28, 0x29, 0x2a, 0x2b, 0x2c, 0x2d, 0x2e, 0x2f}
	goldenHash   = [16]byte{0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38, 0x39, 0x3a, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f}
)

// golden is one format: a value, its bytes, and what reading them gives.
type golden struct {
	name   string
	value  any
	bytes  []byte
	decode func(b []byte) (any, error)
}

func goldens() []golden {
	super := &superblock{Generation: 5, StoreID: goldenUUID, DomainID: goldenDomain, Flags: flagClean | flagInitialized, Created: 1_700_000_000_000_000_001, BootEpoch: 3, OwnerEpoch: 2, Cut: cdc.Default()}
	volume := &volumeRow{ID: 7, UUID: goldenUUID, Size: 20 << 30, MapEpoch: 2, Mode: ModeDurable, Head: 99, Cut: cdc.FixedSize(64 << 10), Created: 1_700_000_000_000_000_002, Name: "web1"}
	node := &nodeRow{ID: 99, Volume: 7, Parent: 90, Root: extentmap.Root{ID: 55, Level: 2, Birth: 99}, Flags: nodeClosed | nodeStarted | nodeResolved | nodeDeleted, MapEpoch: 2, Size: 20 << 30, Closed: 123,
		Created: 1_700_000_000_000_000_003, Bound: 80, Mapped: 1 << 30, Name: "before-upgrade"}
	seg := &segmentRow{ID: 0x12f, Generation: 1, Class: segment.Warm, State: segmentSealed, Size: 60 << 20, TotalRaw: 100 << 20, LiveRaw: 90 << 20, TotalChunks: 6000, LiveChunks: 5500,
		Placement: tiers.PlacementList{{Tier: "local", Key: "000000000000012f.00000001.seg", Generation: 1, State: tiers.Live, VerifiedAt: 1_700_000_000_000_000_004}}}
	segBytes, _ := seg.encode() // an error leaves nothing, which is not golden
	survivors := *seg
	survivors.Born = 0x101
	survivorsBytes, _ := survivors.encode()
	collect := &collectRecord{Paused: true, StoreID: goldenUUID, Audits: 12, Last: AuditReport{EndedAt: time.Unix(1_700_000_000, 5).UTC(), Took: 1500 * time.Millisecond, Chunks: 6000, References: 7000,
		Unreachable: 2, UnreachableBytes: 40_000, Missing: 1, WrongSegments: 3, WrongReferences: true}}
	chunk := chunkRow{Segment: 0x12f, FrameOff: 4096, FrameLen: 12_345, RawOff: 16_384, RawLen: 20_000, Hash: goldenHash, Flags: chunkDamaged}
	count := counters{AppliedSeq: 1000, Watermark: 5<<32 | 8192, NextChunk: 6000, NextPage: 77, NextSegment: 0x12f, NextVolume: 8, NextRow: 12, Unique: 90 << 20, Shared: 10 << 20, StoreID: goldenUUID, Segments: 300, Nodes: 9, Lost: 3, RowSum: 0x1122334455667788, summed: true}
	journaled := &journalRow{Gen: 9, Number: 3<<32 | 7, Watermark: 5<<32 | 4096, AppliedSeq: 990, NextPage: 70, NextChunk: 5900, Full: checkpointPointer{0x120, 4096, 2<<32 | 1}, Last: checkpointPointer{0x12e, 9000, 3<<32 | 7},
		FullBytes: 40 << 20, DeltaBytes: 9 << 20}
	clone := &op{Kind: opClone, Volume: 8, Node: 99, UUID: goldenUUID, Size: 20 << 30, Mode: ModeDurable, Cut: cdc.Default(), Name: "web2"}
	rename := &op{Kind: opRenameSnapshot, Volume: 7, Node: 99, Name: "kept"}
	set := &op{Kind: opSnapshotSet, Volume: 7, Set: &snapshotSet{Automatic: true, Members: []snapshotMember{{7, 1234, "nightly"}, {9, 0, "nightly-2"}}}}
	protected := *node
	protected.Flags = nodeClosed | nodeStarted | nodeResolved | nodeProtected
	index := indexState{StoreID: goldenUUID, Through: 5990, Unmatched: 8, Doubles: 4, Joined: 2, JoinedRaw: 30 << 10}
	addBitmap := &op{Kind: opAddBitmap, Volume: 7, Name: "monday"}
	withBitmaps := *volume
	withBitmaps.Bitmaps = []bitmap{{ID: 70, Epoch: 95, Since: 1_700_000_000_000_000_005, Size: 10 << 30, Name: "monday"}, {ID: 71, Epoch: 71, Since: 1_700_000_000_000_000_006, Size: 20 << 30, All: true, Name: "sunday"}}
	granulesKey := touchedKey{7, 1, 3}.bytes()
	changed := touched{{95, granules{1, 0, 0, 1 << 63}}, {71, granules{0, 1 << 5, 0, 0}}}
	return []golden{
		{"op-add-bitmap", addBitmap, addBitmap.encode(), func(b []byte) (any, error) { return decodeOp(opAddBitmap, 7, b) }},
		{"volume-bitmaps", &withBitmaps, withBitmaps.encode(), func(b []byte) (any, error) { return decodeVolumeRow(b) }},
		{"granules", changed, changed.encode(granulesKey), func(b []byte) (any, error) { return decodeTouched(granulesKey, b) }},
		{"gc", collect, collect.encode(), func(b []byte) (any, error) { r, err := decodeCollect(b, "golden"); return &r, err }},
		{"survivors", &survivors, survivorsBytes, func(b []byte) (any, error) { return decodeSegmentRow(b) }},
		{"super", super, super.encode(), func(b []byte) (any, error) { return decodeSuper(b, "golden") }},
		{"volume", volume, volume.encode(), func(b []byte) (any, error) { return decodeVolumeRow(b) }},
		{"node", node, node.encode(), func(b []byte) (any, error) { return decodeNodeRow(b) }},
		{"segment", seg, segBytes, func(b []byte) (any, error) { return decodeSegmentRow(b) }},
		{"chunk", chunk, chunk.encode(nil), func(b []byte) (any, error) { return decodeChunkRow(6000, b) }},
		{"counters2", count, count.encode(), func(b []byte) (any, error) { return decodeCounters(b) }},
		{"journaled", journaled, journaled.encode(), func(b []byte) (any, error) { return decodeJournalRow(b) }},
		{"index", index, index.encode(), func(b []byte) (any, error) { return decodeIndexState(b) }},
		{"op", clone, clone.encode(), func(b []byte) (any, error) { return decodeOp(opClone, 8, b) }},
		{"op-rename-snapshot", rename, rename.encode(), func(b []byte) (any, error) { return decodeOp(opRenameSnapshot, 7, b) }},
		{"op-snapshot-set", set, set.encode(), func(b []byte) (any, error) { return decodeOp(opSnapshotSet, 7, b) }},
		{"node-protected", &protected, protected.encode(), func(b []byte) (any, error) { return decodeNodeRow(b) }},
	}
}

// TestGoldenRows keeps the formats of docs/format/super.md, meta.md and control-records.md: what an older program wrote stays readable, and what this one writes is what an older
// one reads.
func TestGoldenRows(t *testing.T) {
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			path := filepath.Join("testdata", g.name+".golden")
			if _, err := os.Stat(path); *updateGolden && os.IsNotExist(err) {
				if err := os.WriteFile(path, wrapHex(g.bytes), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(g.bytes, want) {
				t.Errorf("written as\n%x, golden is\n%x", g.bytes, want)
			}
			got, err := g.decode(want)
			if err != nil || !reflect.DeepEqual(got, g.value) {
				t.Errorf("read as %+v, %v, want %+v", got, err, g.value)
			}
			for _, bad := range [][]byte{want[:len(want)-1], append(bytes.Clone(want), 0), nil} {
				if _, err := g.decode(bad); err == nil {
					t.Errorf("%d bytes instead of %d were read without an error", len(bad), len(want))
				}
			}
		})
	}
}

// TestGoldenCounters reads the counters of version 1, which no program writes any more.
func TestGoldenCounters(t *testing.T) {
	text, err := os.ReadFile("testdata/counters.golden")
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.ReplaceAll(text, []byte("\n"), nil)))
	if err != nil {
		t.Fatal(err)
	}
	want := counters{AppliedSeq: 1000, Watermark: 5<<32 | 8192, NextChunk: 6000, NextPage: 77, NextSegment: 0x12f, NextVolume: 8, NextRow: 12, Unique: 90 << 20, Shared: 10 << 20, StoreID: goldenUUID, Segments: 300, Nodes: 9}
	if got, err := decodeCounters(b); err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
}

// wrapHex writes 32 bytes a line.
func wrapHex(b []byte) (text []byte) {
	for len(b) > 0 {
		n := min(32, len(b))
		text = append(hex.AppendEncode(text, b[:n]), '\n')
		b = b[n:]
	}
	return text
}
