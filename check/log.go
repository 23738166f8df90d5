package check

import (
	"bytes"
	"fmt"
	"os"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// checkLog follows the log from the file of the watermark to its end and reads every record of it.
func (r *run) checkLog() error {
	ids, others, err := listLog(r.dir)
	if err != nil {
		return err
	}
	for _, name := range others {
		r.warn(name, 0, "only log files here", "another name")
	}
	var all []*logFile
	for _, id := range ids {
		lf, file, err := openLogFile(r.dir, id)
		if err != nil {
			return err
		}
		if err := file.Close(); err != nil {
			return err
		}
		all = append(all, lf)
	}
	start := r.logStart(all)
	if start < 0 {
		return nil
	}
	live, err := r.followLog(all, start)
	if err != nil {
		return err
	}
	r.logRest(all[start:], live)
	return nil
}

// logStart returns the file that holds the watermark, or the last begun one before it; -1 if there is none.
func (r *run) logStart(all []*logFile) int {
	mark, start := uint32(r.tree.counters.Watermark>>32), -1
	for i, lf := range all {
		if lf.header != nil && !lf.unused && (mark == 0 && start < 0 || mark != 0 && lf.id <= mark) {
			start = i
		}
		if lf.headErr != nil && (lf.id >= mark) {
			r.noteErr(lf.path, lf.headErr)
		}
	}
	if start < 0 {
		r.fail("log", 0, fmt.Sprintf("file %08x, where the log begins", max(mark, 1)), "none that can be read")
		return -1
	}
	h := all[start].header
	r.expect(mark != 0 || h.PrevID == 0, all[start].path, 88, "the first file of the log", fmt.Sprintf("one behind %08x", h.PrevID))
	return start
}

// followLog reads file after file; the next is the one whose header names the end of the one before.
func (r *run) followLog(all []*logFile, start int) (live []*logFile, err error) {
	last := int64(0)
	for lf := all[start]; lf != nil; {
		if err := r.progress(lf.path); err != nil {
			return nil, err
		}
		if err := r.readLogFile(lf, last); err != nil {
			return nil, err
		}
		live = append(live, lf)
		last = max(last, lf.maxTime)
		r.logEnd = lf.header.FirstSeq + lf.records - 1
		next := successor(all, lf)
		r.checkSeal(lf, next)
		lf = next
	}
	return live, nil
}

func successor(all []*logFile, lf *logFile) *logFile {
	for _, c := range all {
		if c.header == nil || c.unused || c.id <= lf.id {
			continue
		}
		h := c.header
		if h.PrevID != lf.id || h.PrevChain != lf.chain || h.BootEpoch < lf.header.BootEpoch {
			continue
		}
		if h.FirstSeq == lf.header.FirstSeq+lf.records || h.FirstSeq > lf.header.FirstSeq+lf.records && h.BootEpoch > lf.header.BootEpoch {
			return c
		}
	}
	return nil
}

// readLogFile reads every record of a file and compares footer and index with them.
func (r *run) readLogFile(lf *logFile, lastTime int64) error {
	file, err := os.Open(r.dir + string(os.PathSeparator) + lf.path)
	if err != nil {
		return err
	}
	defer file.Close()
	h := lf.header
	r.expect(h.StoreID == r.super.StoreID, lf.path, 16, "store "+r.super.StoreID.String(), h.StoreID)
	r.expect(h.BootEpoch <= r.super.BootEpoch, lf.path, 40, fmt.Sprintf("a boot epoch up to %d", r.super.BootEpoch), h.BootEpoch)
	r.expect(h.OwnerEpoch <= r.super.OwnerEpoch, lf.path, 48, fmt.Sprintf("an owner epoch up to %d", r.super.OwnerEpoch), h.OwnerEpoch)
	r.expect((h.KeyID != 0) == r.sealed(), lf.path, 36, "a key id if, and only if, the store is encrypted", h.KeyID)
	page := make([]byte, logPage)
	if r.ring != nil && h.KeyID != 0 {
		if err := readZeroFilled(file, page, 0); err != nil {
			return err
		}
		if lf.keys, err = r.ring.logKeys(h.KeyID, page); err != nil {
			r.noteErr(lf.path, err)
		}
	}
	var index *indexReader
	if t := lf.footer; t != nil {
		b := make([]byte, t.IndexLen) // bounded by the capacity of the file
		if err := readZeroFilled(file, b, t.IndexOff); err != nil {
			return err
		}
		if r.expect(crcMore(h.seed, b) == t.IndexSum, lf.path, t.IndexOff, fmt.Sprintf("an index of crc %08x", t.IndexSum), fmt.Sprintf("%08x", crcMore(h.seed, b))) {
			index = &indexReader{b: b}
		}
		if lf.keys != nil {
			at := h.Capacity - logPage
			if err := readZeroFilled(file, page, at); err != nil {
				return err
			}
			r.expect(lf.keys.footer(page, b), lf.path, at+96, "the authentication tag of footer and index", "another")
		}
	}
	err = lf.scan(file, lastTime, func(rec *logRecord) error {
		r.rep.Totals.LogRecords++
		r.rep.Totals.LogBytes += rec.size()
		r.checkRecord(lf, rec)
		if index == nil {
			return nil
		}
		if err := index.match(rec); err != nil {
			f := asFault(err)
			r.fail(lf.path, lf.footer.IndexOff+f.off, f.want, f.got)
			index = nil
		}
		return r.ctx.Err()
	})
	if err != nil {
		return err
	}
	r.rep.Totals.LogFiles++
	r.compareFooter(lf, index)
	return nil
}

// checkRecord checks what a record says by itself and of volumes.
func (r *run) checkRecord(lf *logFile, rec *logRecord) {
	if rec.Kind < firstControl {
		r.expect(rec.Flags == 0 || rec.Kind == kindWrite && rec.Flags == flagMoved || rec.Kind == kindStream && rec.Flags == flagStream, lf.path, rec.At+6, "no flags, or that of a write that repeats what was there", fmt.Sprintf("%04x", rec.Flags))
		r.expect(rec.Kind != kindStream || r.super.Incompat&superStreams != 0, lf.path, rec.At+4, "no such record without the feature in the superblock", fmt.Sprint("kind ", rec.Kind))
		r.expect(rec.Off+rec.Len >= rec.Off && rec.Off+rec.Len <= block.MaxVolumeSize, lf.path, rec.At+32, "a range below 8 EiB", fmt.Sprintf("%d+%d", rec.Off, rec.Len))
		return
	}
	r.expect(rec.Kind < opAddBitmap || r.super.ROCompat&superBitmaps != 0, lf.path, rec.At+4, "no such record without the feature in the superblock", fmt.Sprint("kind ", rec.Kind))
	r.expect(rec.Kind < opRenameSnapshot || rec.Kind >= opAddBitmap || r.super.Incompat&superSnapshots != 0, lf.path, rec.At+4, "no such record without the feature in the superblock", fmt.Sprint("kind ", rec.Kind))
	if r.sealed() && lf.keys == nil {
		return
	}
	if _, err := parseControl(rec); err != nil {
		f := asFault(err)
		r.fail(lf.path, rec.At+recordHeader+f.off, f.want, f.got)
	}
}

// compareFooter compares the records of a sealed file with its footer.
func (r *run) compareFooter(lf *logFile, index *indexReader) {
	t := lf.footer
	if t == nil {
		return
	}
	if lf.end != t.DataEnd || lf.records != t.Records {
		f := fault{off: lf.end, want: "a record"}
		if lf.stop != nil {
			f = asFault(lf.stop)
		}
		r.fail(lf.path, f.off, fmt.Sprintf("%s; the footer has %d records up to %d", f.want, t.Records, t.DataEnd), fmt.Sprintf("%s; only %d up to %d are whole", f.got, lf.records, lf.end))
		return
	}
	base := lf.header.Capacity - logPage
	r.expect(t.Chain == lf.chain, lf.path, base+88, fmt.Sprintf("chain %08x", lf.chain), fmt.Sprintf("%08x", t.Chain))
	r.expect(t.MinTime == lf.minTime && t.MaxTime == lf.maxTime, lf.path, base+48, fmt.Sprint("times ", lf.minTime, " to ", lf.maxTime), fmt.Sprint(t.MinTime, " to ", t.MaxTime))
	if index != nil {
		r.expect(index.at == len(index.b), lf.path, t.IndexOff+int64(index.at), "the end of the index", fmt.Sprintf("%d B more", len(index.b)-index.at))
	}
}

// checkSeal finds files that must be sealed and are not: all of a store that was closed in order, and all that a later run follows.
func (r *run) checkSeal(lf, next *logFile) {
	if lf.footer != nil || !r.rep.Clean && (next == nil || next.header.BootEpoch == lf.header.BootEpoch) {
		return
	}
	f := asFault(lf.footErr)
	r.fail(lf.path, f.off, "a sealed file: "+f.want, f.got)
}

// logRest looks behind the end of the log for proof that more of it had been durable, and at what files there are that do not belong to it.
func (r *run) logRest(rest, live []*logFile) {
	tail := live[len(live)-1]
	for _, lf := range rest {
		if lf.header == nil || lf.unused || slices.Contains(live, lf) {
			continue
		}
		claim := lf.header.Durable
		if lf.footer != nil {
			claim = max(claim, lf.footer.LastSeq)
		}
		switch {
		case claim > r.logEnd:
			r.lostEnd(tail, claim)
		case r.rep.Clean:
			r.fail(lf.path, 88, fmt.Sprintf("a file that follows %08x", tail.id), "one that does not")
		default:
			r.warn(lf.path, 88, fmt.Sprintf("a file that follows %08x", tail.id), "one that does not; the next start removes it")
		}
	}
	if r.rep.Clean {
		h := tail.header
		r.expect(h.BootEpoch == r.super.BootEpoch && h.OwnerEpoch == r.super.OwnerEpoch, tail.path, 40,
			fmt.Sprintf("the last file of boot epoch %d, owner epoch %d, which closed the store", r.super.BootEpoch, r.super.OwnerEpoch), fmt.Sprint(h.BootEpoch, ", ", h.OwnerEpoch))
	}
	r.checkWatermark(rest, tail)
	if tail.footer == nil {
		r.tailClaims(tail)
	}
}

// checkWatermark checks that replay begins before the end of the log. The header of the file that the watermark names may be lost with a power loss; the file, or a later
// one, is there.
func (r *run) checkWatermark(rest []*logFile, tail *logFile) {
	mark := r.tree.counters.Watermark
	id, off := uint32(mark>>32), int64(uint32(mark))
	ok := id < tail.id || id == tail.id && off <= tail.end || !r.rep.Clean && rest[len(rest)-1].id >= id
	r.expect(ok, countersUnit, 16, fmt.Sprintf("a watermark before the end of the log at %08x:%d", tail.id, tail.end), fmt.Sprintf("%08x:%d", id, off))
}

func (r *run) lostEnd(tail *logFile, claim uint64) {
	f := fault{off: tail.end, got: "the end of the log"}
	if tail.stop != nil {
		f = asFault(tail.stop)
	}
	r.fail(tail.path, f.off, fmt.Sprintf("records up to %d, which were durable", claim), fmt.Sprintf("the end of the log after record %d: %s", r.logEnd, f.got))
}

// tailClaims searches what lies behind the last whole record for headers of records of this file's life. Each says which record was durable when it was written.
func (r *run) tailClaims(tail *logFile) {
	file, err := os.Open(r.dir + string(os.PathSeparator) + tail.path)
	if err != nil {
		r.noteErr(tail.path, err)
		return
	}
	defer file.Close()
	w, limit, claim := &window{f: file}, tail.header.Capacity-logPage, uint64(0)
	for off := tail.end; off+recordHeader <= limit; {
		b, err := w.get(off, int(min(windowSize, limit-off)))
		if err != nil {
			r.noteErr(tail.path, err)
			return
		}
		for at := 0; ; at++ {
			i := bytes.Index(b[at:], []byte(logRecordMark))
			if i < 0 || at+i+recordHeader > len(b) {
				break
			}
			at += i
			if rec, err := parseRecord(b[at:at+recordHeader], tail.header.seed, tail.header.KeyID != 0); err == nil {
				claim = max(claim, rec.Durable)
			}
		}
		off += int64(max(1, len(b)-recordHeader+1))
	}
	if claim > r.logEnd {
		r.lostEnd(tail, claim)
	}
}
