package tiers

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Tier is a backend with the name under which placements refer to it.
type Tier struct {
	Name    string // 1 to 64 B, never changed while a placement names it
	Backend Backend
}

// Options configure a Set.
type Options struct {
	// Tiers are what the set consists of, with distinct names.
	Tiers []Tier
	// MaxOpen bounds the handles that are kept open while nobody reads; default 256.
	MaxOpen int
	// CheckOpen is called with each handle that was opened, before its first use, to refuse a file that is not the segment it is named after. It may
	// read. Nil accepts every file.
	CheckOpen func(id block.SegmentID, generation uint32, r Reader) error
}

// Set reads, creates and deletes segments by placement.
type Set struct {
	tiers   map[string]Backend
	check   func(block.SegmentID, uint32, Reader) error
	handles handleCache
}

// NewSet returns a set of tiers. It opens nothing.
func NewSet(o Options) (*Set, error) {
	if o.MaxOpen == 0 {
		o.MaxOpen = 256
	}
	if o.MaxOpen < 1 {
		return nil, fmt.Errorf("%d open segments: %w", o.MaxOpen, block.ErrInvalid)
	}
	s := &Set{tiers: make(map[string]Backend, len(o.Tiers)), check: o.CheckOpen}
	for _, t := range o.Tiers {
		if _, twice := s.tiers[t.Name]; twice || t.Backend == nil || len(t.Name) == 0 || len(t.Name) > maxTierName {
			return nil, fmt.Errorf("tier %q: name taken or malformed: %w", t.Name, block.ErrInvalid)
		}
		s.tiers[t.Name] = t.Backend
	}
	s.handles.init(o.MaxOpen)
	return s, nil
}

// Backend returns a tier's backend, to list or measure it.
func (s *Set) Backend(tier string) (Backend, error) {
	b := s.tiers[tier]
	if b == nil {
		return nil, fmt.Errorf("tier %q: %w", tier, block.ErrNotFound)
	}
	return b, nil
}

// Create starts a segment in a tier. The placement is Live and may be recorded once the writer has synced.
func (s *Set) Create(tier string, id block.SegmentID, generation uint32) (Placement, Writer, error) {
	p := Placement{Tier: tier, Key: SegmentKey(id, generation), Generation: generation, State: Live}
	b, err := s.Backend(tier)
	if err != nil {
		return Placement{}, nil, fmt.Errorf("create segment: %w", err)
	}
	w, err := b.Create(p.Key)
	if err != nil {
		return Placement{}, nil, fmt.Errorf("create segment %s in tier %q: %w", p.Key, tier, err)
	}
	return p, w, nil
}

// Update opens the copy p of a segment to be sealed in place.
func (s *Set) Update(p Placement) (Updater, error) {
	b, err := s.Backend(p.Tier)
	if err != nil {
		return nil, fmt.Errorf("update segment: %w", err)
	}
	u, err := b.Update(p.Key)
	if err != nil {
		return nil, fmt.Errorf("update segment %s in tier %q: %w", p.Key, p.Tier, err)
	}
	return u, nil
}

