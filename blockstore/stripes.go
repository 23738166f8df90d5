package blockstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
	"github.com/hyper-nixos/hyper-nixos/tiers/stripe"
)

// wantParity is the shape of the sidecars that sealed segments shall have: none where shards do their work.
func (s *Store) wantParity() erasure.Shape {
	if s.stripes != nil && !s.opts.Stripe.None() {
		return erasure.Shape{}
	}
	return s.opts.Parity
}

// stepStripe cuts one sealed segment into shards, or makes the shards anew that one lacks, and reports whether there was one.
func (k *keeper) stepStripe(ctx context.Context) (bool, error) {
	st := k.s.stripes
	if st == nil || time.Now().Before(k.roomy) {
		return false, nil
	}
	if missing, waiting := st.Lacking(); missing+waiting == 0 {
		return false, nil
	}
	if did, err := st.HealOpen(); did || err != nil {
		return did, err
	}
	row, need := k.unstriped()
	if need == stripe.Nothing {
		return false, nil
	}
	if !k.room(2 * int64(row.Size)) {
		k.later()
		return false, nil
	}
	var err error
	if need == stripe.ToMend {
		_, err = k.checkShards(ctx, &row, true)
	} else {
		err = k.stripe(ctx, &row)
	}
	switch {
	case ctx.Err() != nil:
		return false, nil
	case errors.Is(err, block.ErrNoSpace):
		k.later()
		return false, nil
	case err != nil:
		k.putOff(row.ID)
		k.s.report(fmt.Sprintf("redundancy of segment %06x", row.ID), err)
	case st.Need(row.Placement[0].Key) == need:
		k.putOff(row.ID) // it could not be given now
	}
	return true, nil
}

// putOff leaves a segment alone for a while.
func (k *keeper) putOff(id block.SegmentID) {
	if k.deferred == nil {
		k.deferred = map[block.SegmentID]time.Time{}
	}
	k.deferred[id] = time.Now().Add(keeperRetry)
}

// unstriped returns a sealed segment that needs something, those that lack shards first, then the oldest.
func (k *keeper) unstriped() (best segmentRow, need stripe.Need) {
	now := time.Now()
	for id, at := range k.deferred {
		if now.After(at) {
			delete(k.deferred, id)
		}
	}
	for _, r := range k.s.segments.all() {
		if _, later := k.deferred[r.ID]; later || r.State != segmentSealed || need == stripe.ToMend && r.ID > best.ID {
			continue
		}
		if n := k.s.stripes.Need(r.Placement[0].Key); n > need || n == need && n != stripe.Nothing && r.ID < best.ID {
			best, need = r, n
		}
	}
	return best, need
}

// stripe cuts a segment as it shall be, from the first of its copies that proves right.
func (k *keeper) stripe(ctx context.Context, row *segmentRow) error {
	s, p := k.s, row.Placement[0]
	defer s.tiers.Forget(p)
	var errs []error
	for i := 0; ; i++ {
		src, err := s.stripes.OpenCopy(p.Key, i)
		if errors.Is(err, block.ErrNotFound) && i > 0 {
			break
		}
		if errors.Is(err, block.ErrNotFound) {
			src, err = s.tiers.OpenCopy(p) // shards of another shape
		}
		if err == nil {
			err = k.stripeFrom(ctx, row, src)
		}
		if err == nil || ctx.Err() != nil || !errors.Is(err, block.ErrCorrupt) && !errors.Is(err, stripe.ErrTooFew) {
			return err
		}
		errs = append(errs, err)
	}
	err := errors.Join(errs...)
	if errors.Is(err, block.ErrCorrupt) {
		k.enqueue(row.ID) // it says what that affects
	}
	return err
}

func (k *keeper) stripeFrom(ctx context.Context, row *segmentRow, src tiers.Reader) error {
	defer src.Close()
	s, key := k.s, row.Placement[0].Key
	id, sums, err := s.sound(ctx, src, row, k.pace.wait)
	if err != nil {
		return err
	}
	if err := s.stripes.Stripe(ctx, key, src, id, sums, k.pace.wait); err != nil {
		return err
	}
	s.at(afterStriped)
	k.counts.written.Add(int64(row.Size))
	if _, there := s.segments.get(row.ID); !there {
		return s.unlink(row) // it was dropped meanwhile
	}
	return nil
}

// checkShards verifies the shards of a segment and makes anew what is missing or damaged, and records what was found; nil is a segment that has all.
func (k *keeper) checkShards(ctx context.Context, row *segmentRow, mend bool) (*Damage, error) {
	s, p := k.s, row.Placement[0]
	rep, err := s.stripes.Check(ctx, p.Key, mend, k.pace.wait)
	if !rep.Damaged() {
		return nil, err
	}
	s.tiers.Forget(p)
	s.at(afterMendedShards)
	n := rep.Columns + rep.Missing
	k.counts.found.Add(uint64(n))
	d := &Damage{Segment: row.ID, File: p.Key, FoundAt: s.opts.Now(), Columns: n, Mended: rep.Mended}
	if rep.Mended {
		k.counts.mended.Add(uint64(n))
		k.counts.written.Add(int64(row.Size))
	} else {
		d.Reason = fmt.Sprintf("%d shards are missing and %d columns of others damaged; the segment can be read", rep.Missing, rep.Columns)
		if err != nil {
			d.Reason = err.Error()
		}
	}
	k.record(d)
	return d, err
}

// copyReader is a segment of which there are several whole copies.
type copyReader interface {
	Copies() int
	ReadCopy(i int, p []byte, off int64) error
}

// fromCopies answers the read of a frame that failed from another copy of an open segment, or of one that is not striped yet.
func (k *keeper) fromCopies(row *segmentRow, off uint32, stored []byte, t *frameTools) (*frame, bool) {
	if k.s.stripes == nil {
		return nil, false
	}
	r, err := k.s.tiers.OpenCopy(row.Placement[0])
	if err != nil {
		return nil, false
	}
	defer r.Close()
	c, ok := r.(copyReader)
	if !ok {
		return nil, false
	}
	for i := range c.Copies() {
		if c.ReadCopy(i, stored, int64(off)) != nil {
			continue
		}
		if f, err := t.decode(stored, row.ID, off); err == nil {
			k.counts.inline.Add(1)
			return f, true
		}
	}
	return nil, false
}
