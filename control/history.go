package control

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// momentMark stands in the name of an export between a volume and the number of a record: VOLUME@seq:NUMBER. No snapshot has such a name.
const momentMark = "@seq:"

// History is what a user sees of the history of a volume.
type History struct {
	Volume        string
	WindowSeconds float64
	BudgetBytes   uint64
	Bytes         uint64 // on disk
	FirstSeq      uint64
	First         *time.Time // nil: none can be had yet
	LastSeq       uint64
	Roots         int
	Gaps          uint64 // since the daemon started
	LastGap       string // why; else empty
	Stopped       bool
	// EverySeconds is the age up to which every write stays, and FlushesSeconds and MinutesSeconds those up to which flushes, and one point of each minute, do; 0: see blockstore.HistoryPolicy.
	EverySeconds   float64
	FlushesSeconds float64
	MinutesSeconds float64
	WholeSeq       uint64     // every write behind it can be had; before it, points
	Whole          *time.Time // nil: none can be had yet
}

// HistoryPoint is a moment that has a name of its own.
type HistoryPoint struct {
	Seq   uint64
	At    time.Time
	Kind  string
	Label string
}

// HistoryMoment is a moment that was opened or restored.
type HistoryMoment struct {
	Volume     string // of the export, or the new volume
	Seq        uint64
	At         time.Time
	Thinned    bool        // it is the newest point that thinning left at or before what was asked for
	Attachment *Attachment // nil: it is not attached
}

// SetHistory says how much of a volume's past can be had again, for good; none ends its history and gives all of it up.
func (c *Control) SetHistory(ctx context.Context, name string, policy blockstore.HistoryPolicy) (*History, error) {
	err := c.change(ctx, "set the history of", name, nil, func() error {
		if _, err := c.visible(name); err != nil {
			return err
		}
		if err := c.refuseRestoring("keep history of", name); err != nil {
			return err // a moment of it would not be whole
		}
		return c.engine.SetHistory(ctx, name, policy)
	})
	if err != nil || policy.None() {
		return nil, err
	}
	return c.History(name)
}

// History describes the history of a volume; block.ErrNotFound if it has none.
func (c *Control) History(name string) (*History, error) {
	if _, err := c.visible(name); err != nil {
		return nil, err
	}
	i, err := c.engine.History(name)
	if err != nil {
		return nil, err
	}
	h := &History{
		Volume: name, WindowSeconds: i.Policy.Window.Seconds(), BudgetBytes: i.Policy.BudgetBytes, Bytes: uint64(i.Bytes), FirstSeq: i.FirstSeq, LastSeq: i.LastSeq,
		Roots: i.Roots, Gaps: i.Gaps, LastGap: i.LastGap, Stopped: i.Stopped,
		EverySeconds: i.Policy.Every.Seconds(), FlushesSeconds: i.Policy.Flushes.Seconds(), MinutesSeconds: i.Policy.Minutes.Seconds(), WholeSeq: i.WholeSeq,
	}
	if i.FirstSeq > 0 {
		h.First, h.Whole = &i.First, &i.Whole
	}
	return h, nil
}

// HistoryPoints lists moments of a volume that have a name, oldest first, from behind a number on, at most first of them.
func (c *Control) HistoryPoints(ctx context.Context, name string, after uint64, first int, labelled bool) ([]HistoryPoint, error) {
	if _, err := c.visible(name); err != nil {
		return nil, err
	}
	found, err := c.engine.HistoryPoints(ctx, name, blockstore.PointQuery{After: after, Limit: first, Labelled: labelled})
	if err != nil {
		return nil, err
	}
	points := make([]HistoryPoint, 0, len(found))
	for _, p := range found {
		points = append(points, HistoryPoint(p))
	}
	return points, nil
}

// HistoryActivity tells what was written to a volume in its history, in stretches of a length, oldest first.
func (c *Control) HistoryActivity(ctx context.Context, name string, stretch time.Duration) ([]blockstore.Activity, error) {
	if _, err := c.visible(name); err != nil {
		return nil, err
	}
	return c.engine.HistoryActivity(ctx, name, stretch)
}

