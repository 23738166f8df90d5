package check

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"
)

// readGolden reads bytes that the engine promises to read for ever: hexadecimal, in lines.
func readGolden(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../blockstore", path))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(string(bytes.Join(bytes.Fields(text), nil)))
	if err != nil {
		t.Fatal(path, err)
	}
	return b
}

// TestGolden reads the engine's golden bytes with the decoders here, and compares some fields of each with what the documents and the engine's test say.
func TestGolden(t *testing.T) {
	check := func(name string, err error, ok bool) {
		t.Helper()
		if err != nil || !ok {
			t.Errorf("%s: read otherwise, or not at all: %v", name, err)
		}
	}
	s, err := parseSuper(readGolden(t, "testdata/super.golden"))
	check("super", err, err == nil && s.Generation == 5 && s.BootEpoch == 3 && s.OwnerEpoch == 2 && s.Flags == superClean|superReady && s.Cut.Avg == 16<<10 && s.StoreID[15] == 0x1f && s.DomainID[0] == 0x20)
	v, err := parseVolumeRow(7, readGolden(t, "testdata/volume.golden"))
	check("volume", err, v.Size == 20<<30 && v.MapEpoch == 2 && v.Mode == 1 && v.Head == 99 && v.Cut == cut{2, 64 << 10, 64 << 10, 64 << 10, 0} && v.Name == "web1")
	n, err := parseNodeRow(99, readGolden(t, "testdata/node.golden"))
	check("node", err, n.Volume == 7 && n.Parent == 90 && n.Root == ref{55, 2, 99} && n.Flags == 15 && n.Size == 20<<30 && n.Closed == 123 && n.Bound == 80 && n.Mapped == 1<<30 && n.Name == "before-upgrade")
	g, err := parseSegmentRow(0x12f, readGolden(t, "testdata/segment.golden"))
	check("segment", err, g.Class == 2 && g.State == segmentSealed && g.Size == 60<<20 && g.TotalRaw == 100<<20 && g.LiveRaw == 90<<20 && g.TotalChunks == 6000 && g.LiveChunks == 5500 && len(g.Copies) == 1 && g.Copies[0].State == copyLive)
	b, err := parseSegmentRow(0x12f, readGolden(t, "testdata/survivors.golden"))
	check("segment of survivors", err, b.Born == 0x101 && g.Born == 0)
	w, err := parseGC(readGolden(t, "testdata/gc.golden"))
	check("gc", err, w.Audits == 12 && w.Flags == gcPaused|gcAudited|gcCounts && w.Missing == 1 && w.WrongSegments == 3 && w.Took == 1_500_000_000)
	c, err := parseChunkRow(readGolden(t, "testdata/chunk.golden"))
	check("chunk", err, c.Segment == 0x12f && c.FrameOff == 4096 && c.FrameLen == 12_345 && c.RawOff == 16_384 && c.RawLen == 20_000 && c.Flags == chunkDamaged && c.Hash[15] == 0x3f)
	k, err := parseCounters(readGolden(t, "testdata/counters.golden"))
	check("counters", err, k.StoreID[15] == 0x1f && k == counterRow{1000, 5<<32 | 8192, 6000, 77, 0x12f, 8, 12, 90 << 20, 10 << 20, k.StoreID, 300, 9, 0, 0, 1})
	k, err = parseCounters(readGolden(t, "testdata/counters2.golden"))
	check("counters of version 2", err, k.StoreID[15] == 0x1f && k == counterRow{1000, 5<<32 | 8192, 6000, 77, 0x12f, 8, 12, 90 << 20, 10 << 20, k.StoreID, 300, 9, 3, 0x1122334455667788, 2})
	j, err := parseJournalRow(readGolden(t, "testdata/journaled.golden"))
	check("journaled", err, *j == journalRow{9, 3<<32 | 7, 5<<32 | 4096, 990, 70, 5900, pointer{0x120, 4096, 2<<32 | 1}, pointer{0x12e, 9000, 3<<32 | 7}, 40 << 20, 9 << 20})
	q, err := parsePart(readGolden(t, "checkpoint/testdata/part.golden"))
	check("part", err, err == nil && q.Kind == kindDelta && q.Last && q.Number == 3<<32|7 && q.Base == 3<<32|2 && q.Part == 1 && q.RowsBefore == 9 && q.Previous[2] == 0x42 && len(q.rows) == 4 && q.rows[2].gone && string(q.rows[3].value) == "page")
	o, err := parseControl(&logRecord{Kind: opClone, payload: readGolden(t, "testdata/op.golden")})
	check("op", err, err == nil && o.Node == 99 && o.Size == 20<<30 && o.Mode == 1 && o.Name == "web2" && o.Cut.Kind == 1)
	o, err = parseControl(&logRecord{Kind: opRenameSnapshot, payload: readGolden(t, "testdata/op-rename-snapshot.golden")})
	check("op that renames a snapshot", err, err == nil && o.Node == 99 && o.Name == "kept")
	o, err = parseControl(&logRecord{Kind: opSnapshotSet, Seq: 1300, payload: readGolden(t, "testdata/op-snapshot-set.golden")})
	check("op of a set of snapshots", err, err == nil && o.Automatic && len(o.Members) == 2 && o.Members[0] == setMember{7, 1234, "nightly"} && o.Members[1] == setMember{9, 0, "nightly-2"})
	o, err = parseControl(&logRecord{Kind: opAddBitmap, payload: readGolden(t, "testdata/op-add-bitmap.golden")})
	check("op that adds a bitmap", err, err == nil && o.Node == 0 && o.Name == "monday")
	v, err = parseVolumeRow(7, readGolden(t, "testdata/volume-bitmaps.golden"))
	check("volume with bitmaps", err, err == nil && len(v.Bitmaps) == 2 && v.Bitmaps[0] == bitmapRow{70, 95, 1_700_000_000_000_000_005, 10 << 30, false, "monday"} && v.Bitmaps[1].All && v.Bitmaps[1].Name == "sunday")
	changed, err := parseTouched(append(key64(tableTouched, 7), append(key64(0, 1)[1:], key64(0, 3)[1:]...)...), readGolden(t, "testdata/granules.golden"))
	check("granules", err, err == nil && len(changed) == 2 && changed[0] == touch{95, [4]uint64{1, 0, 0, 1 << 63}} && changed[1] == touch{71, [4]uint64{0, 1 << 5, 0, 0}})
	n, err = parseNodeRow(99, readGolden(t, "testdata/node-protected.golden"))
	check("protected node", err, err == nil && n.is(nodeProtected) && !n.is(nodeDeleted))
	p, err := parsePage(7, readGolden(t, "extentmap/testdata/page.golden"))
	check("page", err, err == nil && p.Birth == 40 && p.Region == 3 && len(p.Extents) == 4 && p.Extents[1].Chunk == 513 && p.Extents[1].ChunkOff == 5 && p.Extents[3].Kind == kindDamagedEx)
	p, err = parsePageList(7, readGolden(t, "extentmap/testdata/directory.golden"))
	check("directory of a page", err, err == nil && p.Birth == 40 && p.Region == 3 && len(p.Parts) == 3 && p.Parts[1] == pagePart{6, 40, 4096, 1})
	p, err = parsePageRow(7, readGolden(t, "extentmap/testdata/part.golden"))
	check("part of a page", err, err == nil && p.Birth == 40 && len(p.Extents) == 4 && p.Extents[1].Chunk == 513)
	x, err := parseRadix(8, readGolden(t, "extentmap/testdata/node.golden"))
	check("radix node", err, err == nil && x.Level == 2 && x.Birth == 41 && x.Region == 65536 && x.Children[64] == ref{5, 1, 2} && x.Children[255] == ref{6, 1, 41})
	d, err := parseDead(readGolden(t, "extentmap/testdata/deadlist.golden"))
	check("deadlist", err, len(d) == 3 && d[1] == dead{deadSubtree, 2, 65536, 9} && d[2] == dead{Kind: deadChunk, ID: 513})
}
