package blockstore

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/history"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
)

// The keeper looks after sealed files of history as it does after segments: it makes their sidecars, mends what a reader or a scrub found damaged, and scrubs them behind the segments. Files have no rows: what is known of a sidecar stands in the sidecar.

// HistoryDamage is what is known of a damaged file of history, beside what Damage says.
type HistoryDamage struct {
	Volume string
	ID     uint32 // of the file
	// Ranges are what cannot be read, at most maxHistoryRanges; none, if readers have all that they need.
	Ranges []HistoryRange
	More   int // ranges that are not listed

	seed uint32 // history.Sealed.Seed
}

// HistoryRange is a part of a file of history that cannot be read: moments from the first of its writes on, up to the next root, cannot be had, or answer EIO where it lies.
type HistoryRange struct {
	Offset, Length uint64 // in the file, bytes
	From, To       time.Time
	FromSeq, ToSeq uint64 // records of the log
}

// maxHistoryRanges bounds the ranges of one file that are listed.
const maxHistoryRanges = 64

// historyWork is how the keeper works on files of history, within its budget.
func (k *keeper) historyWork() *history.Work {
	return &history.Work{Pace: k.pace.wait, Coder: k.coderFor, Room: k.room, Step: k.historyStep}
}

// stepHistoryParity makes or removes the sidecar of one sealed file of history that has another one than it shall have, and reports whether there was one.
func (k *keeper) stepHistoryParity(ctx context.Context) (bool, error) {
	s := k.s
	want := s.historyShape()
	if !want.None() && time.Now().Before(k.roomy) {
		return false, nil
	}
	of, found := s.historian.set.Lacks(want)
	if !found {
		return false, nil
	}
	if want.None() {
		return true, ignoreGone(s.historian.set.Unguard(of.FileKey))
	}
	if err := s.addROCompat(roCompatHistoryParity); err != nil {
		return false, err
	}
	n, err := s.historian.set.Guard(ctx, of.FileKey, want, k.historyWork())
	k.counts.written.Add(n)
	switch {
	case err == nil || ctx.Err() != nil || errors.Is(err, block.ErrNotFound):
		return true, nil
	case errors.Is(err, block.ErrNoSpace):
		k.later()
		return false, nil
	case errors.Is(err, block.ErrCorrupt):
		k.enqueueHistory(of.FileKey)
		return true, nil
	}
	return false, fmt.Errorf("parity of history: %w", err)
}

// ignoreGone passes over what was thinned or dropped meanwhile.
func ignoreGone(err error) error {
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	return err
}

// enqueueHistory asks for the repair of a file.
func (k *keeper) enqueueHistory(key history.FileKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !slices.Contains(k.mu.files, key) {
		k.mu.files = append(k.mu.files, key)
	}
}

// stepHistoryRepair mends the next file of history that somebody found damaged, and reports whether there was one.
func (k *keeper) stepHistoryRepair(ctx context.Context) (bool, error) {
	for _, key := range k.s.historian.set.Asked() {
		k.mu.Lock()
		d := k.mu.histories[key]
		k.mu.Unlock()
		if d == nil || d.Mended || d.Lost == 0 && k.s.opts.Now().Sub(d.FoundAt) > keeperRetry { // as of segments (found)
			k.enqueueHistory(key)
		}
	}
	k.mu.Lock()
	if len(k.mu.files) == 0 {
		k.mu.Unlock()
		return false, nil
	}
	key := k.mu.files[0]
	k.mu.files, k.mu.mending = k.mu.files[1:], true
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		k.mu.mending = false
		k.mu.Unlock()
	}()
	_, err := k.mendHistory(ctx, key)
	return true, err
}

// mendHistory looks at a file of history and its sidecar, mends what it can, and records what was found; nil is a file that is whole, or gone. The error is the end of ctx, or one of the device that keeps a file from being looked at.
func (k *keeper) mendHistory(ctx context.Context, key history.FileKey) (*Damage, error) {
	f, err := k.s.historian.set.Mend(ctx, key, k.historyWork())
	if errors.Is(err, block.ErrNotFound) {
		k.forgetHistory(key)
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return k.foundInHistory(ctx, &f)
}

// forgetHistory forgets what is known of a file that is gone.
func (k *keeper) forgetHistory(key history.FileKey) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.mu.histories, key)
}

// foundInHistory records what was found of a file of history.
func (k *keeper) foundInHistory(ctx context.Context, f *history.Found) (*Damage, error) {
	k.mu.Lock()
	_, known := k.mu.histories[f.FileKey]
	k.mu.Unlock()
	if f.Whole() && !f.Mended && !known {
		return nil, nil
	}
	d := k.historyDamage(f)
	found := uint64(d.Columns + f.Spoilt)
	if f.Unsound == nil && f.Parity == nil {
		d.Mended = true
		k.counts.found.Add(found)
		k.counts.mended.Add(found)
		if len(f.Columns) > 0 {
			k.counts.written.Add(f.Bytes)
		}
		k.recordHistory(f.FileKey, d)
		return d, nil
	}
	if err := k.lostOfHistory(ctx, f, d); err != nil {
		return nil, err
	}
	k.counts.found.Add(uint64(d.Columns + f.Spoilt))
	k.counts.lost.Add(uint64(d.Lost))
	k.recordHistory(f.FileKey, d)
	if report := k.s.opts.Events.Corruption; report != nil && len(d.History.Ranges) > 0 {
		report(fmt.Errorf("%v: %w", d, block.ErrCorrupt))
	}
	return d, nil
}

