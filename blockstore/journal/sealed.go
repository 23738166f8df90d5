package journal

import (
	"crypto/hmac"
	"fmt"
	"hash/crc32"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// readFooter returns the footer of a sealed file. ok is false if there is none that is valid; err is a failure to read or another version.
func readFooter(f *logFile) (ft Footer, ok bool, err error) {
	page := make([]byte, pageSize)
	if err := readZeroFilled(f.source(), page, f.dataLimit()); err != nil {
		return ft, false, inFile(f.header.ID, err)
	}
	ft, err = ParseFooter(page, &f.header, f.seed)
	if _, corrupt := err.(*block.CorruptError); corrupt {
		return ft, false, nil
	}
	return ft, err == nil, inFile(f.header.ID, err)
}

// index reads and checks the index that ft announces, into buf if it is large enough. ok is false if it is damaged.
func readIndex(f *logFile, ft *Footer, buf []byte) (index []byte, ok bool, err error) {
	if int64(cap(buf)) < ft.IndexLen {
		buf = make([]byte, ft.IndexLen+ft.IndexLen/4) // bounded by the capacity of the file
	}
	buf = buf[:ft.IndexLen]
	if err := readZeroFilled(f.source(), buf, ft.IndexOff); err != nil {
		return buf, false, inFile(f.header.ID, err)
	}
	if crc32.Update(f.seed, castagnoli, buf) != ft.IndexSum {
		return buf, false, nil
	}
	want := *ft
	if f.sign(&want, buf, make([]byte, pageSize)); !hmac.Equal(want.Tag[:], ft.Tag[:]) {
		return buf, false, forged(f.header.ID, f.dataLimit()+footerBound)
	}
	return buf, true, nil
}

// replaySealed hands the records of a sealed file at or after from to visit, reading its index and the payload of control records only, and
// sets f.contents. The index has passed its checksum, so anything wrong in it is an error.
func replaySealed(f *logFile, ft *Footer, index []byte, from Pos, lend *entries, visit func(*Replayed) error) error {
	*lend = entries{
		rest: index, file: f.header.ID, at: pageSize, limit: ft.DataEnd, seq: ft.FirstSeq,
		rec: Replayed{Sums: lend.rec.Sums}, payload: lend.payload, vault: f.vault,
	}
	e := lend
	for range ft.Records {
		if !e.next() {
			return inFile(f.header.ID, damaged("an index entry", ft.IndexOff+ft.IndexLen-int64(len(e.rest))))
		}
		if e.rec.Pos < from {
			continue
		}
		if e.payloadLen > 0 && e.rec.Kind >= FirstControl {
			if err := e.readPayload(f); err != nil {
				return err
			}
		}
		if err := visit(&e.rec); err != nil {
			return err
		}
	}
	if len(e.rest) != 0 || e.at != ft.DataEnd || e.time != ft.MaxTime {
		return inFile(f.header.ID, damaged("an index that fits its footer", ft.IndexOff))
	}
	f.contents = contents{
		end: ft.DataEnd, chain: ft.FinalChain, records: ft.Records, minTime: ft.MinTime, maxTime: ft.MaxTime, lastPos: e.rec.Pos, stream: e.stream,
	}
	return nil
}

// readPayload reads the payload of the control record that e is at: from another copy, where the one that is read has lost it, or has one that nobody with the key wrote.
func (e *entries) readPayload(f *logFile) error {
	err := e.payloadFrom(f, f.f)
	for _, other := range f.further {
		if err == nil {
			return nil
		}
		if e.payloadFrom(f, other) == nil {
			return nil
		}
	}
	return err
}

func (e *entries) payloadFrom(f *logFile, src vfs.File) error {
	if cap(e.payload) < int(e.payloadLen) {
		e.payload = make([]byte, e.payloadLen)
	}
	p := e.payload[:e.payloadLen]
	if err := vfs.ReadFull(src, p, e.rec.Pos.Offset()); err != nil {
		return inFile(f.header.ID, fmt.Errorf("read control record at %d: %w", e.rec.Pos.Offset(), err))
	}
	if crc32.Checksum(p, castagnoli) != e.payloadSum {
		return inFile(f.header.ID, damaged("payload that matches its sum", e.rec.Pos.Offset()))
	}
	e.rec.Payload = p
	if f.vault == nil {
		return nil
	}
	r := &e.rec
	h := RecordHeader{Kind: r.Kind, Flags: r.Flags, Seq: r.Seq, Time: r.Time, Volume: r.Volume, Off: r.Off, Len: r.Len, MapEpoch: r.MapEpoch, PayloadLen: e.payloadLen, Tag: e.tag}
	head := make([]byte, recordSize)
	h.encode(head, f.seed)
	var err error
	r.Payload, err = f.vault.openRecord(head, nil, p, f.header.ID, r.Pos.Offset()-recordSize)
	return err
}
