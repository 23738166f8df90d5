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

func newStoreExplain(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "explain [VOLUME]",
		Short: "Say where the savings come from, and what holds the space",
		Long: `Say of a volume, or of all, where the savings come from: what was never written, zeroes, duplicates inside and across volumes, clones, compression;
what is unique, what is shared, what only snapshots hold, what will be given back; and, of the store, how far its volumes promise more than there is room.

hvd surveys the maps and chunks of one moment in the background: it reads each map twice, about 10 s for a TiB of data, and nobody waits for it. What was written in the
last seconds is in the log alone and not in the survey; store settle --wait brings it in. Ctrl-C ends the survey.`,
		Example:           "  hv-storage-fabric store explain\n  hv-storage-fabric store settle --wait && hv-storage-fabric store explain web1\n  hv-storage-fabric store explain web1 -o json | jq .unique.storedBytes",
		Args:              atMost("VOLUME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			volume := "" // all
			if len(args) == 1 {
				volume = args[0]
			}
			reply, err := client.StartExplain(c.Context(), api, volume)
			if err != nil {
				return err
			}
			state, err := a.waitExplained(c.Context(), api, reply.Explain)
			if err != nil {
				return err
			}
			return a.show(state.Explanation, func() { a.explanation(state.Explanation) })
		},
	}
}

// atMost allows one argument or none.
func atMost(name string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 1 {
			return usagef("%s takes one %s or none, got %s", c.CommandPath(), name, counted(len(args), "argument"))
		}
		return nil
	}
}

// waitExplained returns when the survey has ended. If the caller does not want it any more, it is ended.
func (a *app) waitExplained(ctx context.Context, api *client.Client, x client.Explaining) (client.Explaining, error) {
	run := x.Run
	meter := a.newMeter("surveying", 0, false)
	defer meter.End()
	for x.Run == run && x.Running {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer cancel()
			_, err := client.CancelExplain(last, api)
			return x, errors.Join(fmt.Errorf("the survey was ended: %w", ctx.Err()), err)
		case <-time.After(settleEvery):
		}
		reply, err := client.GetExplaining(ctx, api)
		if err != nil {
			return x, err
		}
		x = reply.Explaining
		meter.Total = x.TotalBytes
		meter.At(x.DoneBytes)
	}
	switch {
	case x.Run != run:
		return x, errors.New("another survey has begun meanwhile; try again")
	case x.Error != "":
		return x, errors.New(x.Error)
	case x.Cancelled || x.Explanation == nil:
		return x, errors.New("the survey was ended by somebody else; try again")
	}
	return x, nil
}

// explanation prints a survey for people.
func (a *app) explanation(e *client.Explanation) {
	human := func(n uint64) string { return units.Size(n).Human() }
	of := func(n, all uint64) string {
		if all == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f %%", 100*float64(n)/float64(all))
	}
	what := "volume " + e.Volume
	if e.Volume == "" {
		what = counted(e.Volumes, "volume")
	}
	raw := e.Unique.RawBytes + e.Shared.RawBytes
	stored := e.Unique.StoredBytes + e.Shared.StoredBytes
	line := func(name string, n, all uint64, note string) []string {
		return []string{name, human(n), of(n, all), note}
	}
	rows := [][]string{
		line("size", e.SizeBytes, e.SizeBytes, what),
		line("  not written", e.UnwrittenBytes, e.SizeBytes, "or trimmed; takes no space"),
		line("  zeroes", e.ZeroBytes, e.SizeBytes, "written as such; take no space"),
		line("  data", e.DataBytes, e.SizeBytes, ""),
	}
	if e.DamagedBytes > 0 {
		rows = append(rows, line("  damaged", e.DamagedBytes, e.SizeBytes, "answers EIO; hv-storage-fabric store repair"))
	}
	rows = append(rows,
		line("data", e.DataBytes, e.DataBytes, ""),
		line("  dedup inside", e.DedupInsideBytes, e.DataBytes, "the same volume has it already"),
		line("  dedup across", e.DedupAcrossBytes, e.DataBytes, "another volume has it"),
		line("  cloned", e.ClonedBytes, e.DataBytes, "shared with what the volume was cloned from"),
		line("  once", e.FirstBytes, e.DataBytes, ""),
		line("needed", raw, raw, "chunks, each counted once"),
		line("  saved", raw-min(raw, stored), raw, "by compression, alone or together with similar chunks"),
		line("  stored", stored, raw, "in segments"),
	)
	a.table([]string{"SAVINGS", "BYTES", "PART", ""}, rows)
	a.section([]string{"SPACE", "STORED", "BEFORE COMPRESSION", ""}, a.explainedSpace(e))
	if e.Volume == "" {
		a.explainedVolumes(e)
		if capacity := stored + e.Snapshots.StoredBytes + e.Elsewhere.StoredBytes + e.FreeBytes; capacity > 0 {
			a.say("")
			a.say("overcommit: the volumes promise %s, %.2f times what is stored and free (%s)", human(e.SizeBytes), float64(e.SizeBytes)/float64(capacity), human(capacity))
		}
	}
	a.say("")
	a.say("surveyed in %s: %d pages, %d chunks, %s of memory%s", seconds(e.TookSeconds), e.Pages, e.Rows, human(e.MemoryBytes), sampledNote(e.SampledOneIn))
	if e.UndestagedBytes > 0 {
		a.say("%s of the store are in the log alone and not in this: hv-storage-fabric store settle --wait brings them down", human(e.UndestagedBytes))
	}
}

