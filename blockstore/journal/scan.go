package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// windowSize is how much of a file recovery reads at a time, in bytes. It is more than any run of bytes that has to be contiguous: a header
// with its descriptors, or with the payload of a control record.
const windowSize = 2 << 20

// reader reads a file through a window. Bytes past the end of the file read as zeroes, as they do in a file that was allocated and never
// written.
type reader struct {
	f     vfs.File
	limit int64 // nothing is read from here on
	at    int64
	win   []byte
	buf   []byte // backing of win, reused from file to file
}

// open points the reader at a file.
func (r *reader) open(f vfs.File, limit int64) { r.f, r.limit, r.at, r.win = f, limit, 0, nil }

// bytes returns n bytes at off, lent until the next call. The caller keeps off+n within the limit and n within windowSize.
func (r *reader) bytes(off, n int64) ([]byte, error) {
	if off < r.at || off+n > r.at+int64(len(r.win)) {
		size := min(windowSize, r.limit-off)
		if int64(cap(r.buf)) < size {
			r.buf = make([]byte, size)
		}
		r.win = r.buf[:size]
		r.at = off
		if err := readZeroFilled(r.f, r.win, off); err != nil {
			r.win = nil
			return nil, err
		}
	}
	return r.win[off-r.at:][:n], nil
}

// readZeroFilled is ReadFull with zeroes for what lies past the end of the file.
func readZeroFilled(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	if n == len(p) || err == nil || errors.Is(err, io.EOF) {
		clear(p[n:])
		return nil
	}
	return err
}

// scan reads the records of a file one by one, verifying headers, chain and payload, and hands each to visit. It ends at the first record
// that is not whole: where the writer stopped or where a power loss has left a hole. f.contents then says what was found. An error means
// that the file cannot be read, is of another version, or that visit failed.
func scan(f *logFile, r *reader, lastTime int64, visit func(*Replayed) error) error {
	f.start()
	r.open(f.f, f.dataLimit())
	var rec Replayed
	for f.end+recordSize <= f.dataLimit() {
		h, err := scanRecord(f, r, &rec, lastTime)
		if errors.Is(err, block.ErrCorrupt) && !errors.Is(err, errForged) {
			return nil
		}
		if err != nil {
			return inFile(f.header.ID, err)
		}
		lastTime = h.Time
		rec.Seq = f.nextSeq()
		f.add(&h, rec.Sums)
		rec.Kind, rec.Flags, rec.Volume, rec.MapEpoch = h.Kind, h.Flags, h.Volume, h.MapEpoch
		rec.Off, rec.Len, rec.Time, rec.Pos = h.Off, h.Len, h.Time, f.lastPos
		if err := visit(&rec); err != nil {
			return err
		}
	}
	return nil
}

// scanRecord reads and verifies the record at the end of f. It fills in the sums or the payload of rec.
func scanRecord(f *logFile, r *reader, rec *Replayed, lastTime int64) (h RecordHeader, err error) {
	b, err := r.bytes(f.end, recordSize)
	if err != nil {
		return h, err
	}
	if h, err = ParseRecordHeader(b, f.seed); err != nil {
		return h, err
	}
	if h.Seq != f.nextSeq() || h.Time <= lastTime || h.end(f.end) > f.dataLimit() {
		return h, errBadRecord
	}
	chain := crc32.Update(f.chain, castagnoli, b[:88])
	if f.vault == nil && h.Tag != [tagSize]byte{} {
		return h, errBadRecord
	}
	var head [recordSize]byte
	copy(head[:], b) // b is lent
	rec.Sums, rec.Payload = rec.Sums[:0], nil
	if h.Kind >= FirstControl {
		return h, scanControl(f, head[:], &h, r, rec, chain)
	}
	return h, scanSectors(f, head[:], &h, r, rec, chain)
}

// scanControl verifies the control record at the end of f; chain is the chain value so far.
func scanControl(f *logFile, head []byte, h *RecordHeader, r *reader, rec *Replayed, chain uint32) error {
	p, err := r.bytes(f.end+recordSize, int64(h.PayloadLen))
	if err != nil {
		return err
	}
	if crc32.Update(chain, castagnoli, p) != h.Chain || crc32.Checksum(p, castagnoli) != h.PayloadSum {
		return errBadRecord
	}
	rec.Payload = p
	if f.vault != nil {
		rec.Payload, err = f.vault.openRecord(head, nil, p, f.header.ID, f.end)
	}
	return err
}

// scanSectors verifies the descriptors of the record at the end of f and the sectors behind them.
func scanSectors(f *logFile, head []byte, h *RecordHeader, r *reader, rec *Replayed, chain uint32) error {
	body, n := f.end+recordSize, int64(h.Sectors)*descSize
	descs, err := r.bytes(body, n)
	if err != nil {
		return err
	}
	if crc32.Update(chain, castagnoli, descs) != h.Chain {
		return errBadRecord
	}
	if f.vault != nil {
		if _, err := f.vault.openRecord(head, descs, nil, f.header.ID, f.end); err != nil {
			return err
		}
		if h.Sectors > 0 {
			f.vault.takeTags(descs[4:], descSize, h.Sectors, h.payloadAt(f.end))
		}
	}
	for ; len(descs) > 0; descs = descs[descSize:] {
		if f.vault == nil && !allZero(descs[4:descSize]) {
			return fmt.Errorf("log record with authentication tags: %w", block.ErrVersion)
		}
		rec.Sums = append(rec.Sums, le.Uint32(descs))
	}
	for i, want := range rec.Sums {
		p, err := r.bytes(h.payloadAt(f.end)+int64(i)*sectorSize, sectorSize)
		if err != nil {
			return err
		}
		if crc32.Checksum(p, castagnoli) != want {
			return errBadRecord
		}
	}
	return nil
}
