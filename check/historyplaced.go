package check

import (
	"encoding/binary"
	"fmt"

	"github.com/klauspost/compress/zstd"
)

// footUsed is how much of the footer has fields, but for its checksum, in bytes.
func (d *HistoryDump) footUsed() int {
	if d.Placed {
		return 84
	}
	return 76
}

// sumSectors takes the sums of the sectors of a frame's payload. It reports what is wrong with that.
func (d *HistoryDump) sumSectors(payload []byte, raw uint32, codec uint8) (wrong string) {
	if codec == 2 {
		if d.zstd == nil {
			z, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(historyMostRaw), zstd.WithDecoderMaxWindow(historyMostRaw), zstd.WithDecodeAllCapLimit(true))
			if err != nil {
				return err.Error()
			}
			d.zstd = z
		}
		var err error
		if payload, err = d.zstd.DecodeAll(payload, make([]byte, 0, raw)); err != nil {
			return err.Error()
		}
	}
	if len(payload) != int(raw) {
		return fmt.Sprintf("%d B", len(payload))
	}
	for ; len(payload) > 0; payload = payload[4096:] {
		d.sectors = append(d.sectors, crc(payload[:4096]))
	}
	return ""
}

// placed verifies an index of version 3, which is stored at an offset: frames, sheets, the order, and what the records did. Each sector that a record wrote must be where the order says, by its sum, and nothing else may be there.
func (d *HistoryDump) placed(index []byte, off int64, sheets, sectors uint32) error {
	le := binary.LittleEndian
	tables := uint64(len(d.table)) + uint64(sheets)*historySheet + uint64(sectors)*historyOrder
	if uint64(len(index)) < tables || string(index[:len(d.table)]) != string(d.table) {
		return faultf(off, "an index of the frames before it", "another")
	}
	rows, order, meta := index[len(d.table):], index[len(d.table)+int(sheets)*historySheet:], index[tables:]
	var sums []byte
	for i := range int(sheets) {
		at := off + int64(len(d.table)+i*historySheet)
		length, raw := le.Uint32(rows[i*historySheet:]), le.Uint32(rows[i*historySheet+4:])
		if uint64(length) > uint64(len(meta)) || length > historyMostRaw {
			return faultf(at, "a sheet in the index", "%d B of %d", length, len(meta))
		}
		did, more, wrong := d.records(meta[:length], raw)
		if wrong != "" {
			return faultf(at, fmt.Sprintf("a sheet of %d B with %d B of payload", length, raw), "%s", wrong)
		}
		sums, meta = append(sums, more...), meta[length:]
		d.Sheets = append(d.Sheets, did)
		d.WrittenBytes += uint64(raw)
	}
	if len(meta) > 0 || uint64(len(sums)) != 4*uint64(sectors) {
		return faultf(off, fmt.Sprintf("records that wrote %d sectors", sectors), "%d, and %d B more", len(sums)/4, len(meta))
	}
	used := make([]bool, len(d.sectors))
	for i := range int(sectors) {
		place := le.Uint32(order[i*historyOrder:])
		at := off + int64(len(index)-len(order)+i*historyOrder)
		if int(place) >= len(used) {
			return faultf(at, fmt.Sprintf("one of %d sectors", len(used)), "%d", place)
		}
		if want := le.Uint32(sums[4*i:]); d.sectors[place] != want {
			return faultf(at, fmt.Sprintf("a sector of crc %08x", want), "%08x", d.sectors[place])
		}
		used[place] = true
	}
	for place, is := range used {
		if !is {
			return faultf(off, "payload that some record wrote", "sector %d", place)
		}
	}
	if d.newest > d.LastSeq {
		return faultf(off, fmt.Sprintf("records up to %d", d.LastSeq), "%d", d.newest)
	}
	return nil
}
