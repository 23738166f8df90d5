package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newStoreScrub(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "scrub", Short: "Verify every segment and file of history of the store, and mend what is damaged"})
	c.AddCommand(
		newScrubStart(a),
		a.scrubCommand("status", "Show how far the scrub is that runs or ran last", func(ctx context.Context, api *client.Client) (client.Scrub, error) {
			r, err := client.GetScrub(ctx, api)
			if err != nil {
				return client.Scrub{}, err
			}
			return r.Scrub, nil
		}),
		a.scrubCommand("pause", "Stop the scrub after the segment or file it is at, across restarts of hvd", func(ctx context.Context, api *client.Client) (client.Scrub, error) {
			r, err := client.PauseScrub(ctx, api)
			if err != nil {
				return client.Scrub{}, err
			}
			return r.PauseScrub, nil
		}),
		a.scrubCommand("resume", "Let a paused scrub go on", func(ctx context.Context, api *client.Client) (client.Scrub, error) {
			r, err := client.ResumeScrub(ctx, api)
			if err != nil {
				return client.Scrub{}, err
			}
			return r.ResumeScrub, nil
		}),
		a.scrubCommand("cancel", "End the scrub that runs or is paused", func(ctx context.Context, api *client.Client) (client.Scrub, error) {
			r, err := client.CancelScrub(ctx, api)
			if err != nil {
				return client.Scrub{}, err
			}
			return r.CancelScrub, nil
		}),
	)
	return c
}

// scrubCommand makes a command without arguments that shows the scrub.
func (a *app) scrubCommand(use, short string, ask func(context.Context, *client.Client) (client.Scrub, error)) *cobra.Command {
	return shown(a, "store scrub", use, short, ".state", ask, a.showScrub)
}

func newScrubStart(a *app) *cobra.Command {
	var findOnly, wait bool
	c := &cobra.Command{
		Use:   "start",
		Short: "Begin to verify every sealed segment and file of history",
		Long: `Begin to read every sealed segment, its parity and the hash of each chunk, those with the most references first, then every sealed file of history with its parity, and mend what is damaged.
It goes on after a restart of hvd where it was, and uses at most store.keep-rate of hvd, less while guests are served. Without --wait it begins and returns.`,
		Example: "  hv-storage-fabric store scrub start --wait\n  hv-storage-fabric store scrub start --find-only",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.StartScrub(c.Context(), api, findOnly)
			if err != nil {
				return err
			}
			s := reply.StartScrub
			if wait {
				if s, err = a.waitScrubbed(c.Context(), api, s); err != nil {
					return err
				}
			}
			if err := a.showScrub(s); err != nil {
				return err
			}
			if wait && s.Damaged > s.Mended {
				return fmt.Errorf("%d segments or files of history are damaged and not mended; hv-storage-fabric store repair says what that affects", s.Damaged-s.Mended)
			}
			return nil
		},
	}
	c.Flags().BoolVar(&findOnly, "find-only", false, "only look, and mend nothing")
	c.Flags().BoolVar(&wait, "wait", false, "return when it is done; the exit code is 1 if damage is left")
	return c
}

// waitScrubbed returns when the scrub has ended.
func (a *app) waitScrubbed(ctx context.Context, api *client.Client, s client.Scrub) (client.Scrub, error) {
	run := s.Run
	meter := a.newMeter("scrubbing", 0, false)
	defer meter.End()
	for s.Run == run && s.EndedAt == nil {
		select {
		case <-ctx.Done():
			return s, fmt.Errorf("stopped waiting, the scrub goes on: %w", ctx.Err())
		case <-time.After(settleEvery):
		}
		reply, err := client.GetScrub(ctx, api)
		if err != nil {
			return s, err
		}
		s = reply.Scrub
		meter.Total = s.BytesDone + s.BytesLeft
		meter.At(s.BytesDone)
	}
	if s.Run != run {
		return s, errors.New("another scrub has begun meanwhile")
	}
	return s, nil
}

