package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newStore(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "store", Short: "Look at the store under the volumes"})
	c.AddCommand(newStoreStats(a), newStoreSettle(a), newStoreCheck(a), newStoreDump(a))
	return c
}

func newStoreStats(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stats",
		Short: "Print sizes, ratios, log, traffic, caches and memory",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.GetStats(c.Context(), api)
			if err != nil {
				return err
			}
			return a.show(reply.Stats, func() { a.statsTable(reply.Stats) })
		},
	}
}

func (a *app) statsTable(s client.Stats) {
	human := func(n uint64) string { return units.Size(n).Human() }
	a.pairs([][2]string{
		{"volumes", fmt.Sprintf("%d, with %d snapshots", s.Volumes, s.Snapshots)},
		{"logical", human(s.LogicalBytes) + " (sizes of all volumes)"},
		{"non-zero", human(s.NonZeroBytes) + " (what volumes and snapshots refer to)"},
		{"unique", fmt.Sprintf("%s (dedup %.2f : 1)", human(s.UniqueBytes), s.DedupRatio)},
		{"shared", human(s.SharedBytes) + " (of unique, with several references)"},
		{"stored", fmt.Sprintf("%s (compression %.2f : 1)", human(s.StoredBytes), s.CompressionRatio)},
		{"held but unused", human(s.HeldUnusedBytes) + " (to be reclaimed)"},
		{"metadata", human(s.MetadataBytes)},
		{"space", fmt.Sprintf("%s, %s free, %s in reserve", s.Space, human(s.FreeBytes), human(s.ReserveBytes))},
		{"log", fmt.Sprintf("%s of %s (%.0f %%)", human(s.LogUsedBytes), human(s.LogCapBytes), 100*s.LogFill)},
		{"not destaged", fmt.Sprintf("%s, oldest %s", human(s.UndestagedBytes), seconds(s.DestageLagSeconds))},
		{"guests", fmt.Sprintf("%s read, %s written, %d syncs", human(s.GuestReadBytes), human(s.GuestWrittenBytes), s.Syncs)},
		{"written to disk", fmt.Sprintf("%s (%.2f per byte from guests)", human(s.DiskWrittenBytes), s.WriteAmplification)},
	})
	rows := make([][]string, 0, len(s.Caches))
	for _, c := range s.Caches {
		rows = append(rows, []string{c.Name, fmt.Sprint(c.Hits), fmt.Sprint(c.Misses), fmt.Sprintf("%.1f %%", 100*c.HitRate)})
	}
	a.section([]string{"CACHE", "HITS", "MISSES", "HIT RATE"}, rows)
	rows = rows[:0]
	for _, m := range s.Memory {
		budget := "-"
		if m.BudgetBytes > 0 {
			budget = human(m.BudgetBytes)
		}
		rows = append(rows, []string{m.Name, human(m.UsedBytes), budget})
	}
	a.section([]string{"MEMORY", "USED", "BUDGET"}, rows)
}

// section prints a table after an empty line, if there is anything in it.
func (a *app) section(header []string, rows [][]string) {
	if len(rows) > 0 {
		a.say("")
		a.table(header, rows)
	}
}

func seconds(s float64) string {
	return time.Duration(s * float64(time.Second)).Round(100 * time.Millisecond).String()
}

// settleEvery is how often a waiting settle asks how far it is.
const settleEvery = 200 * time.Millisecond

func newStoreSettle(a *app) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "settle",
		Short: "Destage and reclaim everything, so that sizes can be compared",
		Long: `Move everything from the log into segments and reclaim all that nothing refers to, so that sizes can be compared.
Without --wait it begins and returns.`,
		Example: "  hv-storage-fabric store settle --wait && hv-storage-fabric store stats",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.StartSettle(c.Context(), api)
			if err != nil {
				return err
			}
			state := reply.Settle
			if wait {
				if state, err = a.waitSettled(c.Context(), api, state); err != nil {
					return err
				}
			}
			return a.show(state, func() {
				if state.Running {
					a.say("settling")
				} else {
					a.say("settled")
				}
			})
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when it is done")
	return c
}

func (a *app) waitSettled(ctx context.Context, api *client.Client, state client.Settling) (client.Settling, error) {
	meter := a.newMeter("settling", 0, false)
	defer meter.end()
	for state.Running {
		select {
		case <-ctx.Done():
			return state, fmt.Errorf("stopped waiting, the settle goes on: %w", ctx.Err())
		case <-time.After(settleEvery):
		}
		reply, err := client.GetSettling(ctx, api)
		if err != nil {
			return state, err
		}
		state = reply.Settling
		meter.total = state.DoneBytes + state.LeftBytes
		meter.at(state.DoneBytes)
	}
	if state.Error != "" {
		return state, fmt.Errorf("settle: %s", state.Error)
	}
	return state, nil
}
