package blockstore

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// UniqueUse is what a volume with a bound on unique data held at the last survey: chunks that the volume or its snapshots need and no other volume does, as they lie in segments, and what of it was in the log alone.
type UniqueUse struct {
	StoredBytes uint64 // estimated, if ErrorBytes is not 0
	ErrorBytes  uint64 // in 19 of 20 cases the truth is no further off
	LogBytes    uint64 // raw, at most: blocks that are written over in the log count each time
	MeasuredAt  time.Time
}

// bytes is what counts against the bound.
func (u UniqueUse) bytes() uint64 { return u.StoredBytes + u.LogBytes }

// uniqueBound holds a volume to a bound on what it alone holds after dedup and compression. No counter knows that while it changes: another volume's delete makes shared data unique. So the surveyor measures it, and between two
// surveys everything that is written counts as if it were new and did not compress. A write that does not fit by that waits for another survey, which brings the log down before it looks. It is refused only by what a survey
// found; then nothing is let through until the volume is two percent below its bound, so that it does not flap.
//
// What may go beyond the bound: what is written before the first survey, after the bound was set or the store opened; what becomes unique as others let go of it; and what is written while a survey takes longer than
// diskPatience, for which writes wait.
type uniqueBound struct {
	v     *Volume
	limit uint64

	telling sync.Mutex // orders what is told of states; comes before mu

	mu       sync.Mutex
	flying   int64 // bytes admitted and not yet in the overlay
	admitted int64 // all bytes ever admitted
	left     int64 // bytes that may be admitted before the next survey, if there was one
	most     int64 // what left was after the last survey
	latched  bool  // somebody was refused, and the volume has not fallen below its bound by enough
	state    FillState
	use      UniqueUse
}

// uniqueStart is what was known of a volume before a survey took its snapshot of the rows.
type uniqueStart struct {
	admitted, flying int64
	logBytes         uint64
}

// start reads what is not in rows yet. What goes down between this and the snapshot of the rows counts twice, and never not at all.
func (b *uniqueBound) start() (st uniqueStart) {
	b.mu.Lock()
	st.admitted, st.flying = b.admitted, b.flying
	b.mu.Unlock()
	b.v.s.tree.RLock()
	defer b.v.s.tree.RUnlock()
	for _, n := range b.v.nodes {
		st.logBytes += uint64(n.layer.Blocks()) * block.Size
	}
	return st
}

// publish puts what a survey found in force.
func (b *uniqueBound) publish(st uniqueStart, mapped ownFigure, at time.Time) {
	b.mu.Lock()
	b.use = UniqueUse{StoredBytes: mapped.stored, ErrorBytes: mapped.err, LogBytes: st.logBytes + uint64(st.flying), MeasuredAt: at}
	used := b.use.bytes()
	if used <= b.limit-b.limit/50 {
		b.latched = false
	}
	b.most = 0
	if !b.latched {
		b.most = int64(b.limit - min(b.limit, used))
	}
	b.left = b.most - (b.admitted - st.admitted)
	b.mu.Unlock()
	b.tell()
}

// tell moves the state to where the last survey puts it.
func (b *uniqueBound) tell() {
	if b.v.gone.Load() {
		return // deleted while it was measured
	}
	b.telling.Lock()
	defer b.telling.Unlock()
	b.mu.Lock()
	old := b.state
	b.state = fillState(old, b.use.bytes(), b.limit, b.latched, b.v.s.opts.Marks.quota())
	state, used := b.state, b.use.bytes()
	b.mu.Unlock()
	b.v.s.tellFill(b.v, QuotaUnique, old, state, used, b.limit)
}

// take books n bytes if they fit by what is known. Nothing is refused before the first survey. Whoever took them calls landed.
func (b *uniqueBound) take(n int64) bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	measured := !b.use.MeasuredAt.IsZero()
	fits := !measured || b.left >= n || n == 0
	if fits {
		b.bookLocked(n)
	}
	soon := measured && b.left < b.most/2
	b.mu.Unlock()
	if soon {
		b.v.s.surveyor.ask(false) // so that it has ended before the rest is used up
	}
	return fits
}

func (b *uniqueBound) bookLocked(n int64) {
	b.flying += n
	b.admitted += n
	b.left -= n
}

// landed says that n bytes are in the overlay, or will not come. What did not come counts until the next survey.
func (b *uniqueBound) landed(n int64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	b.flying -= n
	b.mu.Unlock()
}

// admit waits until n bytes may be written, or returns ErrNoSpace.
func (b *uniqueBound) admit(ctx context.Context, n int64) error {
	if b.take(n) {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, diskPatience)
	defer cancel()
	for {
		err := b.v.s.surveyor.next(wait)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		switch {
		case b.take(n):
			return nil
		case b.refuses(n):
			return b.refuse(n)
		case err != nil && wait.Err() == nil:
			return err // the store is being closed
		case err != nil: // no survey says that it is full, and a guest does not wait any longer
			b.mu.Lock()
			b.bookLocked(n)
			b.mu.Unlock()
			return nil
		}
	}
}

// refuses reports whether n bytes did not even fit right after the last survey.
func (b *uniqueBound) refuses(n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.latched || b.most < n
}

func (b *uniqueBound) refuse(n int64) error {
	b.mu.Lock()
	b.latched, b.left, b.most = true, 0, 0
	used := b.use.bytes()
	b.mu.Unlock()
	b.tell()
	return fmt.Errorf("write %d B to volume %d: it alone holds %s after reduction, of the %s of its quota on unique data; trim something in the guest, delete snapshots of it, or raise it with hv-storage-fabric volume quota set --unique: %w",
		n, b.v.id, units.Size(used).Human(), units.Size(b.limit).Human(), block.ErrNoSpace)
}

// now returns what was found last, and how full that is.
func (b *uniqueBound) now() (UniqueUse, FillState) {
	if b == nil {
		return UniqueUse{}, FillOK
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.use, b.state
}

// setUnique makes the bound of a quota that comes into force: the one that was, if that says the same.
func (q *quota) setUnique(old *quota) {
	var was *uniqueBound
	if old != nil {
		was = old.own
	}
	if was != nil && was.limit == q.limit.UniqueBytes {
		q.own = was
		return
	}
	if q.limit.UniqueBytes == 0 {
		return
	}
	q.own = &uniqueBound{v: q.v, limit: q.limit.UniqueBytes}
	if was != nil {
		_, q.own.state = was.now()
	}
}

// beginUnique has a new bound measured, and tells of one that is gone. The quota is in force already.
func (s *Store) beginUnique(v *Volume, old, next *quota) {
	if next != nil && next.own != nil {
		s.surveyor.ask(false)
		return
	}
	if old != nil {
		use, was := old.own.now()
		s.tellFill(v, QuotaUnique, was, FillOK, use.bytes(), 0)
	}
}