func (a *app) showScrub(s client.Scrub) error {
	return a.show(s, func() {
		rows := [][2]string{{"state", s.State}}
		if s.Run > 0 {
			what := scrubbed(s.SegmentsDone, s.HistoryDone, s.BytesDone)
			if s.SegmentsLeft+s.HistoryLeft > 0 {
				what += "; " + scrubbed(s.SegmentsLeft, s.HistoryLeft, s.BytesLeft) + " left"
			}
			rows = append(rows, [2]string{"run", fmt.Sprint(s.Run)}, [2]string{"done", what}, [2]string{"damaged", fmt.Sprintf("%d, %d of them mended", s.Damaged, s.Mended)})
		}
		for _, m := range []struct {
			name string
			at   *time.Time
		}{{"started", s.StartedAt}, {"ended", s.EndedAt}} {
			if m.at != nil {
				rows = append(rows, [2]string{m.name, m.at.Local().Format(time.RFC3339)})
			}
		}
		a.pairs(rows)
	})
}

// scrubbed says how much was or is to be looked at.
func scrubbed(segments, files, bytes uint64) string {
	what := fmt.Sprintf("%d segments, ", segments)
	if files > 0 {
		what += fmt.Sprintf("%d files of history, ", files)
	}
	return what + units.Size(bytes).Human()
}

func newStoreRepair(a *app) *cobra.Command {
	var list bool
	c := &cobra.Command{
		Use:   "repair",
		Short: "Mend the segments and files of history that are known to be damaged, and say what cannot be mended",
		Long: `Try again to mend every segment and every file of history that reads or scrubs found damaged since hvd was started, and list these with what of volumes and snapshots is affected.
What a read or a scrub meets is mended without this command as far as parity reaches. What it does not reach is looked for in what was written again since, in the log and in histories.
What is lost then, "hv-backup repair-store" takes from backups of the volumes. The exit code is 1 if damage is left.`,
		Example: "  hv-storage-fabric store scrub start --wait; hv-storage-fabric store repair\n  hv-storage-fabric store repair --list -o json | jq '.[] | select(.mended | not) | .places'",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			var all []client.Damage
			if list {
				reply, err := client.ListDamages(c.Context(), api)
				if err != nil {
					return err
				}
				all = reply.Damages
			} else {
				reply, err := client.Repair(c.Context(), api)
				if err != nil {
					return err
				}
				all = reply.Repair
			}
			return a.showDamages(all)
		},
	}
	c.Flags().BoolVar(&list, "list", false, "only list what is known, and mend nothing")
	return c
}

func (a *app) showDamages(all []client.Damage) error {
	left := 0
	for _, d := range all {
		if !d.Mended {
			left++
		}
	}
	err := a.show(all, func() {
		if len(all) == 0 {
			a.say("no damage is known")
		}
		for _, d := range all {
			if d.History != nil {
				a.showHistoryDamage(&d)
				continue
			}
			if d.Mended {
				a.say("%s: %d damaged columns, all mended", d.File, d.Columns)
				continue
			}
			a.say("%s: %d damaged columns, %d beyond parity, %d chunks lost: %s", d.File, d.Columns, d.Lost, d.Chunks, d.Reason)
			for _, p := range d.Places {
				name := p.Volume
				if p.Snapshot != "" {
					name += "@" + p.Snapshot
				}
				a.say("  %s at %d+%d B", name, p.Offset, p.Length)
			}
			if d.MorePlaces > 0 {
				a.say("  and %d places more", d.MorePlaces)
			}
		}
	})
	if err == nil && left > 0 {
		err = fmt.Errorf("%d segments or files of history are damaged and not mended: what is listed of volumes `hv-backup repair-store --repo REPO` takes from backups; or write it again", left)
	}
	return err
}

// showHistoryDamage says what is wrong with a file of history, and which writes it had.
func (a *app) showHistoryDamage(d *client.Damage) {
	if d.Mended {
		a.say("%s, history of %s: %d damaged columns, all mended", d.File, d.History.Volume, d.Columns)
		return
	}
	a.say("%s, history of %s: %d damaged columns, %d beyond parity: %s", d.File, d.History.Volume, d.Columns, d.Lost, d.Reason)
	for _, r := range d.History.Ranges {
		a.say("  lost at %d+%d B: writes %d to %d, from %s to %s", r.Offset, r.Length, r.FromSeq, r.ToSeq, r.From.Local().Format(time.RFC3339), r.To.Local().Format(time.RFC3339))
	}
	if d.History.More > 0 {
		a.say("  and %d ranges more", d.History.More)
	}
}