// ReadAt fills p with the bytes at off of a segment, from the first copy that gives them: live copies in the list's order, then outgoing and damaged ones. The error
// joins those of all copies; it is block.ErrNotFound only if every copy is gone. ctx ends waiting for a handle that another reader opens, and the choice of
// further copies; a read that has begun is not interrupted.
func (s *Set) ReadAt(ctx context.Context, id block.SegmentID, list PlacementList, p []byte, off int64) error {
	var errs []error
	for _, states := range readOrder {
		for i := range list {
			pl := &list[i]
			if states&(1<<pl.State) == 0 {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			err := s.readCopy(ctx, id, pl, p, off)
			if err == nil {
				return nil
			}
			errs = append(errs, fmt.Errorf("read segment %016x at %d+%d B from tier %q: %w", uint64(id), off, len(p), pl.Tier, err))
		}
	}
	return joinReads(id, errs)
}

// readOrder is the states of the first and of the second round, one bit each.
var readOrder = [...]uint{1 << Live, 1<<Outgoing | 1<<Damaged}

// joinReads joins the errors of a segment's copies. A copy that is there but fails outweighs copies that are gone.
func joinReads(id block.SegmentID, errs []error) error {
	if len(errs) == 0 {
		return fmt.Errorf("read segment %016x: no copy to read: %w", uint64(id), block.ErrNotFound)
	}
	var failed []error
	for _, err := range errs {
		if !errors.Is(err, block.ErrNotFound) {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 {
		return errors.Join(failed...)
	}
	return errs[0]
}

func (s *Set) readCopy(ctx context.Context, id block.SegmentID, pl *Placement, p []byte, off int64) error {
	h, err := s.handles.acquire(ctx, handleKey{pl.Tier, pl.Key}, func() (Reader, error) { return s.open(id, pl) })
	if err != nil {
		return err
	}
	defer s.handles.release(h)
	n, err := h.r.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return &block.CorruptError{Source: "segment " + pl.Key, Offset: off, Want: fmt.Sprintf("%d B", len(p)), Got: fmt.Sprintf("%d B", n)}
	}
	return err
}

func (s *Set) open(id block.SegmentID, pl *Placement) (Reader, error) {
	b, err := s.Backend(pl.Tier)
	if err != nil {
		return nil, err
	}
	r, err := b.Open(pl.Key)
	if err != nil || s.check == nil {
		return r, err
	}
	if err := s.check(id, pl.Generation, r); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// TryReadAt is ReadAt for a caller that must not wait. It asks only the first live copy and returns block.ErrWouldBlock, with p undefined, for every reason not to
// have the bytes at once: no open handle, bytes not in memory, an error that ReadAt will report. With the handle open it does not allocate.
func (s *Set) TryReadAt(id block.SegmentID, list PlacementList, p []byte, off int64) error {
	for i := range list {
		if list[i].State != Live {
			continue
		}
		h := s.handles.tryAcquire(handleKey{list[i].Tier, list[i].Key})
		if h == nil {
			return block.ErrWouldBlock
		}
		err := h.r.TryReadAt(p, off)
		s.handles.release(h)
		if err != nil {
			return block.ErrWouldBlock
		}
		return nil
	}
	return block.ErrWouldBlock
}

// Prefetch begins to bring bytes of a segment into memory, where its first live copy can do that. It may wait for the segment to be opened, and for nothing else. It is a hint: what
// is wrong with the segment is for ReadAt to tell.
func (s *Set) Prefetch(ctx context.Context, id block.SegmentID, list PlacementList, off, n int64) {
	for i := range list {
		pl := &list[i]
		if pl.State != Live {
			continue
		}
		h, err := s.handles.acquire(ctx, handleKey{pl.Tier, pl.Key}, func() (Reader, error) { return s.open(id, pl) })
		if err != nil {
			return
		}
		if p, ok := h.r.(Prefetcher); ok {
			p.Prefetch(off, n)
		}
		s.handles.release(h)
		return
	}
}

// Delete removes the copy p. Reads that have begun end well; later ones find nothing. The caller has made sure that no row refers to p.
func (s *Set) Delete(p Placement) error {
	b, err := s.Backend(p.Tier)
	if err != nil {
		return fmt.Errorf("delete segment: %w", err)
	}
	if err := s.DeleteParity(p); err != nil { // first: a sidecar without a segment would be nobody's
		return err
	}
	err = b.Delete(p.Key)
	s.handles.forget(handleKey{p.Tier, p.Key})
	if err != nil {
		return fmt.Errorf("delete segment %s from tier %q: %w", p.Key, p.Tier, err)
	}
	return nil
}

// Forget makes reads that begin from now on open the copy p anew: it lies elsewhere now, byte for byte the same.
func (s *Set) Forget(p Placement) { s.handles.forget(handleKey{p.Tier, p.Key}) }

// OpenHandles returns how many segments are open now.
func (s *Set) OpenHandles() int { return s.handles.open() }

// Close closes all handles that nobody uses; the others close with their last read. Reads that begin afterwards fail with block.ErrClosed. Backends stay as they are.
func (s *Set) Close() error { return s.handles.close() }
