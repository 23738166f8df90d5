package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/heatmap/onset"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newCDPFindOnset(a *app) *cobra.Command {
	var stretch units.Span
	c := &cobra.Command{
		Use:   "find-onset VOLUME",
		Short: "Find when something began to overwrite a volume with what looks encrypted",
		Long: `Find the moment at which something began to overwrite a volume with what looks encrypted, as ransomware does: where data is replaced by data of the highest entropy at many times the rate that was usual in the volume's history
before. The number that is printed names the state just before it, for "cdp attach" and "cdp restore". It is a hint, not a verdict: an archive that is unpacked over old files, or a disk that the guest itself encrypts, may look the same,
and what is slower than a MiB a second is not told.`,
		Example: `  hv-backup cdp find-onset web1
  hv-backup cdp attach web1 --at "$(hv-backup cdp find-onset web1 -o json | jq .onsets[0].before)"`,
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			found, err := a.findOnset(c.Context(), args[0], time.Duration(stretch)*time.Second)
			if err != nil {
				return err
			}
			return a.show(map[string]any{"volume": args[0], "onsets": found}, func() { a.tellOnsets(args[0], found) })
		},
	}
	c.Flags().Var(&stretch, "stretch", "how finely to look (default: 10s, or a 2000th of the history)")
	return c
}

func (a *app) findOnset(ctx context.Context, volume string, stretch time.Duration) ([]onset.Onset, error) {
	api, err := a.hvd()
	if err != nil {
		return nil, err
	}
	if stretch == 0 {
		info, err := client.GetHistory(ctx, api, volume)
		if err != nil {
			return nil, err
		}
		stretch = 10 * time.Second
		if first := info.History.First; !first.IsZero() {
			stretch = max(stretch, (time.Since(first) / 2000).Truncate(time.Second))
		}
	}
	activity, err := api.HistoryActivity(ctx, volume, stretch)
	if err != nil {
		return nil, err
	}
	stretches := make([]onset.Stretch, 0, len(activity))
	for _, s := range activity {
		stretches = append(stretches, onset.Stretch{Start: s.Start, Before: s.BeforeSeq, Bytes: s.Bytes, Overwrites: s.OverwriteBytes, Entropy: s.Entropy, Random: s.RandomShare})
	}
	return append([]onset.Onset{}, onset.Find(stretches, stretch)...), nil
}

func (a *app) tellOnsets(volume string, found []onset.Onset) {
	if len(found) == 0 {
		a.say("nothing of the kind in the history of %s", volume)
		return
	}
	var rows [][]string
	for _, o := range found {
		rows = append(rows, []string{
			o.At.Local().Format(time.DateTime), fmt.Sprint(o.Before), units.Size(o.Usual).Human() + "/s", units.Size(o.Rate).Human() + "/s", units.Size(o.Bytes).Human(), fmt.Sprintf("%.0f %% to %.0f %%", 100*o.Was, 100*o.Random), fmt.Sprintf("%.0f", o.Score),
		})
	}
	console.Table(a.out, a.getenv, []string{"BEGAN", "STATE BEFORE", "USUAL", "THEN", "REPLACED", "LOOKS ENCRYPTED", "SCORE"}, rows)
	a.say("look at the state before it with: hv-backup cdp attach %s --at %d", volume, found[0].Before)
}
