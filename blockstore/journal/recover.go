package journal

import (
	"fmt"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// recovery walks the files of a log from the one that holds the replay position to the end of the log.
type recovery struct {
	opts   Options
	from   Pos
	replay func(*Replayed) error

	places []*place

	all   []*candidate
	read  reader
	index []byte
	lend  entries

	// Results.
	live      []*logFile // accepted files, sealed
	spares    []*logFile
	surplus   []*candidate
	nextSeq   uint64
	nextID    uint32
	lastTime  int64
	lastPos   Pos
	prevID    uint32
	prevChain uint32
	sum       Recovery
}

// run recovers. On an error closeAll must be called.
func (r *recovery) run() (err error) {
	if r.all, err = listCandidates(r.opts, r.places); err != nil {
		return err
	}
	r.nextID = r.from.File() + 1
	for _, c := range r.all {
		r.nextID = max(r.nextID, c.id+1)
	}
	start, err := r.start()
	if err != nil {
		return err
	}
	if start >= 0 {
		if err := r.walk(start); err != nil {
			return err
		}
		if err := r.checkEnd(start); err != nil {
			return err
		}
		if err := r.sealTail(); err != nil {
			return err
		}
		if err := r.retain(start); err != nil {
			return err
		}
	}
	r.sort(start)
	return nil
}

// start chooses the file to begin with: the one that holds the replay position, or the one before it if that file was never begun. It
// returns -1 for a log that does not exist yet.
func (r *recovery) start() (int, error) {
	best := -1
	for i, c := range r.all {
		if c.state == valid && (r.from == 0 && best < 0 || r.from != 0 && c.id <= r.from.File()) {
			best = i
		}
		if c.state == garbled && (c.id == r.from.File() || r.from == 0 && best < 0) {
			if err := r.lost(&block.CorruptError{Source: fileSource(c.id), Offset: 0, Want: "a file header", Got: "other bytes"}); err != nil {
				return -1, err
			}
		}
	}
	switch {
	case best < 0 && r.from != 0:
		return -1, r.lost(&block.CorruptError{Source: fileSource(r.from.File()), Offset: r.from.Offset(), Want: "the beginning of the log", Got: "no file"})
	case best >= 0 && r.from == 0 && r.all[best].header.PrevID != 0:
		want := fmt.Sprintf("the beginning of the log in file %08x or before", r.all[best].header.PrevID)
		return best, r.lost(&block.CorruptError{Source: fileSource(r.all[best].id), Offset: 88, Want: want, Got: "no file"})
	}
	return best, nil
}

// lost reports that durable records are gone: the error, or nil if the owner accepts it.
func (r *recovery) lost(err error) error {
	if !r.opts.AcceptLoss {
		return err
	}
	if r.sum.Lost == nil {
		r.sum.Lost = err
	}
	return nil
}

// walk replays file after file. The next file is the one whose header names the end of the one before.
func (r *recovery) walk(start int) error {
	cur := r.all[start]
	r.nextSeq = cur.header.FirstSeq
	created := int64(0)
	ahead := warm(r.validFrom(start))
	defer ahead.stop()
	for cur != nil {
		ahead.next()
		if err := r.replayFile(cur); err != nil {
			return err
		}
		cur.state = accepted
		r.live = append(r.live, cur.logFile)
		r.nextSeq = cur.nextSeq()
		r.lastTime = max(r.lastTime, cur.maxTime)
		if cur.records > 0 {
			r.lastPos = cur.lastPos
		}
		created = max(created, cur.header.Created)
		r.prevID, r.prevChain = cur.id, cur.chain
		cur = r.successor(cur)
	}
	r.lastTime = max(r.lastTime, created) // which is not before any record of the files that are gone
	r.sum.Files, r.sum.LastSeq, r.sum.LastPos = len(r.live), r.nextSeq-1, r.lastPos
	return nil
}

// validFrom returns the files that may be replayed, beginning with one of them.
func (r *recovery) validFrom(start int) (files []*logFile) {
	for _, c := range r.all[start:] {
		if c.state == valid {
			files = append(files, c.logFile)
		}
	}
	return files
}

// successor returns the file that continues cur, or nil. After AcceptLoss sequence numbers may have a gap between two runs, never
// elsewhere.
func (r *recovery) successor(cur *candidate) *candidate {
	for _, c := range r.all {
		if c.state != valid || c.id <= cur.id || c.header.PrevID != cur.id || c.header.PrevChain != cur.chain || c.header.BootEpoch < cur.header.BootEpoch {
			continue
		}
		if c.header.FirstSeq == r.nextSeq || c.header.FirstSeq > r.nextSeq && c.header.BootEpoch > cur.header.BootEpoch {
			return c
		}
	}
	return nil
}

// replayFile reads one file by its index, or record by record if it has none that is valid.
func (r *recovery) replayFile(c *candidate) error {
	if err := r.choose(c); err != nil {
		return err
	}
	ft, sealed, err := readFooter(c.logFile)
	if err != nil {
		return err
	}
	if sealed {
		index, ok, err := readIndex(c.logFile, &ft, r.index)
		if err != nil {
			return err
		}
		r.index = index
		if ok {
			c.sealed = true
			for _, k := range c.copies {
				if k.state == valid && k.seed == c.seed && k.f != c.f {
					c.further = append(c.further, k.f)
				}
			}
			defer func() { c.further = nil }()
			return replaySealed(c.logFile, &ft, index, r.from, &r.lend, r.deliver)
		}
	}
	r.sum.Scanned++
	if err := scan(c.logFile, &r.read, r.lastTime, r.deliver); err != nil {
		return err
	}
	if sealed && c.nextSeq() != ft.LastSeq+1 {
		return r.lost(endTooEarly(c.logFile, ft.LastSeq))
	}
	return nil
}

// retain keeps the files before the one that replay began with, back to the one that holds Options.RetainFrom, as long as each is sealed and ends where the next one says.
// Nobody needs them now, so what is wrong with them is no error.
func (r *recovery) retain(start int) error {
	var kept []*logFile
	next := r.all[start]
	for i := start - 1; i >= 0 && r.opts.RetainFrom != 0 && next.id > r.opts.RetainFrom.File(); i-- {
		c := r.all[i]
		if c.state != valid || c.id != next.header.PrevID {
			continue
		}
		if err := r.choose(c); err != nil {
			return err
		}
		ft, ok, err := readFooter(c.logFile)
		if err != nil {
			return err
		}
		if !ok || ft.FinalChain != next.header.PrevChain {
			break
		}
		stream := int64(0)
		if c.vault != nil || r.opts.StreamBytes > 0 {
			// The index has the tags of the sectors, and says what is a stream.
			if !r.readRetained(c, &ft) {
				break
			}
			stream = c.stream
		}
		c.state, c.sealed = accepted, true
		c.contents = contents{end: ft.DataEnd, chain: ft.FinalChain, records: ft.Records, minTime: ft.MinTime, maxTime: ft.MaxTime, stream: stream}
		kept = append(kept, c.logFile)
		next = c
	}
	slices.Reverse(kept)
	r.live = append(kept, r.live...)
	return nil
}

// readRetained reads the index of a sealed file, and reports whether it is sound.
func (r *recovery) readRetained(c *candidate, ft *Footer) bool {
	index, ok, err := readIndex(c.logFile, ft, r.index)
	r.index = index
	return ok && err == nil && replaySealed(c.logFile, ft, index, makePos(c.id, ft.DataEnd), &r.lend, func(*Replayed) error { return nil }) == nil
}

// deliver hands a record to the owner if it asked for it.
func (r *recovery) deliver(rec *Replayed) error {
	if rec.Pos < r.from {
		return nil
	}
	r.sum.Records++
	return r.replay(rec)
}

// sealTail makes durable what was replayed, since after the death of a process it may be in the page cache only, and seals it, so that the
// next recovery ends these files where this one did.
func (r *recovery) sealTail() error {
	for _, f := range r.live {
		if f.sealed {
			continue
		}
		if err := vfs.DataSync(f.f); err != nil {
			return fmt.Errorf("sync %s: %w", fileSource(f.header.ID), err)
		}
		// In one directory only: the others are given what it has (copies.go).
		if err := sealFile(f, func(b [][]byte, off int64) error { return vfs.WriteVec(f.f, b, off) }, func() error { return vfs.DataSync(f.f) }); err != nil {
			return err
		}
		f.sealed, f.index = true, nil
	}
	return nil
}

// sort keeps as spares some of the files before the beginning of the log and of those never begun, and leaves the rest to discard.
func (r *recovery) sort(start int) {
	for i, c := range r.all {
		switch {
		case c.state == accepted:
		case (i < start || c.state == unused) && len(r.spares) < maxSpares && c.size <= r.opts.FileSize:
			r.spares = append(r.spares, c.logFile)
		default:
			if i > start && c.state != unused {
				r.sum.Rejected++
			}
			r.surplus = append(r.surplus, c)
		}
	}
}

// discard removes the files that belong to nothing. It runs after the new active file is durable, so that at any time the log reaches to or
// past the file that the owner wants to replay from, even if that one is rejected here.
func (r *recovery) discard() error {
	for _, c := range r.surplus {
		c.closeFiles()
		for _, k := range c.copies {
			if err := r.opts.FS.Remove(k.path); err != nil && (len(r.places) == 1 || !vfs.IsNotExist(err)) {
				return fmt.Errorf("remove %s: %w", fileSource(c.id), err)
			}
		}
	}
	if len(r.surplus) == 0 {
		return nil
	}
	for _, p := range r.places {
		if len(r.places) > 1 && !p.is(placeIn) {
			continue
		}
		if err := vfs.SyncDir(r.opts.FS, p.dir); err != nil {
			return err
		}
	}
	return nil
}

// closeAll closes every file.
func (r *recovery) closeAll() {
	for _, c := range r.all {
		c.closeFiles()
	}
}

// closeSurplus closes the files that discard has not come to.
func (r *recovery) closeSurplus() {
	for _, c := range r.surplus {
		c.closeFiles()
	}
}
