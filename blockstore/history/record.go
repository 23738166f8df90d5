package history

import (
	"encoding/binary"
	"math"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Kind says what a record did. The values are part of the format; those of changes are the log's.
type Kind uint8

const (
	Write    Kind = 1   // payload replaced the range
	Trim     Kind = 2   // the range reads as zeroes since
	Zero     Kind = 3   // likewise
	Resize   Kind = 19  // the volume has Size bytes since, and the range, which a shrink cut off, reads as zeroes
	Snapshot Kind = 20  // a snapshot of the name Label was taken
	Rollback Kind = 22  // the content became that of a snapshot; what follows has another map epoch
	Barrier  Kind = 240 // a flush made everything up to Seq durable
	Mark     Kind = 241 // somebody named this moment Label
	Kept     Kind = 242 // of a file that was thinned: what was left of a stretch without a flush
)

// MaxLabel bounds the label of a record, in bytes.
const MaxLabel = 128

// Record is one change of a volume, or a point in its time.
type Record struct {
	Kind     Kind
	Seq      uint64
	Time     int64 // ns since the epoch
	MapEpoch uint32
	Off, Len uint64 // in the volume, bytes
	Size     uint64 // of a Resize
	Label    string // of a Mark or Snapshot

	// Payload is the bytes of a Write, to append it; borrowed until Append returns.
	Payload []byte
	// Part says that more of the same record follows: it is whole only with the last one.
	Part bool

	// Of a record that is read.

	// Thinned says that records around it may be missing: a volume was at some time what it is after a point (Kind.Point), and not after another one.
	Thinned bool

	Pos uint64 // of its first sector; of a record without payload a place in the same order

	// Sums are of a Write the CRC32C of each sector: lent until the callback returns, of one that is read; of one that is appended, if they are known already.
	Sums []uint32
}

// Point reports whether a record of the kind changes nothing, and names a moment.
func (k Kind) Point() bool { return k == Barrier || k == Mark || k == Snapshot || k == Kept }

func (k Kind) labelled() bool { return k == Mark || k == Snapshot }

func (k Kind) known() bool {
	switch k {
	case Write, Trim, Zero, Resize, Snapshot, Rollback, Barrier, Mark, Kept:
		return true
	}
	return false
}

// metaWriter encodes what records did, each as the difference to the one before in the same frame.
type metaWriter struct {
	b       []byte
	n       uint32
	seq     uint64
	time    int64
	sectors uint32
}

func (w *metaWriter) reset() { *w = metaWriter{b: w.b[:0]} }

func (w *metaWriter) add(r *Record, sums []uint32) {
	w.b = append(w.b, byte(r.Kind))
	w.b = binary.AppendUvarint(w.b, r.Seq-w.seq)
	w.b = binary.AppendVarint(w.b, r.Time-w.time) // a mark may be set by another clock than the log's
	w.b = binary.AppendUvarint(w.b, uint64(r.MapEpoch))
	w.b = binary.AppendUvarint(w.b, r.Off)
	w.b = binary.AppendUvarint(w.b, r.Len)
	switch {
	case r.Kind == Write:
		for _, s := range sums {
			w.b = le.AppendUint32(w.b, s)
		}
	case r.Kind == Resize:
		w.b = binary.AppendUvarint(w.b, r.Size)
	case r.Kind.labelled():
		w.b = binary.AppendUvarint(w.b, uint64(len(r.Label)))
		w.b = append(w.b, r.Label...)
	}
	w.seq, w.time = r.Seq, r.Time
	w.n++
	w.sectors += uint32(len(sums))
}

// metaReader walks the records of a frame. It lends one Record, whose Sums it reuses.
type metaReader struct {
	rest []byte
	rec  Record
	file uint32
	raw  uint32 // offset of the next sector in the file's payload
	end  uint32 // of the frame's payload
	void uint64 // records without payload since the last sector

	thinned bool // the file is
}

// next decodes the next record, or reports that what is there is none.
func (m *metaReader) next() bool {
	r := &m.rec
	if len(m.rest) == 0 {
		return false
	}
	r.Kind, m.rest = Kind(m.rest[0]), m.rest[1:]
	seq, ok1 := m.uvarint(math.MaxUint64)
	delta, n := binary.Varint(m.rest)
	if n <= 0 {
		return false
	}
	m.rest = m.rest[n:]
	epoch, ok2 := m.uvarint(math.MaxUint32)
	off, ok3 := m.uvarint(block.MaxVolumeSize)
	length, ok4 := m.uvarint(block.MaxVolumeSize)
	if !ok1 || !ok2 || !ok3 || !ok4 || !r.Kind.known() || r.Kind == Kept && !m.thinned {
		return false
	}
	r.Seq, r.Time, r.MapEpoch, r.Off, r.Len = r.Seq+seq, r.Time+delta, uint32(epoch), off, length
	r.Sums, r.Label, r.Size = r.Sums[:0], "", 0
	if r.Time < 0 {
		return false
	}
	return m.body()
}

func (m *metaReader) body() bool {
	r := &m.rec
	switch {
	case r.Kind == Write:
		n := r.Len / sectorSize
		if r.Len == 0 || r.Len%sectorSize != 0 || r.Off%sectorSize != 0 || n > uint64(m.end-m.raw)/sectorSize || uint64(len(m.rest)) < 4*n {
			return false
		}
		for i := range n {
			r.Sums = append(r.Sums, le.Uint32(m.rest[4*i:]))
		}
		m.rest = m.rest[4*n:]
		r.Pos = position(m.file, m.raw)
		m.raw += uint32(r.Len)
		m.void = 0
		return true
	case r.Kind == Resize:
		size, ok := m.uvarint(block.MaxVolumeSize)
		if !ok {
			return false
		}
		r.Size = size
	case r.Kind.labelled():
		n, ok := m.uvarint(MaxLabel)
		if !ok || uint64(len(m.rest)) < n {
			return false
		}
		r.Label, m.rest = string(m.rest[:n]), m.rest[n:]
	}
	if !r.Kind.Point() {
		m.void++
	}
	if m.void >= maxVoid {
		return false
	}
	// A place between the last sector and the next one: the order is all that it tells.
	r.Pos = position(m.file, m.raw) - sectorSize + m.void
	return true
}

// maxVoid bounds the changes without payload that follow one another in a file, as their positions lie between two sectors. An appender begins another file for more.
const maxVoid = sectorSize

func (m *metaReader) uvarint(most uint64) (uint64, bool) {
	v, n := binary.Uvarint(m.rest)
	if n <= 0 || v > most {
		return 0, false
	}
	m.rest = m.rest[n:]
	return v, true
}

// positionBit is set in positions of history and in none of the log, whose files are counted from 1.
const positionBit = 1 << 63

const maxFileID = 1<<31 - 1

// position is the place of a sector, whose file has one empty sector before all others.
func position(file, raw uint32) uint64 {
	return positionBit | uint64(file)<<32 | uint64(raw) + sectorSize
}

// InHistory reports whether a position of an overlay is one of history.
func InHistory(pos uint64) bool { return pos&positionBit != 0 }

func fileOf(pos uint64) uint32 { return uint32(pos>>32) &^ (1 << 31) }

func rawOf(pos uint64) uint32 { return uint32(pos) - sectorSize }
