package check

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// docs/format/log.md
const (
	logPage       = 4096
	logCore       = 512
	logMinFile    = 32 << 10
	logMaxFile    = 1 << 30
	recordHeader  = 96
	descSize      = 20
	maxWrite      = 32<<20 + block.Size
	maxControl    = 1 << 20
	kindWrite     = 1
	kindTrim      = 2
	kindZeroRec   = 3
	kindStream    = 4
	firstControl  = 16
	flagStream    = 1 << 15 // of kind 4, and of no other data
	flagMoved     = 1 << 0  // of a write: it repeats what the volume held already
	logFileMagic  = "HNXLOGF\n"
	logFootMagic  = "HNXLOGE\n"
	logRecordMark = "HNLR"
)

// logHeader is the first page of a log file.
type logHeader struct {
	StoreID    block.UUID `json:"-"`
	ID         uint32     `json:"id"`
	KeyID      uint32     `json:"keyId,omitempty"` // of an encrypted file
	BootEpoch  uint64     `json:"bootEpoch"`
	OwnerEpoch uint64     `json:"ownerEpoch"`
	PrevID     uint32     `json:"prevId"`
	PrevChain  uint32     `json:"prevChain"`
	FirstSeq   uint64     `json:"firstSeq"`
	CreatedNs  int64      `json:"createdNs"`
	Durable    uint64     `json:"durable"`
	Capacity   int64      `json:"capacity"`
	seed       uint32
}

func parseLogHeader(b []byte) (*logHeader, error) {
	f := &fields{b: b}
	f.magic(logFileMagic)
	h := &logHeader{}
	if f.err == nil {
		h.seed = binary.LittleEndian.Uint32(b[logCore-4:])
		f.err = checkSum(logCore-4, crc(b[:logCore-4]), h.seed)
	}
	f.version(4)
	size := f.u32()
	f.rule(size == logPage, 12, "4096", "%d", size)
	h.StoreID, h.ID, h.KeyID = block.UUID(f.take(16)), f.u32(), f.u32()
	h.BootEpoch, h.OwnerEpoch = f.u64(), f.u64()
	f.take(32) // salt
	h.PrevID, h.PrevChain, h.FirstSeq = f.u32(), f.u32(), f.u64()
	h.CreatedNs, h.Durable, h.Capacity = int64(f.u64()), f.u64(), int64(f.u64())
	f.reserved(logCore - 4 - 128)
	f.take(4)
	f.reserved(logPage - logCore)
	f.rule(h.ID > 0 && h.PrevID < h.ID && h.FirstSeq > 0 && h.CreatedNs >= 0, 32, "fields in bounds", "%+v", *h)
	f.rule(h.Capacity%logPage == 0 && logMinFile <= h.Capacity && h.Capacity <= logMaxFile, 120, "a capacity from 32 KiB to 1 GiB", "%d", h.Capacity)
	return h, f.end()
}

// logFooter is the last page of a sealed log file.
type logFooter struct {
	Records  uint64 `json:"records"`
	FirstSeq uint64 `json:"firstSeq"`
	LastSeq  uint64 `json:"lastSeq"`
	MinTime  int64  `json:"minTimeNs"`
	MaxTime  int64  `json:"maxTimeNs"`
	DataEnd  int64  `json:"dataEnd"`
	IndexOff int64  `json:"indexOffset"`
	IndexLen int64  `json:"indexLength"`
	Chain    uint32 `json:"finalChain"`
	IndexSum uint32 `json:"indexSum"`
}

func parseLogFooter(b []byte, h *logHeader) (*logFooter, error) {
	f := &fields{b: b}
	f.magic(logFootMagic)
	if f.err == nil {
		f.err = checkSum(logCore-4, crcMore(h.seed, b[:logCore-4]), binary.LittleEndian.Uint32(b[logCore-4:]))
	}
	f.version(4)
	id, boot := f.u32(), f.u64()
	t := &logFooter{Records: f.u64(), FirstSeq: f.u64(), LastSeq: f.u64(), MinTime: int64(f.u64()), MaxTime: int64(f.u64())}
	t.DataEnd, t.IndexOff, t.IndexLen = int64(f.u64()), int64(f.u64()), int64(f.u64())
	t.Chain, t.IndexSum = f.u32(), f.u32()
	if h.KeyID != 0 {
		f.take(32) // tag
	} else {
		f.reserved(32)
	}
	f.reserved(logCore - 4 - 128)
	f.take(4)
	f.reserved(logPage - logCore)
	at := h.Capacity - logPage
	f.rule(id == h.ID && boot == h.BootEpoch, 12, fmt.Sprintf("file %d of boot %d", h.ID, h.BootEpoch), "%d, %d", id, boot)
	f.rule(t.FirstSeq == h.FirstSeq && t.LastSeq+1-t.FirstSeq == t.Records, 24, "records from the header's on", "%+v", *t)
	f.rule(logPage <= t.DataEnd && t.DataEnd <= at && t.IndexOff == (t.DataEnd+logPage-1)&^(logPage-1), 64, "an index behind the data", "%+v", *t)
	f.rule(0 <= t.IndexLen && t.IndexLen <= at-t.IndexOff && t.Records <= uint64(t.DataEnd)/recordHeader, 80, "an index before the footer", "%+v", *t)
	if err := f.end(); err != nil {
		e := asFault(err)
		e.off += at
		return nil, &e
	}
	return t, nil
}