// HistoryLoss tells what SetHistory with a policy would give up of a volume's history, and changes nothing. Where there is none, nothing.
func (c *Control) HistoryLoss(ctx context.Context, name string, policy blockstore.HistoryPolicy) (blockstore.HistoryLoss, error) {
	if _, err := c.visible(name); err != nil {
		return blockstore.HistoryLoss{}, err
	}
	if err := policy.Validate(); err != nil {
		return blockstore.HistoryLoss{}, fmt.Errorf("history of volume %q: %w", name, err)
	}
	l, err := c.engine.HistoryLoss(ctx, name, policy)
	if errors.Is(err, block.ErrNotFound) {
		return blockstore.HistoryLoss{}, nil
	}
	return l, err
}

// MarkHistory names the present moment of a volume.
func (c *Control) MarkHistory(ctx context.Context, name, label string) (HistoryPoint, error) {
	if _, err := c.visible(name); err != nil {
		return HistoryPoint{}, err
	}
	m, err := c.parseMoment(label)
	if err == nil && m.Label == "" {
		err = fmt.Errorf("label %q could be taken for a time or the number of a record: %w", label, block.ErrInvalid)
	}
	if err != nil {
		return HistoryPoint{}, err
	}
	p, err := c.engine.MarkHistory(ctx, name, m.Label) // as it will be looked for
	return HistoryPoint(p), err
}

// parseMoment reads what a user calls a moment: the number of a record, a time as in RFC 3339, a time ago such as "5m ago", "now", or the label of a point.
func (c *Control) parseMoment(text string) (m blockstore.Moment, err error) {
	bad := func(why string) (blockstore.Moment, error) {
		return m, fmt.Errorf("moment %q: %s; give the number of a record, a time as 2026-11-29T06:00:00.5Z, a time ago as \"5m ago\", or the label of a point: %w", text, why, block.ErrInvalid)
	}
	text = strings.TrimSpace(text)
	switch {
	case text == "" || len(text) > maxName:
		return bad("it is empty or too long")
	case text == "now":
		return blockstore.Moment{At: c.opts.Now()}, nil
	}
	if seq, err := strconv.ParseUint(text, 10, 64); err == nil {
		if seq == 0 {
			return bad("records are counted from 1")
		}
		return blockstore.Moment{Seq: seq}, nil
	}
	if ago, ok := strings.CutSuffix(text, " ago"); ok {
		d, err := time.ParseDuration(strings.ReplaceAll(ago, " ", ""))
		if err != nil || d < 0 {
			return bad("that is no span of time")
		}
		return blockstore.Moment{At: c.opts.Now().Add(-d)}, nil
	}
	if at, err := time.Parse(time.RFC3339Nano, text); err == nil {
		return blockstore.Moment{At: at}, nil
	}
	return blockstore.Moment{Label: text}, nil
}

// AttachMoment exports a moment of a volume, read-only, now and after every restart, as long as history has it.
func (c *Control) AttachMoment(ctx context.Context, name, at string) (HistoryMoment, error) {
	var got HistoryMoment
	err := c.change(ctx, "attach a moment of", name, nil, func() error {
		info, err := c.visible(name)
		if err != nil {
			return err
		}
		m, err := c.parseMoment(at)
		if err != nil {
			return err
		}
		device, of, err := c.engine.OpenPoint(ctx, name, m)
		if err != nil {
			return err
		}
		key := name + momentMark + strconv.FormatUint(of.Seq, 10)
		got = HistoryMoment{Volume: key, Seq: of.Seq, At: of.At, Thinned: of.Thinned}
		if c.attachmentOf(key) != nil {
			return device.Close()
		}
		a := newAttachment(attachmentRecord{Volume: key, UUID: info.UUID.String(), AttachedAt: c.opts.Now().UTC(), way: way{ReadOnly: true}})
		a.device, a.view = device, reporting{device}
		if err := c.enter(ctx, a); err != nil {
			return fmt.Errorf("attach a moment of volume %q: %w", name, err)
		}
		return nil
	})
	if err == nil {
		got.Attachment = c.attachmentOf(got.Volume)
	}
	return got, err
}

