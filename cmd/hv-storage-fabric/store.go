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

func newStore(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "store", Short: "Look at the store under the volumes"})
	c.AddCommand(newStoreStats(a), newStoreExplain(a), newStoreWhatIf(a), newStoreAlarms(a), newStoreSettle(a), newStoreGC(a), newStoreScrub(a), newStoreRepair(a), newStoreIndex(a), newStoreRebuildIndex(a), newStoreCheck(a), newStoreDump(a), newStoreUpgrade(a), newStoreKey(a))
	return c
}

func newStoreStats(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "stats",
		Example: "  hv-storage-fabric store stats\n  hv-storage-fabric store stats -o json | jq .storedBytes",
		Short:   "Print sizes, ratios, log, traffic, caches and memory",
		Args:    exactly(),
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
		{"volumes", fmt.Sprintf("%d, with %s", s.Volumes, counted(s.Snapshots, "snapshot"))},
		{"logical", human(s.LogicalBytes) + " (sizes of all volumes)"},
		{"non-zero", human(s.NonZeroBytes) + " (what volumes and snapshots refer to)"},
		{"unique", fmt.Sprintf("%s (dedup %s)", human(s.UniqueBytes), ratio(s.DedupRatio))},
		{"found again", human(s.SharedBytes) + " (of unique, by dedup; not by clones and snapshots)"},
		{"stored", fmt.Sprintf("%s (compression %s)", human(s.StoredBytes), ratio(s.CompressionRatio))},
		{"held but unused", human(s.HeldUnusedBytes) + " (to be reclaimed)"},
		{"cold", fmt.Sprintf("%s of unique, %s on their way", human(s.ColdBytes), human(s.CoolingBytes))},
		{"similar", fmt.Sprintf("%s of %s that went cold, saved about %s, took %s", human(s.SimilarBytes), human(s.CooledBytes), human(s.SimilarSavedBytes), seconds(s.SimilarSeconds))},
		{"metadata", human(s.MetadataBytes)},
		{"parity", fmt.Sprintf("%s for %s of segments, %s have none yet", human(s.ParityBytes), human(s.GuardedBytes), human(s.UnguardedBytes))},
		{"parity of history", human(s.HistoryParityBytes)},
		{"damage", fmt.Sprintf("%d columns found, %d mended, %d lost, %d reads answered by parity or a second copy", s.DamageFound, s.DamageMended, s.DamageLost, s.InlineRepairs)},
		{"history", human(s.HistoryBytes) + " of files"},
		{"second copies", human(s.SecondCopyBytes) + " of what very many references lead to"},
		{"space", fmt.Sprintf("%s, %s free, %s in reserve", s.Space, human(s.FreeBytes), human(s.ReserveBytes))},
		{"log", fmt.Sprintf("%s of %s (%.0f %%)", human(s.LogUsedBytes), human(s.LogCapBytes), 100*s.LogFill)},
		{"streams", fmt.Sprintf("%s of %s beside it", human(s.StreamUsedBytes), human(s.StreamRoomBytes))},
		{"not destaged", fmt.Sprintf("%s, oldest %s", human(s.UndestagedBytes), seconds(s.DestageLagSeconds))},
		{"guests", fmt.Sprintf("%s read, %s written, %d syncs", human(s.GuestReadBytes), human(s.GuestWrittenBytes), s.Syncs)},
		{"written to disk", fmt.Sprintf("%s (%.2f per byte from guests)", human(s.DiskWrittenBytes), s.WriteAmplification)},
	})
	rows := make([][]string, 0, len(s.Caches))
	for _, c := range s.Caches {
		rows = append(rows, []string{c.Name, fmt.Sprint(c.Hits), fmt.Sprint(c.Misses), hitRate(c.HitRate, c.Hits+c.Misses)})
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

// ratio is "-" where there is nothing to compare yet, which hvd reports as 0.
func ratio(r float64) string {
	if r == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f : 1", r)
}

// hitRate is "-" of a cache that nobody asked yet.
func hitRate(rate float64, asked uint64) string {
	if asked == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f %%", 100*rate)
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
	var class string
	c := &cobra.Command{
		Use:   "settle",
		Short: "Destage and reclaim everything, so that sizes can be compared",
		Long: `Move everything that is in the log into segments and reclaim all that nothing refers to, so that sizes can be compared.
What is written meanwhile is not waited for. Without --wait it begins and returns. When the store cannot get on, as on a full
disk or with damaged metadata, it says so after some seconds and ends with 1; the work itself goes on trying.

With --class cold all that is stored is rewritten into cold segments, too: compressed harder, in large frames, in the order of
volumes and offsets. That is the smallest that the store can be. What is read at random is then read more slowly, until it is
written anew; what is read from one end to the other is not.`,
		Example: "  hv-storage-fabric store settle --wait && hv-storage-fabric store stats\n  hv-storage-fabric store settle --wait --class cold",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			if class != "warm" && class != "cold" {
				return usagef("--class %q is neither warm nor cold", class)
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.StartSettle(c.Context(), api, class == "cold")
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
				if state.Ended < state.Run {
					a.say("settling")
				} else {
					a.say("settled")
				}
			})
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when it is done")
	c.Flags().StringVar(&class, "class", "warm", "warm: leave the class of what is stored; cold: rewrite it densely")
	_ = c.RegisterFlagCompletionFunc("class", cobra.FixedCompletions([]string{"warm", "cold"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// settlePhases says what a settle waits for.
var settlePhases = map[string]string{
	"destage": "settling: moving from the log into segments", "compact": "settling: rewriting the metadata without what is out of date", "cool": "settling: rewriting into cold segments", "recut": "settling: cutting anew what lies in pieces", "audit": "settling: auditing what is about to be deleted", "reclaim": "settling: giving back what is dead", "checkpoint": "settling: writing a checkpoint of the metadata",
}

// waitSettled returns when the settle that was asked for, or a later one, has ended.
func (a *app) waitSettled(ctx context.Context, api *client.Client, state client.Settling) (client.Settling, error) {
	run := state.Run
	meter := a.newMeter("settling", 0, false)
	defer meter.End()
	for state.Ended < run {
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
		if what := settlePhases[state.Phase]; state.Run == run && what != "" {
			meter.What = what
		}
		meter.Total = state.DoneBytes + state.LeftBytes
		meter.At(state.DoneBytes)
	}
	if state.Error != "" {
		return state, errors.New(state.Error)
	}
	return state, nil
}

// shown makes a command without arguments, use below parent, that asks hvd for something and shows the answer. field is one of the answer's, for the example.
func shown[T any](a *app, parent, use, short, field string, ask func(context.Context, *client.Client) (T, error), show func(T) error) *cobra.Command {
	line := "  hv-storage-fabric " + parent + " " + use
	return &cobra.Command{
		Use: use, Short: short, Args: exactly(), Example: line + "\n" + line + " -o json | jq " + field,
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			answer, err := ask(c.Context(), api)
			if err != nil {
				return err
			}
			return show(answer)
		},
	}
}
