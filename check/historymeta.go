package check

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"time"
)

// HistoryDid is what the records of a frame, or of a sheet of version 3, did, as their meta says.
type HistoryDid struct {
	Records    uint32    `json:"records"`
	First      time.Time `json:"first"`
	Last       time.Time `json:"last"`
	Writes     uint32    `json:"writes"` // parts of a long write count each
	WriteBytes uint64    `json:"writeBytes"`
	Trims      uint32    `json:"trims"` // and zeroings
	TrimBytes  uint64    `json:"trimBytes"`
	Flushes    uint32    `json:"flushes"`
	Kept       uint32    `json:"kept,omitempty"` // moments without a flush that thinning has kept
}

// HistoryPoint is a record that is no change of some range: a snapshot, a mark, a resize or a rollback.
type HistoryPoint struct {
	Kind  string    `json:"kind"`
	Seq   uint64    `json:"seq"`
	Time  time.Time `json:"time"`
	Label string    `json:"label,omitempty"`
	Size  uint64    `json:"sizeBytes,omitempty"` // of a resize
}

const (
	historyLabel    = 128
	historyFarthest = 1 << 62 // no volume, and no range of one, is longer
)

// varints reads the numbers of meta.
type varints struct {
	b   []byte
	bad bool
}

func (v *varints) uint(most uint64) uint64 {
	x, n := binary.Uvarint(v.b)
	if n <= 0 || x > most {
		v.bad, v.b = true, nil
		return 0
	}
	v.b = v.b[n:]
	return x
}

func (v *varints) int() int64 {
	x, n := binary.Varint(v.b)
	if n <= 0 {
		v.bad, v.b = true, nil
		return 0
	}
	v.b = v.b[n:]
	return x
}

func (v *varints) take(n uint64) []byte {
	if uint64(len(v.b)) < n {
		v.bad, v.b = true, nil
		return nil
	}
	b := v.b[:n]
	v.b = v.b[n:]
	return b
}

// records decodes the meta of a frame, or of a sheet of version 3: records whose writes have raw bytes of payload. It returns the sums of their sectors, and reports what is wrong.
func (d *HistoryDump) records(meta []byte, raw uint32) (did HistoryDid, sums []byte, wrong string) {
	v := &varints{b: meta}
	seq, at, payload := uint64(0), int64(0), uint64(0)
	for len(v.b) > 0 {
		kind := v.take(1)[0]
		seq, at = seq+v.uint(math.MaxUint64), at+v.int()
		v.uint(math.MaxUint32)
		off, length := v.uint(historyFarthest), v.uint(historyFarthest)
		when := time.Unix(0, at).UTC()
		point := HistoryPoint{Seq: seq, Time: when}
		switch kind {
		case 1:
			if length == 0 || length%4096 != 0 || off%4096 != 0 || payload+length > uint64(raw) {
				return did, nil, fmt.Sprintf("a write of %d+%d B", off, length)
			}
			sums = append(sums, v.take(length/1024)...)
			payload += length
			did.Writes, did.WriteBytes = did.Writes+1, did.WriteBytes+length
		case 2, 3:
			did.Trims, did.TrimBytes = did.Trims+1, did.TrimBytes+length
		case 19:
			point.Kind, point.Size = "resize", v.uint(historyFarthest)
		case 20, 241:
			point.Kind = map[byte]string{20: "snapshot", 241: "mark"}[kind]
			point.Label = string(v.take(v.uint(historyLabel)))
		case 22:
			point.Kind = "rollback"
		case 240:
			did.Flushes++
		case 242:
			if d.version < 2 {
				return did, nil, "a kept moment in a file that was not thinned"
			}
			did.Kept++
		default:
			return did, nil, fmt.Sprintf("a record of kind %d", kind)
		}
		if v.bad || at < 0 {
			return did, nil, fmt.Sprintf("a record %d that is cut off or out of bounds", did.Records)
		}
		if point.Kind != "" {
			d.Points = append(d.Points, point)
		}
		if did.Records++; did.Records == 1 {
			did.First = when
		}
		did.Last = when
	}
	d.newest = max(d.newest, seq)
	if v.bad || payload != uint64(raw) {
		return did, nil, fmt.Sprintf("%d records, %d B of payload", did.Records, payload)
	}
	return did, sums, ""
}

// write says what the records of a frame did, in a line.
func (h *HistoryDid) write(b *strings.Builder) {
	fmt.Fprintf(b, "    %s … %s: %d writes of %d B, %d trims of %d B, %d flushes, %d kept moments\n", h.First.Format(time.RFC3339Nano), h.Last.Format(time.RFC3339Nano), h.Writes, h.WriteBytes, h.Trims, h.TrimBytes, h.Flushes, h.Kept)
}

// write says what a point is, in a line.
func (p *HistoryPoint) write(b *strings.Builder) {
	fmt.Fprintf(b, "  %s %s", p.Time.Format(time.RFC3339Nano), p.Kind)
	if p.Label != "" {
		fmt.Fprintf(b, " %q", p.Label)
	}
	if p.Kind == "resize" {
		fmt.Fprintf(b, " to %d B", p.Size)
	}
	fmt.Fprintf(b, ", seq %d\n", p.Seq)
}
