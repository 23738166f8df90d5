package blockstore

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/extentmap"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// A scrub reads every sealed segment once and looks at each byte: the columns of the segment and its sidecar, the segment's own checksums, every frame, the hash of
// every chunk. What it finds it mends at once, or records.
//
// Behind the segments it looks at the sealed files of history, volume by volume, oldest first: the columns of the file and its sidecar, or where there is none the file's own checksums.
//
// It begins with the segments whose chunks have the most references, since most would be lost with them. How far it is stands in two places that outlive the process: the file
// `scrub` (scrubfile.go) says that a scrub runs, when it began, and which file of history it has come to, and each segment's row when it was last verified. Those verified since the beginning are done; a scrub
// goes on after a restart with the others, whatever was written or dropped meanwhile.

// ScrubState is the life of a scrub.
type ScrubState uint8

// The values are part of the disk format.
const (
	ScrubNever     ScrubState = 0
	ScrubRunning   ScrubState = 1
	ScrubPaused    ScrubState = 2
	ScrubDone      ScrubState = 3
	ScrubCancelled ScrubState = 4
)

var scrubStates = [...]string{"never", "running", "paused", "done", "cancelled"}

// String is "never", "running", "paused", "done" or "cancelled".
func (s ScrubState) String() string {
	if int(s) < len(scrubStates) {
		return scrubStates[s]
	}
	return fmt.Sprintf("state %d", uint8(s))
}

// ScrubStatus is how far the scrub is that runs or ran last.
type ScrubStatus struct {
	State     ScrubState
	Run       uint64 // number of the scrub, from 1 on
	FindOnly  bool   // it mends nothing
	StartedAt time.Time
	EndedAt   time.Time // zero while it has not ended

	SegmentsDone, SegmentsLeft uint64
	HistoryDone, HistoryLeft   uint64 // sealed files of history
	BytesDone, BytesLeft       uint64 // of segments and files
	Damaged                    uint64 // segments and files that were found damaged
	Mended                     uint64 // of these, those that are whole again
}

// scrubRun is the scrub that runs or ran last. keeper.mu guards it.
type scrubRun struct {
	rec   scrubRecord
	queue []block.SegmentID // that are left, in order; nil until it is known
	files []history.Sealed  // likewise, of history
	known bool              // queue and files are
	left  uint64            // bytes
}

// StartScrub begins a scrub of all that is sealed now. A scrub that runs or is paused is block.ErrInUse.
func (s *Store) StartScrub(findOnly bool) (ScrubStatus, error) {
	return s.changeScrub(func(r *scrubRun) error {
		if r.rec.State == ScrubRunning || r.rec.State == ScrubPaused {
			return fmt.Errorf("scrub %d is %v: %w", r.rec.Run, r.rec.State, block.ErrInUse)
		}
		now := max(s.opts.Now().UnixNano(), r.rec.Started+1)
		*r = scrubRun{rec: scrubRecord{State: ScrubRunning, Run: r.rec.Run + 1, Started: now, FindOnly: findOnly}}
		return nil
	})
}

// PauseScrub stops the scrub that runs, after the segment it is at, across restarts.
func (s *Store) PauseScrub() (ScrubStatus, error) {
	return s.moveScrub(ScrubPaused, ScrubRunning)
}

// ResumeScrub lets a paused scrub go on.
func (s *Store) ResumeScrub() (ScrubStatus, error) {
	return s.moveScrub(ScrubRunning, ScrubPaused)
}

// CancelScrub ends the scrub that runs or is paused.
func (s *Store) CancelScrub() (ScrubStatus, error) {
	return s.moveScrub(ScrubCancelled, ScrubRunning, ScrubPaused)
}

func (s *Store) moveScrub(to ScrubState, from ...ScrubState) (ScrubStatus, error) {
	return s.changeScrub(func(r *scrubRun) error {
		if r.rec.State != to && !slices.Contains(from, r.rec.State) {
			return fmt.Errorf("the scrub is not under way but %v: %w", r.rec.State, block.ErrInvalid)
		}
		r.rec.State = to
		if to == ScrubCancelled {
			r.rec.Ended = s.opts.Now().UnixNano()
		}
		return nil
	})
}

// changeScrub changes the scrub and makes that durable.
func (s *Store) changeScrub(change func(*scrubRun) error) (ScrubStatus, error) {
	k := s.keeper
	k.scrubbing.Lock() // readers of the state do not wait for the disk
	defer k.scrubbing.Unlock()
	k.mu.Lock()
	r := k.mu.scrub
	k.mu.Unlock()
	if err := change(&r); err != nil {
		return ScrubStatus{}, err
	}
	if err := s.writeScrub(&r.rec); err != nil {
		return ScrubStatus{}, fmt.Errorf("note the scrub: %w", err)
	}
	k.mu.Lock()
	k.mu.scrub = r
	k.mu.Unlock()
	k.kick()
	return r.status(), nil
}

