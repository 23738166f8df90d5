package journal

import (
	"bytes"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// A torn tail and a rotten one look alike at the first bad record. What tells them apart is that headers carry the highest sequence number
// that was durable when they were written: if one behind the end of the log names a record that is missing, that record was synced and is
// lost.

// checkEnd looks for such evidence behind the end of the log. It cannot see the loss of the very last records that were synced, after which
// nothing was written.
func (r *recovery) checkEnd(start int) error {
	end := r.nextSeq - 1
	tail := r.live[len(r.live)-1]
	claim := uint64(0)
	if !tail.sealed {
		c, err := r.claims(tail, tail.end)
		if err != nil {
			return err
		}
		claim = c
	}
	reached := false // a file later than the one asked for
	for _, c := range r.all[start+1:] {
		switch c.state {
		case garbled:
			if err := r.lost(&block.CorruptError{Source: fileSource(c.id), Offset: 0, Want: "a file header", Got: "other bytes"}); err != nil {
				return err
			}
		case valid:
			n, err := r.fileClaims(c.logFile)
			if err != nil {
				return err
			}
			claim = max(claim, n)
		}
		reached = reached || c.id >= r.from.File()
	}
	if claim > end {
		return r.lost(endTooEarly(tail, claim))
	}
	if r.all[start].id < r.from.File() && !reached {
		return r.lost(&block.CorruptError{Source: fileSource(r.from.File()), Offset: r.from.Offset(), Want: "the position to replay from", Got: "no file"})
	}
	return nil
}

// endTooEarly says that the log ends in f although a later record was durable.
func endTooEarly(f *logFile, claim uint64) error {
	return &block.CorruptError{
		Source: fileSource(f.header.ID), Offset: f.end, Want: fmt.Sprintf("records up to %d, which were synced", claim),
		Got: fmt.Sprintf("the end of the log after record %d", f.nextSeq()-1),
	}
}

// fileClaims returns the highest sequence number that a file outside the log proves to have been durable.
func (r *recovery) fileClaims(f *logFile) (uint64, error) {
	claim, err := r.claims(f, pageSize)
	if err != nil {
		return 0, err
	}
	ft, sealed, err := readFooter(f)
	if err != nil {
		return 0, err
	}
	if sealed {
		claim = max(claim, ft.LastSeq)
	}
	return max(claim, f.header.Durable), nil
}

// claims searches a file from off on for headers of records, which need not be part of a chain, and returns the highest sequence number
// that they call durable.
func (r *recovery) claims(f *logFile, off int64) (claim uint64, err error) {
	magic := le.AppendUint32(nil, recordMagic)
	r.read.open(f.f, f.dataLimit())
	for off+recordSize <= f.dataLimit() {
		win, err := r.read.bytes(off, min(windowSize, f.dataLimit()-off))
		if err != nil {
			return 0, inFile(f.header.ID, err)
		}
		at := 0
		for {
			i := bytes.Index(win[at:], magic)
			if i < 0 || at+i+recordSize > len(win) {
				break
			}
			at += i
			// The seed in the checksum keeps out the records of an earlier life of the file.
			if h, err := ParseRecordHeader(win[at:], f.seed); err == nil {
				claim = max(claim, h.Durable)
			}
			at++
		}
		off += int64(max(len(win)-recordSize+1, 1))
	}
	return claim, nil
}