// historyDamage is what a look at a file says, without what is lost.
func (k *keeper) historyDamage(f *history.Found) *Damage {
	h := &HistoryDamage{ID: f.ID, Volume: fmt.Sprint(f.Volume), seed: f.Seed}
	if vh := k.s.historian.of(f.Volume); vh != nil {
		h.Volume = vh.name()
	}
	dir, name := path.Split(f.Path)
	return &Damage{File: path.Join(historyDir, path.Base(dir), name), FoundAt: k.s.opts.Now(), Columns: len(f.Columns), Lost: len(f.Lost), History: h}
}

// lostOfHistory says of a damaged file what cannot be read of it, and why it is not mended.
func (k *keeper) lostOfHistory(ctx context.Context, f *history.Found, d *Damage) error {
	if f.Unsound != nil {
		d.Reason = f.Unsound.Error()
	}
	if f.Parity != nil {
		d.Reason = joinReasons(d.Reason, "parity does not help: "+f.Parity.Error())
	}
	if f.Unsound == nil {
		return nil
	}
	lost, more, err := k.s.historian.set.Lost(ctx, f.FileKey, maxHistoryRanges, k.pace.wait)
	if errors.Is(err, block.ErrNotFound) {
		return nil
	}
	if err != nil && ctx.Err() == nil {
		d.Reason = joinReasons(d.Reason, err.Error())
		err = nil
	}
	for _, l := range lost {
		d.History.Ranges = append(d.History.Ranges, HistoryRange{Offset: uint64(l.Off), Length: uint64(l.Len), FromSeq: l.FromSeq, ToSeq: l.ToSeq,
			From: time.Unix(0, l.From).UTC(), To: time.Unix(0, l.To).UTC()})
	}
	d.History.More = more
	if len(f.Columns) == 0 { // no sidecar could tell
		d.Columns = max(1, len(lost))
		d.Lost = d.Columns
	}
	return err
}

func joinReasons(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// recordHistory keeps what was found of a file and tells whoever listens.
func (k *keeper) recordHistory(key history.FileKey, d *Damage) {
	k.mu.Lock()
	k.mu.histories[key] = d
	k.mu.Unlock()
	if f := k.s.opts.Events.Damage; f != nil {
		f(*d)
	}
}

// pruneHistory forgets the damage of files that are gone, and that of files that were thinned without what is damaged: what took their place is sound, and is mended if it becomes damaged.
func (k *keeper) pruneHistory() {
	k.mu.Lock()
	left := len(k.mu.histories)
	k.mu.Unlock()
	if left == 0 {
		return
	}
	there := map[history.FileKey]uint32{}
	for _, f := range k.s.historian.set.Sealed() {
		there[f.FileKey] = f.Seed
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, d := range k.mu.histories {
		if seed, found := there[key]; !found || !d.Mended && seed != d.History.seed {
			delete(k.mu.histories, key)
		}
	}
}

// scrubHistory looks at a file of history and its sidecar, and mends, or only records, what is damaged. nil: nothing is, or it is gone.
func (k *keeper) scrubHistory(ctx context.Context, key history.FileKey, findOnly bool) (*Damage, error) {
	f, err := k.s.historian.set.Check(ctx, key, k.historyWork())
	switch {
	case errors.Is(err, block.ErrNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case f.Whole():
		k.mu.Lock()
		if d := k.mu.histories[key]; d != nil && !d.Mended { // as of a device that is well again
			delete(k.mu.histories, key)
		}
		k.mu.Unlock()
		return nil, nil
	case !findOnly:
		return k.mendHistory(ctx, key)
	}
	d := k.historyDamage(&f)
	d.Reason = "only looked for"
	for _, err := range []error{f.Unsound, f.Parity} {
		if err != nil {
			d.Reason = joinReasons(d.Reason, err.Error())
		}
	}
	k.counts.found.Add(uint64(max(1, d.Columns+f.Spoilt)))
	k.recordHistory(key, d)
	return d, nil
}

// text is what String says of a file of history.
func (h *HistoryDamage) text(d *Damage) string {
	if d.Mended {
		return fmt.Sprintf("%s, of the history of %s: %d damaged columns, all mended", d.File, h.Volume, d.Columns)
	}
	text := fmt.Sprintf("%s, of the history of %s: %d damaged columns, %d of them beyond parity: %s", d.File, h.Volume, d.Columns, d.Lost, d.Reason)
	for i, r := range h.Ranges {
		if i == 8 {
			return text + fmt.Sprintf("; and %d ranges more", len(h.Ranges)-i+h.More)
		}
		text += fmt.Sprintf("; lost at %d+%d: writes %d to %d, from %s to %s", r.Offset, r.Length, r.FromSeq, r.ToSeq, r.From.Format(time.RFC3339), r.To.Format(time.RFC3339))
	}
	return text
}

// historyParity is what the sidecars of the history of a volume take, or of all volumes if volume is empty, in bytes.
func (s *Store) historyParity(volume string) uint64 {
	if volume == "" {
		return uint64(s.historian.set.ParityBytes())
	}
	vh, err := s.historyOf(volume)
	if err != nil || vh.stream == nil {
		return 0
	}
	return uint64(vh.stream.ParityBytes())
}

// historyShape is the shape that the sidecars of history shall have: that of segments. Shards of segments do not reach history, which lies in the data directory alone, so it has sidecars with them, too.
func (s *Store) historyShape() erasure.Shape { return s.opts.Parity }