// Scrub returns how far the scrub is.
func (s *Store) Scrub() ScrubStatus {
	s.keeper.mu.Lock()
	defer s.keeper.mu.Unlock()
	return s.keeper.mu.scrub.status()
}

func (r *scrubRun) status() ScrubStatus {
	moment := func(ns int64) (t time.Time) {
		if ns != 0 {
			t = time.Unix(0, ns).UTC()
		}
		return t
	}
	return ScrubStatus{State: r.rec.State, Run: r.rec.Run, FindOnly: r.rec.FindOnly, StartedAt: moment(r.rec.Started), EndedAt: moment(r.rec.Ended),
		SegmentsDone: r.rec.Segments, SegmentsLeft: uint64(len(r.queue)), HistoryDone: r.rec.Files, HistoryLeft: uint64(len(r.files)), BytesDone: r.rec.Bytes, BytesLeft: r.left, Damaged: r.rec.Damaged, Mended: r.rec.Mended}
}

// resumeScrub takes over what an earlier run left. A record that cannot be read is reported and forgotten: a new scrub can be started.
func (k *keeper) resumeScrub() error {
	rec, err := k.s.readScrub()
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	k.scrubbing.Lock()
	defer k.scrubbing.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if err == nil && k.mu.scrub.rec.State == ScrubNever {
		k.mu.scrub.rec = rec
	}
	return err
}

// stepScrub scrubs the next segment, if a scrub runs.
func (k *keeper) stepScrub(ctx context.Context) (bool, error) {
	k.mu.Lock()
	r := &k.mu.scrub
	running, known, run := r.rec.State == ScrubRunning, r.known, r.rec.Run
	started, findOnly := r.rec.Started, r.rec.FindOnly
	k.mu.Unlock()
	if !running {
		return false, nil
	}
	if !known {
		return true, k.planScrub(ctx, run, started)
	}
	k.mu.Lock()
	var id block.SegmentID
	var file history.Sealed
	switch {
	case len(r.queue) > 0:
		id = r.queue[0]
	case len(r.files) > 0:
		file = r.files[0]
	}
	k.mu.Unlock()
	if file.ID != 0 {
		return true, k.scrubFile(ctx, run, &file, findOnly)
	}
	if id == 0 {
		_, err := k.s.changeScrub(func(r *scrubRun) error {
			if r.rec.Run == run && r.rec.State == ScrubRunning {
				r.rec.State, r.rec.Ended = ScrubDone, k.s.opts.Now().UnixNano()
			}
			return nil
		})
		return true, err
	}
	row, there := k.s.segments.get(id)
	var d *Damage
	if there {
		var err error
		if d, err = k.scrub(ctx, &row, findOnly); err != nil {
			return false, err
		}
		if err := k.setVerified(&row, max(started, k.s.opts.Now().UnixNano())); err != nil {
			return false, err
		}
	}
	_, err := k.s.changeScrub(func(r *scrubRun) error {
		if r.rec.Run != run || len(r.queue) == 0 || r.queue[0] != id {
			return nil // it was cancelled meanwhile, and another one begun
		}
		r.queue = r.queue[1:]
		if !there {
			return nil
		}
		r.left -= min(r.left, row.Size)
		r.rec.Segments, r.rec.Bytes = r.rec.Segments+1, r.rec.Bytes+row.Size
		r.count(d)
		return nil
	})
	return true, err
}

// scrubFile scrubs a file of history, and counts it.
func (k *keeper) scrubFile(ctx context.Context, run uint64, file *history.Sealed, findOnly bool) error {
	d, err := k.scrubHistory(ctx, file.FileKey, findOnly)
	if err != nil {
		return err
	}
	_, err = k.s.changeScrub(func(r *scrubRun) error {
		if r.rec.Run != run || len(r.files) == 0 || r.files[0].FileKey != file.FileKey {
			return nil // as in stepScrub
		}
		r.files = r.files[1:]
		r.left -= min(r.left, uint64(file.Bytes))
		r.rec.Files, r.rec.Bytes, r.rec.At = r.rec.Files+1, r.rec.Bytes+uint64(file.Bytes), file.FileKey
		r.count(d)
		return nil
	})
	return err
}

// count counts what was found damaged; nil is nothing.
func (r *scrubRun) count(d *Damage) {
	if d == nil {
		return
	}
	r.rec.Damaged++
	if d.Mended {
		r.rec.Mended++
	}
}