// sampledNote says how exact a survey is, where it is not.
func sampledNote(oneIn uint64) string {
	if oneIn <= 1 {
		return ""
	}
	return fmt.Sprintf("; from one chunk in %d, since all would need more memory", oneIn)
}

// explainedSpace are the lines that say what holds the space.
func (a *app) explainedSpace(e *client.Explanation) [][]string {
	line := func(name string, h client.Held, note string) []string {
		return []string{name, units.Size(h.StoredBytes).Human(), units.Size(h.RawBytes).Human(), note}
	}
	rows := [][]string{
		line("unique", e.Unique, "only one volume needs it"),
		line("shared", e.Shared, "several volumes need it"),
		line("snapshots", e.Snapshots, "only snapshots of one volume need it: deleting them frees it"),
		line("snapshots, several", e.Elsewhere, "only snapshots need it, of several volumes"),
	}
	partlyDead := []string{"dead in needed chunks", "", units.Size(e.PartlyDeadBytes).Human(), "at most; overwrites left it, and it goes when the region is cut anew"}
	if e.Volume != "" {
		rows[0][3], rows[1][3] = "no other volume needs it", "other volumes need it, too"
		rows[2][3], rows[3][3] = "only its snapshots need it: deleting them frees it", "only its snapshots need it, and other volumes"
		return append(rows, partlyDead, []string{"parity", units.Size(e.ParityBytes).Human(), "", "its part; store.parity of hvd"},
			[]string{"parity of history", units.Size(e.HistoryParityBytes).Human(), "", "of its own; store.parity of hvd"})
	}
	plain := func(name string, n uint64, note string) []string {
		return []string{name, units.Size(n).Human(), "", note}
	}
	return append(rows,
		line("being deleted", e.Waiting, "nothing needs it; deletes and trims are still worked off"),
		partlyDead,
		plain("dead", e.HeldUnusedBytes, "in segments that wait for reclaim"),
		plain("reclaimable", e.HeldUnusedBytes+e.Waiting.StoredBytes, "these two: hv-storage-fabric store settle --wait gives them back"),
		plain("parity", e.ParityBytes, "beside segments; store.parity of hvd"),
		plain("parity of history", e.HistoryParityBytes, "beside sealed files of history; store.parity of hvd"),
		plain("metadata", e.MetadataBytes, "maps, chunk rows, and their checkpoints"),
	)
}

func (a *app) explainedVolumes(e *client.Explanation) {
	rows := make([][]string, 0, len(e.PerVolume))
	for _, v := range e.PerVolume {
		human := func(n uint64) string { return units.Size(n).Human() }
		rows = append(rows, []string{v.Name, human(v.SizeBytes), human(v.DataBytes), human(v.DedupInsideBytes), human(v.SharedBytes), human(v.OwnBytes), fmt.Sprint(v.Snapshots)})
	}
	a.section([]string{"VOLUME", "SIZE", "DATA", "DUPLICATE", "SHARED", "ITS OWN", "SNAPSHOTS"}, rows)
}
