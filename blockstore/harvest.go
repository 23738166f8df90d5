package blockstore

import (
	"context"
	"fmt"
	"strings"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/blockstore/journal"
)

// rootPrefix begins the names of roots. They are snapshots that no user sees.
const rootPrefix = ".history-"

// harvest copies what the log has up to seq, which is durable, into the histories of its volumes; of the file that is being filled only with tail. What cannot be copied becomes a gap of the volumes that it may concern.
// h.work is held.
func (h *historian) harvest(ctx context.Context, seq uint64, tail bool) error {
	for {
		more, err := h.harvestFile(ctx, seq, tail)
		if err != nil || !more {
			return err
		}
	}
}

// harvestFile is harvest up to the end of the first file that has something to copy, so that the log gets each back as soon as it is copied, however many wait. more says that another follows.
func (h *historian) harvestFile(ctx context.Context, seq uint64, tail bool) (more bool, err error) {
	h.mu.Lock()
	next, after, saved := h.mu.nextFile, h.mu.seq, h.mu.saved
	h.mu.Unlock()
	p := &copying{h: h, volumes: map[block.VolumeID]*volumeHistory{}, cuts: map[block.VolumeID][]uint64{}, settled: map[block.VolumeID]uint64{}}
	for _, vh := range h.all() {
		if vh.v == nil || vh.stream == nil {
			continue // it is gone, and its history with the next step
		}
		p.volumes[vh.id] = vh
		for _, n := range h.rootsOf(vh.v) {
			p.cuts[vh.id] = append(p.cuts[vh.id], n.closed)
			if n.closed <= after {
				p.settled[vh.id] = n.closed
			}
		}
	}
	done := after
	files := h.s.log.LiveFiles()
	for i, f := range files {
		closed := i+1 < len(files)
		if f.ID < next {
			continue
		}
		if !f.Sealed && !tail {
			break // it will be in a moment, and its index costs less than its records
		}
		to := seq
		if closed {
			to = min(seq, files[i+1].FirstSeq-1)
		}
		if to > after {
			if err := h.s.log.Records(f.ID, after, to, p.record); err != nil {
				p.gapAll(err)
			}
			done = max(done, to)
		}
		if !closed || to < files[i+1].FirstSeq-1 || ctx.Err() != nil {
			break // the rest is not durable yet
		}
		next, more = f.ID+1, true
		break
	}
	if done == after && !p.any && next == saved {
		return false, nil
	}
	p.finish(done)
	h.mu.Lock()
	h.mu.seq, h.mu.nextFile = done, next
	for _, vh := range p.volumes {
		vh.lastSeq = vh.stream.LastSeq()
	}
	h.mu.Unlock()
	if err := h.save(); err != nil || next == saved {
		return false, err
	}
	defer h.s.space.released()
	return more, h.s.letLogGo(h.s.watermark())
}

// copying is one pass over new records.
type copying struct {
	h       *historian
	volumes map[block.VolumeID]*volumeHistory
	cuts    map[block.VolumeID][]uint64 // roots that records come behind, oldest first: files end there, and go with them
	settled map[block.VolumeID]uint64   // the last root before which all was copied earlier: what lies before it may be thinned already
	any     bool
}

// record copies one record. Its error ends the pass: the log could not be read.
func (p *copying) record(r *journal.Replayed) error {
	if r.Kind == opSnapshotSet {
		return p.set(r)
	}
	vh := p.begin(r.Volume, r)
	if vh == nil {
		return nil
	}
	if r.Kind == journal.Write {
		return p.write(vh, r)
	}
	rec, ok, err := historyRecord(r)
	if err != nil {
		return err
	}
	if ok {
		p.append(vh, &rec)
	}
	return nil
}

// begin returns the history that takes a record, ready for it, or nil.
func (p *copying) begin(id block.VolumeID, r *journal.Replayed) *volumeHistory {
	vh := p.volumes[id]
	if vh == nil || vh.suspended || r.Seq <= max(vh.since, vh.lastSeq) || r.Flags&flagMoved != 0 {
		return nil
	}
	p.any = true
	err := p.barriers(vh, r.Seq-1)
	if err == nil {
		err = p.cut(vh, r.Seq)
	}
	if err != nil {
		p.h.gap(vh, err)
		return nil
	}
	return vh
}

func (p *copying) append(vh *volumeHistory, rec *history.Record) {
	if err := vh.stream.Append(rec); err != nil {
		p.h.gap(vh, err)
	}
}