// planScrub orders the segments that are left: those first whose chunks have the most references beyond one each, then the oldest.
func (k *keeper) planScrub(ctx context.Context, run uint64, started int64) error {
	weight, err := k.s.referenceWeights(ctx)
	if err != nil {
		return err
	}
	var queue []block.SegmentID
	left := uint64(0)
	for _, r := range k.s.segments.all() {
		if r.State == segmentSealed && r.Placement[0].VerifiedAt < started {
			queue = append(queue, r.ID)
			left += r.Size
		}
	}
	slices.SortFunc(queue, func(a, b block.SegmentID) int {
		return cmp.Or(cmp.Compare(weight[b], weight[a]), cmp.Compare(a, b))
	})
	all := k.s.historian.set.Sealed()
	k.scrubbing.Lock()
	defer k.scrubbing.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	if r := &k.mu.scrub; r.rec.Run == run {
		files := slices.DeleteFunc(all, func(f history.Sealed) bool { return f.Compare(r.rec.At) <= 0 })
		for _, f := range files {
			left += uint64(f.Bytes)
		}
		r.queue, r.files, r.left, r.known = queue, files, left, true
	}
	return nil
}

// referenceWeights sums, for each segment, the references of its chunks that have more than one. It reads the rows of these.
func (s *Store) referenceWeights(ctx context.Context) (weight map[block.SegmentID]uint64, err error) {
	weight = map[block.SegmentID]uint64{}
	rows := rowIter{}
	defer func() { err = errors.Join(err, rows.close()) }()
	it, err := s.db.NewIter(tableBounds(keyRef))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, it.Close()) }()
	for ok := it.First(); ok; ok = it.Next() {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		id := block.ChunkID(binary.BigEndian.Uint64(it.Key()[1:]))
		n, err := extentmap.DecodeRef(id, it.Value())
		if err != nil {
			return nil, err
		}
		row, err := rows.row(s.db, id)
		if errors.Is(err, block.ErrNotFound) {
			continue // it died between the two looks
		}
		if err != nil {
			return nil, err
		}
		weight[row.Segment] += n
	}
	return weight, it.Error()
}

// scrub looks at a segment and its sidecar and mends, or only records, what is damaged. nil: nothing is.
func (k *keeper) scrub(ctx context.Context, row *segmentRow, findOnly bool) (*Damage, error) {
	s := k.s
	if s.stripes != nil {
		// Shards first: what is read below is right with or without them. What reads cannot make good is found there.
		if d, err := k.checkShards(ctx, row, !findOnly); d != nil || err != nil && ctx.Err() != nil {
			return d, err
		}
	}
	g, err := s.openGuarded(row)
	defer g.close()
	found := erasure.Damage{}
	pace := erasure.Pace(k.pace.wait)
	missing := !row.Parity.None() && err != nil
	if u, ok := g.src.(interface{ Uncache() error }); ok {
		_ = u.Uncache() // what lies in memory says nothing about the device; where it cannot be dropped, it is read
	}
	if g.side != nil {
		if found, err = g.side.Verify(ctx, g.src, k.halfPace); err != nil {
			return nil, err
		}
		pace = k.halfPace
	}
	in, err := s.inspect(ctx, g.src, row, pace)
	if err != nil {
		return nil, err
	}
	_, _, unsound := s.sound(ctx, g.src, row, nil)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	switch {
	case len(found.Columns) == 0 && !found.Sidecar() && in.first == nil && unsound == nil && !missing:
		if findOnly {
			return nil, nil
		}
		return nil, s.unmark(ctx, row)
	case len(found.Columns) == 0 && in.first == nil && unsound == nil && missing && !findOnly:
		// Only the sidecar is gone, or that of something else: another one is made.
		d := &Damage{Segment: row.ID, File: row.Placement[0].Key, FoundAt: s.opts.Now(), Mended: true}
		k.counts.found.Add(1)
		k.counts.mended.Add(1)
		k.record(d)
		return d, k.setParity(row, erasure.Shape{})
	case !findOnly:
		g.close()
		g = guarded{}
		return k.repair(ctx, row)
	}
	d := &Damage{Segment: row.ID, File: row.Placement[0].Key, FoundAt: s.opts.Now(), Columns: len(found.Columns), Lost: len(found.Lost), Reason: "only looked for"}
	if err := errors.Join(unsound, in.first); err != nil {
		d.Reason += ": " + err.Error()
	}
	k.counts.found.Add(uint64(max(1, d.Columns)))
	k.mark(row.ID, unsound != nil)
	k.record(d)
	return d, nil
}

// halfPace is for passes of which the second finds in memory what the first has read.
func (k *keeper) halfPace(ctx context.Context, n int) error { return k.pace.wait(ctx, n/2) }

// setVerified notes in a segment's row when it was verified.
func (k *keeper) setVerified(row *segmentRow, at int64) error {
	s := k.s
	m := s.beginMeta()
	now, ok := s.segments.get(row.ID)
	if !ok || now.Generation != row.Generation {
		m.abort()
		return nil
	}
	now.Placement = slices.Clone(now.Placement)
	now.Placement[0].VerifiedAt = at
	m.segs[row.ID] = &now
	return m.commit()
}
