package check

import (
	"encoding/binary"
	"fmt"
)

// docs/format/checkpoint.md
const (
	partMagic   = "HNCKPART"
	partHeader  = 64
	partMax     = 4 << 20
	partKeyMax  = 64
	partGone    = 1<<32 - 1
	kindFull    = 1
	kindDelta   = 2
	classMeta   = 5 // of segments
	livePerRow  = 512
	tableLive   = 'L' // of parts only
	tableMarker = 'K'
)

// part is a part of a checkpoint. Rows are lent.
type part struct {
	Kind       uint8    `json:"kind"` // 1 full, 2 delta
	Last       bool     `json:"last"`
	Number     uint64   `json:"number"`
	Base       uint64   `json:"base"`
	Part       uint32   `json:"part"`
	RowCount   uint32   `json:"rows"`
	RowsBefore uint64   `json:"rowsBefore"`
	Previous   [16]byte `json:"-"`
	rows       []partRow
}

// partRow is a row of a part. A deleted one has no value.
type partRow struct {
	key, value []byte
	gone       bool
}

func parsePart(b []byte) (*part, error) {
	f := &fields{b: b}
	f.rule(len(b) <= partMax, 0, "a part of at most 4 MiB", "%d B", len(b))
	f.magic(partMagic)
	f.version(4)
	p := &part{Kind: f.u8()}
	last := f.u8()
	p.Last = last == 1
	f.reserved(2)
	p.Number, p.Base, p.Part, p.RowCount, p.RowsBefore = f.u64(), f.u64(), f.u32(), f.u32(), f.u64()
	p.Previous = [16]byte(f.take(16))
	f.rule(p.Kind == kindFull || p.Kind == kindDelta, 12, "a known kind", "%d", p.Kind)
	f.rule(last <= 1, 13, "0 or 1", "%d", last)
	f.rule(p.Number > 0, 16, "a number", "0")
	f.rule((p.Kind == kindFull) == (p.Base == 0) && p.Base < p.Number, 24, "a base of a delta, below its number", "%d", p.Base)
	f.rule(p.Part > 0 || p.RowsBefore == 0 && p.Previous == [16]byte{}, 40, "nothing before part 0", "%d rows", p.RowsBefore)
	for f.err == nil && f.at < len(b) {
		f.partRow(p)
	}
	f.rule(len(p.rows) == int(p.RowCount), 36, fmt.Sprintf("%d rows", len(p.rows)), "%d", p.RowCount)
	return p, f.end()
}

func (f *fields) partRow(p *part) {
	at := f.at
	k, v := int(f.u16()), f.u32()
	f.rule(1 <= k && k <= partKeyMax, at, "a key of 1 to 64 B", "%d B", k)
	r := partRow{gone: v == partGone}
	if r.key = f.take(min(k, partKeyMax)); !r.gone {
		f.rule(int64(v) <= int64(len(f.b)-f.at), at+2, "a value inside the part", "%d B", v)
		if f.err == nil {
			r.value = f.take(int(v))
		}
	}
	if f.err != nil {
		return
	}
	ok := len(r.key) == keyLengths[r.key[0]]
	switch r.key[0] {
	case tableChunk, tableHint, tableSegment:
		ok = false
	case tableMeta:
		ok = string(r.key) == "Mc" && !r.gone
	case tableLive:
		ok = len(r.key) == 9 && len(r.value) == livePerRow/8
	default:
		ok = ok && (!r.gone || p.Kind == kindDelta)
	}
	f.rule(ok, at+6, "a row that such a checkpoint holds", "%q", r.key)
	p.rows = append(p.rows, r)
}

// eachLive calls f with every chunk that a row of table L is about, and whether there is one.
func (r *partRow) eachLive(f func(id uint64, there bool)) {
	first := binary.BigEndian.Uint64(r.key[1:]) * livePerRow
	for i := range uint64(livePerRow) {
		f(first+i, r.value[i/8]&(1<<(i%8)) != 0)
	}
}

// pointer says where a checkpoint begins.
type pointer struct{ Segment, Offset, Number uint64 }

// journalRow is M|j.
type journalRow struct {
	Gen        uint32
	Number     uint64
	Watermark  uint64
	AppliedSeq uint64
	Page       uint64
	Chunk      uint64
	Full, Last pointer
	FullBytes  uint64
	DeltaBytes uint64
}

func parseJournalRow(b []byte) (*journalRow, error) {
	f := &fields{b: b}
	f.version(1)
	f.reserved(3)
	j := &journalRow{Gen: f.u32(), Number: f.u64(), Watermark: f.u64(), AppliedSeq: f.u64(), Page: f.u64(), Chunk: f.u64()}
	j.Full, j.Last = pointer{f.u64(), f.u64(), f.u64()}, pointer{f.u64(), f.u64(), f.u64()}
	j.FullBytes, j.DeltaBytes = f.u64(), f.u64()
	f.reserved(16)
	f.rule(j.Number > 0, 8, "a checkpoint", "0")
	f.rule(j.Last.Number == j.Number, 88, fmt.Sprint("checkpoint ", j.Number), "%d", j.Last.Number)
	return j, f.end()
}

// markerKeyOK reports whether a key of table K names a row that can be marked.
func markerKeyOK(key []byte) bool {
	if len(key) < 6 {
		return false
	}
	switch key[5] {
	case tableLive:
		return len(key)-5 == 9
	case tableDead, tableJob, tableRadix, tablePage, tableRef, tableNode, tableTouched, tableVolume:
		return len(key)-5 == keyLengths[key[5]]
	}
	return false
}
