package journal

import (
	"errors"
	"fmt"
	"hash/crc32"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// appender is the one writer of the log. Its lock is held over the write(2), against the rule that no I/O happens under a mutex: the lock
// is what gives all volumes one order, and a position must not be handed out before the bytes in front of it are written, or process death
// could leave a hole behind a reply. The write goes to the page cache; sums of payload are computed before the lock is taken.
type appender struct {
	sync.Mutex
	active   *logFile
	lastTime int64
	behind   bool // the clock is known to be behind lastTime

	// Scratch, reused.
	bypass bypass
	others atomic.Int32 // appends that are no streams' and wait for the lock

	heads []byte   // record headers and descriptors of a batch
	vec   [][]byte // what is written: heads, payloads, padding
	page  [pageSize]byte
}

// Append writes the records, with one write(2) unless the file is full, and fills in their Seq, Time, Pos and Sums. When it returns nil
// they survive the death of the process; Sync makes them survive a power loss. An error that wraps block.ErrNoSpace means that nothing was
// appended; block.ErrInvalid likewise; after any other error some of the records may be in the log. It waits when the disk is several files
// behind.
func (l *Log) Append(recs []Record) error {
	return l.append(recs, l.opts.CapBytes-l.opts.ReserveBytes, true)
}

// TryAppend is Append for a caller that must not wait: it returns block.ErrWouldBlock, having appended nothing, where Append would wait for
// the disk.
func (l *Log) TryAppend(recs []Record) error {
	return l.append(recs, l.opts.CapBytes-l.opts.ReserveBytes, false)
}

// AppendControl is Append for one record of any kind that may use the reserve: what shrinks the store must work when the log is full.
func (l *Log) AppendControl(rec *Record) error {
	one := [1]Record{*rec}
	err := l.append(one[:], l.opts.CapBytes, true)
	*rec = one[0]
	return err
}

func (l *Log) append(recs []Record, limit int64, wait bool) error {
	for i := range recs {
		if err := recs[i].prepare(); err != nil {
			return err
		}
		if r := emptyRoom(&l.opts); !r.take(&recs[i]) {
			return fmt.Errorf("append record of %d bytes to a log of %d byte files: %w", recs[i].payloadLen, l.opts.FileSize, block.ErrInvalid)
		}
	}
	if len(recs) == 0 {
		return nil
	}
	if wait && recs[0].streamBytes() > 0 {
		return l.gather(recs, limit)
	}
	return l.appendPrepared(recs, limit, wait, false)
}

// appendPrepared appends records whose sums are known.
func (l *Log) appendPrepared(recs []Record, limit int64, wait, stream bool) error {
	for {
		if !stream {
			l.app.others.Add(1)
		}
		l.app.Lock()
		if !stream {
			l.app.others.Add(-1)
		}
		behind, err := l.appendLocked(recs, limit, wait)
		l.app.Unlock()
		if behind > 0 && l.opts.Events.ClockBehind != nil {
			l.opts.Events.ClockBehind(behind)
		}
		if err != errNoNext {
			return err
		}
		if !wait {
			return fmt.Errorf("append to a full log file: %w", block.ErrWouldBlock)
		}
		if err := l.awaitNext(); err != nil {
			return err
		}
	}
}

// errNoNext says that a new file is needed and none is there yet. Whoever waits for it holds no lock: a snapshot's record still fits where a batch of writes does not.
var errNoNext = errors.New("no log file is prepared")

// appendLocked writes the records into as many files as they need. It returns by how much the clock was found to have fallen back.
func (l *Log) appendLocked(recs []Record, limit int64, wait bool) (behind time.Duration, err error) {
	if err := l.usable(); err != nil {
		return 0, err
	}
	if err := l.endSpent(l.app.active); err != nil {
		return 0, err
	}
	rolls, err := l.admit(recs, limit)
	if err != nil {
		return 0, err
	}
	if rolls == 1 && !l.canRoll() || rolls > 1 && !wait {
		return 0, errNoNext
	}
	now := l.opts.Now().UnixNano()
	behind = l.checkClock(now)
	for len(recs) > 0 {
		n := l.fit(recs)
		if n == 0 {
			if err := l.roll(); err != nil {
				return behind, err
			}
			continue
		}
		if err := l.writeBatch(recs[:n], now); err != nil {
			return behind, err
		}
		recs = recs[n:]
	}
	return behind, nil
}

// admit checks that the live bytes stay within limit, and returns how many new files the records take.
func (l *Log) admit(recs []Record, limit int64) (rolls int, err error) {
	l.st.Lock()
	live := l.st.closedBytes
	l.st.Unlock()
	stream := l.streamLive.Load()
	r := l.app.active.room()
	for i := range recs {
		stream += recs[i].streamBytes()
		if !r.take(&recs[i]) {
			live += r.capacity
			r = emptyRoom(&l.opts)
			r.take(&recs[i])
			rolls++
		}
	}
	if l.charged(live+r.end, stream) > limit {
		return 0, fmt.Errorf("append to the log, %d of %d bytes used: %w", l.charged(live+l.app.active.end, l.streamLive.Load()), limit, block.ErrNoSpace)
	}
	return rolls, nil
}

// room returns what the active file has left.
func (f *logFile) room() room {
	r := room{end: f.end, index: int64(len(f.index)), capacity: f.header.Capacity, tagLen: f.tagLen()}
	if f.spent {
		r.index = r.capacity
	}
	return r
}

// fit returns how many of the records fit into the active file.
func (l *Log) fit(recs []Record) int {
	r := l.app.active.room()
	for i := range recs {
		if !r.take(&recs[i]) {
			return i
		}
	}
	return len(recs)
}

// checkClock returns how far the clock is behind the log, once for each time that it falls behind by more than a second.
func (l *Log) checkClock(now int64) time.Duration {
	lag := time.Duration(l.app.lastTime - now)
	if lag <= time.Second {
		l.app.behind = false
		return 0
	}
	if l.app.behind {
		return 0
	}
	l.app.behind = true
	return lag
}

// writeBatch writes records that fit into the active file. Padding clears the rest of the last page, so that a recycled file's old bytes
// are gone and the kernel need not read the page first; the next append overwrites it.
func (l *Log) writeBatch(recs []Record, now int64) error {
	a := &l.app
	f := a.active
	saved, savedTime := f.contents, a.lastTime
	l.encode(recs, now)
	var err error
	if recs[0].Flags&FlagStream != 0 {
		err = l.writeAround(f, saved.end)
	} else {
		a.pad(f)
		err = l.writeThrough(f, saved.end)
	}
	clear(a.vec) // the payload is the caller's again
	if err != nil {
		// The next append overwrites what may have been written: its chain does not contain these records.
		f.contents, a.lastTime = saved, savedTime
		err = fmt.Errorf("append %d records to %s: %w", len(recs), fileSource(f.header.ID), err)
		if errors.Is(err, block.ErrNoSpace) {
			f.spent = f.vault != nil
			return err
		}
		return l.fail(err)
	}
	l.publish(f, f.end-saved.end)
	l.streamLive.Add(f.stream - saved.stream) // behind it, so that no more streams are counted than there are live bytes
	return nil
}

// pad clears the rest of the last page.
func (a *appender) pad(f *logFile) {
	if pad := roundUp(f.end) - f.end; pad > 0 {
		a.vec = append(a.vec, zeroPage[:pad])
	}
}

// endSpent ends an encrypted file in which a write has failed, before the log goes on in the next: what that write may have left must be no record. No offset is sealed twice.
func (l *Log) endSpent(f *logFile) error {
	if !f.spent {
		return nil
	}
	err := l.write(f, [][]byte{zeroPage[:recordSize]}, f.end)
	if err == nil || errors.Is(err, block.ErrNoSpace) {
		return err
	}
	return l.fail(fmt.Errorf("end %s early: %w", fileSource(f.header.ID), err))
}

// encode gives the records their place in the order and lays them out in the scratch of the appender.
func (l *Log) encode(recs []Record, now int64) {
	a := &l.app
	f := a.active
	need := 0
	for i := range recs {
		need += recordSize + descSize*len(recs[i].Sums)
	}
	if cap(a.heads) < need {
		a.heads = make([]byte, need+need/2)
	}
	heads := a.heads[:cap(a.heads)]
	a.vec = a.vec[:0]
	durable := l.durable.Load()
	for i := range recs {
		r := &recs[i]
		a.lastTime = max(a.lastTime+1, now)
		r.Seq, r.Time = f.nextSeq(), a.lastTime
		h := RecordHeader{
			Kind: r.Kind, Flags: r.Flags, Seq: r.Seq, Time: r.Time, Volume: r.Volume, Off: r.Off, Len: r.Len, Durable: durable,
			MapEpoch: r.MapEpoch, PayloadLen: uint32(r.payloadLen), Sectors: uint32(len(r.Sums)), PayloadSum: r.payloadSum,
		}
		head := heads[:recordSize+descSize*len(r.Sums)]
		heads = heads[len(head):]
		if f.vault == nil {
			encodeRecord(head, &h, r.Payload, r.Sums, f)
			if a.vec = append(a.vec, head); h.stream() {
				a.vec = append(a.vec, h.gap(f.end))
			}
			a.vec = append(a.vec, r.Payload...)
		} else {
			a.sealRecord(head, &h, r, f)
		}
		f.add(&h, r.Sums)
		r.Pos = f.lastPos
	}
}

// encodeRecord lays out header and descriptors of a record at the end of f, and computes its chain value.
func encodeRecord(head []byte, h *RecordHeader, payload [][]byte, sums []uint32, f *logFile) {
	h.encode(head, f.seed)
	descs := head[recordSize:]
	if f.vault == nil {
		clear(descs)
	}
	for i, s := range sums {
		le.PutUint32(descs[i*descSize:], s)
	}
	h.Chain = chainOf(f.chain, head, descs)
	if h.Kind >= FirstControl {
		for _, p := range payload {
			h.Chain = crc32.Update(h.Chain, castagnoli, p)
		}
	}
	le.PutUint32(head[92:], h.Chain)
}

// sealRecord lays out a record of an encrypted log at the end of f: its payload is sealed, and its sums are those of what is written.
func (a *appender) sealRecord(head []byte, h *RecordHeader, r *Record, f *logFile) {
	sealed := make([]byte, r.payloadLen)
	descs := head[recordSize:]
	if r.Kind == Write {
		at := h.payloadAt(f.end)
		f.vault.sealSectors(sealed, r.Payload, at)
		r.Sums = appendSums(r.Sums[:0], [][]byte{sealed})
		for i, s := range r.Sums {
			d := descs[i*descSize:][:descSize]
			le.PutUint32(d, s)
			copy(d[4:], f.vault.tag(at + int64(i)*sectorSize)[:])
		}
		h.encode(head, f.seed)
		h.Tag = f.vault.sealRecord(head, descs, nil, f.end)
	} else {
		sealed = sealed[:0]
		for _, p := range r.Payload {
			sealed = append(sealed, p...)
		}
		h.encode(head, f.seed)
		h.Tag = f.vault.sealRecord(head, descs, sealed, f.end)
		h.PayloadSum = crc32.Checksum(sealed, castagnoli)
	}
	encodeRecord(head, h, [][]byte{sealed}, r.Sums, f)
	a.vec = append(a.vec, head, h.gap(f.end), sealed)
}

// publish tells the others how far the log goes.
func (l *Log) publish(f *logFile, n int64) {
	st := &l.st
	st.Lock()
	st.lastSeq, st.lastPos = f.nextSeq()-1, f.lastPos
	st.nextPos = makePos(f.header.ID, f.end)
	st.appended += n
	st.unsyncedN += n
	unsynced := st.unsyncedN
	st.Unlock()
	if l.opts.SyncBytes > 0 && unsynced >= l.opts.SyncBytes {
		l.kick(l.syncKick)
	}
}
