package control

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// Scrub is how far the scrub is that runs or ran last.
type Scrub struct {
	State        string // "never", "running", "paused", "done" or "cancelled"
	Run          uint64 // number of the scrub, from 1 on
	FindOnly     bool
	StartedAt    *time.Time
	EndedAt      *time.Time
	SegmentsDone uint64
	SegmentsLeft uint64
	HistoryDone  uint64 // sealed files of history
	HistoryLeft  uint64
	BytesDone    uint64
	BytesLeft    uint64
	Damaged      uint64 // segments and files
	Mended       uint64 // of these
}

func scrubOf(s blockstore.ScrubStatus, err error) (Scrub, error) {
	moment := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	return Scrub{
		State: s.State.String(), Run: s.Run, FindOnly: s.FindOnly, StartedAt: moment(s.StartedAt), EndedAt: moment(s.EndedAt),
		SegmentsDone: s.SegmentsDone, SegmentsLeft: s.SegmentsLeft, HistoryDone: s.HistoryDone, HistoryLeft: s.HistoryLeft, BytesDone: s.BytesDone, BytesLeft: s.BytesLeft, Damaged: s.Damaged, Mended: s.Mended,
	}, err
}

// Scrub returns how far the scrub is.
func (c *Control) Scrub() Scrub {
	s, _ := scrubOf(c.engine.Scrub(), nil)
	return s
}

// StartScrub begins a scrub.
func (c *Control) StartScrub(findOnly bool) (Scrub, error) {
	return scrubOf(c.engine.StartScrub(findOnly))
}

// PauseScrub stops the scrub until it is resumed, across restarts.
func (c *Control) PauseScrub() (Scrub, error) { return scrubOf(c.engine.PauseScrub()) }

// ResumeScrub lets a paused scrub go on.
func (c *Control) ResumeScrub() (Scrub, error) { return scrubOf(c.engine.ResumeScrub()) }

// CancelScrub ends the scrub.
func (c *Control) CancelScrub() (Scrub, error) { return scrubOf(c.engine.CancelScrub()) }

// Damage is what is known of a damaged segment, or of a damaged file of history.
type Damage struct {
	Segment    uint64 // 0: it is a file of history
	File       string
	FoundAt    time.Time
	Columns    int
	Mended     bool
	Lost       int
	Chunks     int
	Places     []blockstore.DamagedPlace
	MorePlaces uint64
	Reason     string
	History    *blockstore.HistoryDamage // of a file of history
}

// Damages lists the segments and files of history that were found damaged since the start: files by their names, and then segments by their ids.
func (c *Control) Damages() []Damage {
	all := []Damage{}
	for _, d := range c.engine.Damages() {
		places := d.Places
		if places == nil {
			places = []blockstore.DamagedPlace{}
		}
		all = append(all, Damage{Segment: uint64(d.Segment), File: d.File, FoundAt: d.FoundAt, Columns: d.Columns, Mended: d.Mended, Lost: d.Lost, Chunks: d.Chunks, Places: places, MorePlaces: d.More, Reason: d.Reason, History: d.History})
	}
	slices.SortFunc(all, func(a, b Damage) int { return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.File, b.File)) })
	return all
}

// Repair tries again to mend what is damaged and returns what came of it.
func (c *Control) Repair(ctx context.Context) ([]Damage, error) {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := c.engine.Repair(ctx); err != nil {
		return nil, err
	}
	return c.Damages(), nil
}

// LostChunks lists chunks that cannot be read, by parity and copies neither, from after on, and whether there are more.
func (c *Control) LostChunks(ctx context.Context, after block.ChunkID) ([]blockstore.LostChunk, bool, error) {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return nil, false, err
	}
	defer done()
	return c.engine.LostChunks(ctx, after)
}

// Heal takes bytes that may be those of lost chunks and returns the ids of those that are whole now.
func (c *Control) Heal(ctx context.Context, all []blockstore.ChunkBytes) ([]block.ChunkID, error) {
	ctx, done, err := c.work(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return c.engine.Heal(ctx, all)
}