// set copies a record that took snapshots of several volumes: to each it is one of its own.
func (p *copying) set(r *journal.Replayed) error {
	o, err := decodeOp(r.Kind, r.Volume, r.Payload)
	if err != nil {
		return fmt.Errorf("record %d: %w", r.Seq, err)
	}
	for _, m := range o.Set.Members {
		if vh := p.begin(m.Volume, r); vh != nil && !strings.HasPrefix(m.Name, ".") {
			p.append(vh, &history.Record{Kind: history.Snapshot, Seq: r.Seq, Time: r.Time, Label: m.Name})
		}
	}
	return nil
}

// cut ends the file that is being filled if a root lies between what is in it and a record.
func (p *copying) cut(vh *volumeHistory, seq uint64) error {
	cuts, crossed := p.cuts[vh.id], false
	for len(cuts) > 0 && cuts[0] <= seq {
		if cuts[0] > vh.stream.LastSeq() {
			crossed = true
			p.h.restart(&vh.stretch, cuts[0])
		}
		cuts = cuts[1:]
	}
	p.cuts[vh.id] = cuts
	if !crossed {
		return nil
	}
	return vh.stream.Roll()
}

// write copies a write, in parts of a frame.
func (p *copying) write(vh *volumeHistory, r *journal.Replayed) error {
	p.h.touch(&vh.stretch, r.Off, r.Len)
	for at := uint64(0); at < r.Len; {
		n := min(r.Len-at, history.FrameRaw)
		first := at / block.Size
		sums := r.Sums[first : first+n/block.Size]
		rec := history.Record{Kind: history.Write, Seq: r.Seq, Time: r.Time, MapEpoch: r.MapEpoch, Off: r.Off + at, Len: n, Part: at+n < r.Len}
		if p.h.s.keys == nil { // else they are those of what is sealed
			rec.Sums = sums
		}
		var unread error // the log
		err := vh.stream.AppendRead(&rec, func(buf []byte) error {
			unread = p.h.readLog(buf, r.Pos+journal.Pos(at), sums)
			return unread
		})
		if unread != nil {
			return unread
		}
		if err != nil {
			p.h.gap(vh, err)
			return nil
		}
		at += n
	}
	return nil
}

// readLog reads sectors out of the mapped log, in pieces that are worth it.
func (h *historian) readLog(p []byte, pos journal.Pos, sums []uint32) error {
	const piece = 64 << 10
	if len(p) >= journal.AroundLeast && h.s.log.Streamed(pos) {
		return h.s.log.ReadAround(p, pos, sums)
	}
	for len(p) > 0 {
		n := min(len(p), piece)
		if err := h.s.log.ReadMapped(p[:n], pos, sums[:n/block.Size]); err != nil {
			return err
		}
		p, pos, sums = p[n:], pos+journal.Pos(n), sums[n/block.Size:]
	}
	return nil
}

// historyRecord is what history keeps of a record without payload; ok is false for one that it does not need.
func historyRecord(r *journal.Replayed) (rec history.Record, ok bool, err error) {
	rec = history.Record{Kind: history.Kind(r.Kind), Seq: r.Seq, Time: r.Time, MapEpoch: r.MapEpoch, Off: r.Off, Len: r.Len}
	switch r.Kind {
	case journal.Trim, journal.Zero, opRollback:
		return rec, true, nil
	case opResize, opSnapshot:
		o, err := decodeOp(r.Kind, r.Volume, r.Payload)
		if err != nil {
			return rec, false, fmt.Errorf("record %d: %w", r.Seq, err)
		}
		rec.Size, rec.Label = o.Size, o.Name
		return rec, !strings.HasPrefix(o.Name, "."), nil
	}
	return rec, false, nil
}

// barriers writes down the flushes of a volume up to seq.
func (p *copying) barriers(vh *volumeHistory, seq uint64) error {
	for _, b := range vh.barriers.take(seq) {
		if b.seq <= vh.since || b.seq < vh.stream.LastSeq() || b.seq < p.settled[vh.id] { // behind the root the volume is the same
			continue
		}
		p.any = true
		if err := vh.stream.Append(&history.Record{Kind: history.Barrier, Seq: b.seq, Time: b.at}); err != nil {
			return err
		}
	}
	return nil
}

// gapAll is for a part of the log that cannot be read: whose records it has is not known.
func (p *copying) gapAll(err error) {
	for _, vh := range p.volumes {
		if !vh.suspended {
			p.h.gap(vh, err)
		}
	}
	p.any = true
}

// finish makes durable what was copied up to seq.
func (p *copying) finish(seq uint64) {
	for _, vh := range p.volumes {
		if vh.suspended {
			continue
		}
		err := p.barriers(vh, seq)
		if err == nil {
			err = vh.stream.Sync()
		}
		if err != nil {
			p.h.gap(vh, err)
		}
	}
}