// logRecord is a record's header, and what was read behind it.
type logRecord struct {
	Kind       uint8  `json:"kind"`
	Flags      uint16 `json:"flags"`
	Seq        uint64 `json:"seq"`
	TimeNs     int64  `json:"timeNs"`
	Volume     uint64 `json:"volume"`
	Off        uint64 `json:"offset"`
	Len        uint64 `json:"length"`
	Durable    uint64 `json:"durable"`
	MapEpoch   uint32 `json:"mapEpoch"`
	PayloadLen uint32 `json:"payload"`
	At         int64  `json:"at"`                // offset of the header in the file
	Control    any    `json:"control,omitempty"` // decoded payload of a control record

	sectors    uint32
	payloadSum uint32
	chain      uint32
	sums       []uint32
	payload    []byte // of a control record
	tag        []byte // of an encrypted file, lent
	tags       []byte // of the sectors, or of a control record, as an index has them
}

func parseRecord(b []byte, seed uint32, sealed bool) (*logRecord, error) {
	f := &fields{b: b}
	f.magic(logRecordMark)
	if f.err == nil {
		f.err = checkSum(88, crcMore(seed, b[:88]), binary.LittleEndian.Uint32(b[88:]))
	}
	rec := &logRecord{Kind: f.u8()}
	f.reserved(1)
	rec.Flags, rec.Seq, rec.TimeNs, rec.Volume = f.u16(), f.u64(), int64(f.u64()), f.u64()
	rec.Off, rec.Len, rec.Durable, rec.MapEpoch = f.u64(), f.u64(), f.u64(), f.u32()
	rec.PayloadLen, rec.sectors, rec.payloadSum = f.u32(), f.u32(), f.u32()
	if sealed {
		rec.tag = f.take(16)
	} else {
		f.reserved(16)
	}
	f.take(4)
	rec.chain = f.u32()
	f.rule(rec.TimeNs >= 0, 16, "a time", "%d", rec.TimeNs)
	if ok := rec.shapeOK(); f.err == nil && !ok {
		f.err = faultf(60, fmt.Sprintf("lengths that fit kind %d", rec.Kind), "%d B at %d, payload %d B, %d sectors", rec.Len, rec.Off, rec.PayloadLen, rec.sectors)
	}
	return rec, f.end()
}

func (r *logRecord) shapeOK() bool {
	switch {
	case r.Kind == kindWrite || r.Kind == kindStream:
		return (r.Kind == kindStream) == (r.Flags&flagStream != 0) && 0 < r.Len && r.Len <= maxWrite && r.Len%block.Size == 0 && r.Off%block.Size == 0 && uint64(r.PayloadLen) == r.Len && r.sectors == r.PayloadLen/block.Size && r.payloadSum == 0
	case r.Kind == kindTrim || r.Kind == kindZeroRec:
		return r.PayloadLen == 0 && r.sectors == 0 && r.payloadSum == 0
	case r.Kind >= firstControl:
		return r.PayloadLen <= maxControl && r.sectors == 0
	}
	return false
}

// size is the length in the file of the record, whose header lies at r.At.
func (r *logRecord) size() int64 { return r.payloadAt() - r.At + int64(r.PayloadLen) }

// payloadAt is where the payload begins.
func (r *logRecord) payloadAt() int64 {
	at := r.At + recordHeader + int64(r.sectors)*descSize
	if r.Kind == kindStream {
		return (at + logPage - 1) &^ (logPage - 1)
	}
	return at
}

// window reads a file through a buffer. What lies past the end of the file reads as zeroes.
type window struct {
	f   *os.File
	at  int64
	buf []byte
	n   int
}

const windowSize = 2 << 20

// get returns n bytes at off, at most windowSize, lent until the next call.
func (w *window) get(off int64, n int) ([]byte, error) {
	if w.n == 0 || off < w.at || off+int64(n) > w.at+int64(w.n) {
		if w.buf == nil {
			w.buf = make([]byte, windowSize)
		}
		got, err := w.f.ReadAt(w.buf, off)
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		clear(w.buf[got:])
		w.at, w.n = off, windowSize
	}
	return w.buf[off-w.at:][:n], nil
}