// DetachMoment ends the export of a moment, as Detach does that of a volume.
func (c *Control) DetachMoment(ctx context.Context, export string, force bool) error {
	volume, _, ok := strings.Cut(export, momentMark)
	if !ok {
		return fmt.Errorf("%q is a volume, not a moment of one (VOLUME%sNUMBER); `hv-storage-fabric volume detach` is for volumes: %w", export, momentMark, block.ErrInvalid)
	}
	return c.change(ctx, "detach a moment of", volume, nil, func() error {
		if err := c.detach(ctx, export, force); err != nil {
			return fmt.Errorf("detach %q: %w", export, err)
		}
		return nil
	})
}

// RestoreMoment makes a volume that begins as a moment of another one was, and attaches it if asked to. It appears under its name when it is whole and durable.
func (c *Control) RestoreMoment(ctx context.Context, name, at, newName string, attach bool) (HistoryMoment, error) {
	got, err := c.restoreMoment(ctx, name, at, newName)
	if err != nil || !attach {
		return got, err
	}
	attached, _, err := c.Attach(ctx, AttachSpec{Volume: newName})
	got.Attachment = &attached
	return got, err
}

// restoreMoment holds the new name as long as it takes, so that others fail at once, and the volume that the moment is of only until the moment is open: that keeps what it needs by itself, and snapshots need not wait for it.
func (c *Control) restoreMoment(ctx context.Context, name, at, newName string) (got HistoryMoment, err error) {
	fail := func(err error) (HistoryMoment, error) {
		return HistoryMoment{}, fmt.Errorf("restore a moment: %w", err)
	}
	if err := checkVolume(newName); err != nil {
		return fail(err)
	}
	release, err := c.names.holdLong(ctx, "restore of a moment", newName)
	if err != nil {
		return fail(err)
	}
	defer release()
	if _, err := c.engine.Volume(newName); err == nil {
		return fail(fmt.Errorf("volume %q: %w", newName, block.ErrExists))
	}
	var device Device
	got = HistoryMoment{Volume: newName}
	err = c.change(ctx, "restore a moment of", name, nil, func() error {
		if _, err := c.visible(name); err != nil {
			return err
		}
		m, err := c.parseMoment(at)
		if err == nil {
			var of OpenedMoment
			device, of, err = c.engine.OpenPoint(ctx, name, m)
			got.Seq, got.At, got.Thinned = of.Seq, of.At, of.Thinned
		}
		return err
	})
	if err != nil {
		return HistoryMoment{}, err
	}
	hiddenName := importPrefix + strings.ToLower(rand.Text())
	err = errors.Join(c.engine.RestorePoint(ctx, device, hiddenName), device.Close())
	if err == nil {
		err = c.engine.RenameVolume(ctx, hiddenName, newName)
	}
	if err != nil {
		return HistoryMoment{}, errors.Join(err, c.discard(context.WithoutCancel(ctx), hiddenName))
	}
	return got, nil
}

// openMoment opens the device of an attachment of a moment again.
func (c *Control) openMoment(record attachmentRecord) (Device, error) {
	_, number, _ := strings.Cut(record.Volume, momentMark)
	seq, err := strconv.ParseUint(number, 10, 64)
	if err != nil || seq == 0 {
		return nil, fmt.Errorf("attachment %q: no number of a record: %w", record.Volume, block.ErrInvalid)
	}
	device, of, err := c.engine.OpenPoint(c.background, record.base(), blockstore.Moment{Seq: seq})
	if err == nil && of.Thinned { // who reads it must not find another moment under its name
		return nil, errors.Join(fmt.Errorf("attachment %q: the history of %q was thinned meanwhile, and has record %d instead: %w", record.Volume, record.base(), of.Seq, block.ErrNotFound), device.Close())
	}
	return device, err
}

// base is the volume that the attachment is of.
func (r *attachmentRecord) base() string {
	volume, _, _ := strings.Cut(r.Volume, momentMark)
	return volume
}

// isMoment reports whether a moment is attached.
func (r *attachmentRecord) isMoment() bool { return strings.Contains(r.Volume, momentMark) }
