package journal

import (
	"encoding/binary"
	"math"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// maxEntry bounds the length of an index entry without its sums, in bytes: a byte of kind, six varints, and the payload length and sum of a
// control record.
const maxEntry = 1 + binary.MaxVarintLen16 + 2*binary.MaxVarintLen32 + 4*binary.MaxVarintLen64 + 4

// indexBound returns the most bytes that the index entry of a record can take.
func indexBound(sectors int) int64 { return maxEntry + 4*int64(sectors) }

// appendEntry appends the index entry of a record. prevTime is the time of the record before it in the file, 0 for the first. Position and
// sequence number are not stored: records are packed and dense, so a reader counts them.
//
// Varints keep the index of 4 KiB writes near 20 bytes a record. That is what an open file holds in memory, without a pointer, and
// what recovery reads.
func appendEntry(idx []byte, h *RecordHeader, prevTime int64, sums []uint32) []byte {
	idx = append(idx, diskKind(h.Kind, h.Flags))
	idx = binary.AppendUvarint(idx, uint64(h.Flags))
	idx = binary.AppendUvarint(idx, uint64(h.Volume))
	idx = binary.AppendUvarint(idx, uint64(h.MapEpoch))
	idx = binary.AppendUvarint(idx, h.Off)
	idx = binary.AppendUvarint(idx, h.Len)
	idx = binary.AppendUvarint(idx, uint64(h.Time-prevTime))
	if h.Kind >= FirstControl {
		idx = binary.AppendUvarint(idx, uint64(h.PayloadLen))
		return le.AppendUint32(idx, h.PayloadSum)
	}
	for _, s := range sums {
		idx = le.AppendUint32(idx, s)
	}
	return idx
}

// entries walks an index. It lends one Replayed, whose Sums it reuses.
type entries struct {
	rest  []byte
	file  uint32
	at    int64 // offset of the next record's header
	limit int64 // end of data
	seq   uint64
	time  int64

	stream int64 // bytes of records of streams so far

	vault *vault // takes the tags; nil where there are none

	rec        Replayed
	payloadLen uint32
	payloadSum uint32
	payload    []byte        // reused
	tag        [tagSize]byte // of a control record
}

// next decodes the entry at the front of the index into e.rec. It reports false when the index is malformed.
func (e *entries) next() bool {
	if len(e.rest) == 0 {
		return false
	}
	r := &e.rec
	kind := e.rest[0]
	e.rest = e.rest[1:]
	flags, ok1 := e.varint(math.MaxUint16)
	volume, ok2 := e.varint(math.MaxUint64)
	epoch, ok3 := e.varint(math.MaxUint32)
	off, ok4 := e.varint(math.MaxUint64)
	length, ok5 := e.varint(math.MaxUint64)
	delta, ok6 := e.varint(math.MaxInt64)
	if !(ok1 && ok2 && ok3 && ok4 && ok5 && ok6) || int64(delta) > math.MaxInt64-e.time {
		return false
	}
	r.Kind = kindOf(kind, uint16(flags))
	r.Flags, r.Volume, r.MapEpoch, r.Off, r.Len = uint16(flags), block.VolumeID(volume), uint32(epoch), off, length
	e.time += int64(delta)
	r.Time, r.Seq = e.time, e.seq
	e.seq++
	return e.body()
}

// body decodes the part of an entry that depends on its kind and advances past the record.
func (e *entries) body() bool {
	r := &e.rec
	r.Sums, r.Payload = r.Sums[:0], nil
	e.payloadLen, e.payloadSum = 0, 0
	sectors := uint32(0)
	switch {
	case r.Kind >= FirstControl:
		n, ok := e.varint(MaxControl)
		if !ok || len(e.rest) < 4 {
			return false
		}
		e.payloadLen, e.payloadSum = uint32(n), le.Uint32(e.rest)
		e.rest = e.rest[4:]
	case r.Kind == Write:
		if r.Len > MaxWrite {
			return false
		}
		e.payloadLen = uint32(r.Len)
		sectors = e.payloadLen / sectorSize
		if len(e.rest) < 4*int(sectors) {
			return false
		}
		for i := range int(sectors) {
			r.Sums = append(r.Sums, le.Uint32(e.rest[4*i:]))
		}
		e.rest = e.rest[4*sectors:]
	}
	if checkShape(r.Kind, r.Off, r.Len, e.payloadLen, sectors, e.payloadSum) != nil {
		return false
	}
	h := RecordHeader{Kind: r.Kind, Flags: r.Flags, Sectors: sectors, PayloadLen: e.payloadLen}
	r.Pos = recordPos(e.file, e.at, &h)
	if e.vault != nil && r.Kind >= FirstControl {
		if len(e.rest) < tagSize {
			return false
		}
		e.tag, e.rest = [tagSize]byte(e.rest), e.rest[tagSize:]
	}
	if e.vault != nil {
		if n := tagSize * int(sectors); len(e.rest) < n || h.end(e.at) > e.limit {
			return false
		}
		e.vault.takeTags(e.rest, tagSize, sectors, r.Pos.Offset())
		e.rest = e.rest[tagSize*int(sectors):]
	}
	end := h.end(e.at)
	if h.stream() {
		e.stream += end - e.at
	}
	e.at = end
	return e.at <= e.limit
}

// varint decodes an unsigned varint of at most limit in its shortest form.
func (e *entries) varint(limit uint64) (uint64, bool) {
	if len(e.rest) > 0 && e.rest[0] < 0x80 {
		v := uint64(e.rest[0])
		e.rest = e.rest[1:]
		return v, v <= limit
	}
	v, n := binary.Uvarint(e.rest)
	if n <= 0 || v > limit || e.rest[n-1] == 0 {
		return 0, false
	}
	e.rest = e.rest[n:]
	return v, true
}

// recordPos returns the position of a record whose header lies at off.
func recordPos(file uint32, off int64, h *RecordHeader) Pos {
	if h.PayloadLen == 0 {
		return makePos(file, off)
	}
	return makePos(file, h.payloadAt(off))
}
