package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// historyView is the history of a volume with -o json. Its fields are part of the interface.
type historyView struct {
	Volume        string     `json:"volume"`
	WindowSeconds float64    `json:"windowSeconds"`
	BudgetBytes   uint64     `json:"budgetBytes"`
	Bytes         uint64     `json:"bytes"`
	FirstSeq      uint64     `json:"firstSeq"`
	First         *time.Time `json:"first"` // null: none can be had yet
	LastSeq       uint64     `json:"lastSeq"`
	Roots         int        `json:"roots"`
	Gaps          uint64     `json:"gaps"`
	LastGap       string     `json:"lastGap"`
	Stopped       bool       `json:"stopped"`
}

func viewHistory(h *client.History) *historyView {
	if h == nil {
		return nil
	}
	v := &historyView{Volume: h.Volume, WindowSeconds: h.WindowSeconds, BudgetBytes: h.BudgetBytes, Bytes: h.Bytes, FirstSeq: h.FirstSeq, LastSeq: h.LastSeq, Roots: h.Roots, Gaps: h.Gaps, LastGap: h.LastGap, Stopped: h.Stopped}
	if h.FirstSeq > 0 {
		v.First = &h.First
	}
	return v
}

func newVolumeHistory(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "history", Short: "Keep every write of a volume for a while (continuous data protection)"})
	show := a.volumeCommand("show NAME", "Show how far back a volume can go", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.GetHistory(c.Context(), api, name)
		if err != nil {
			return err
		}
		return a.showHistory(name, &reply.History)
	})
	show.Example = "  hv-storage-fabric volume history show web1"
	end := a.volumeCommand("clear NAME", "End the history of a volume and give up all that is there of it", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.SetVolumeHistory(c.Context(), api, name, 0, 0)
		if err != nil {
			return err
		}
		return a.showHistory(name, reply.SetVolumeHistory)
	})
	end.Example = "  hv-storage-fabric volume history clear web1"
	c.AddCommand(newHistorySet(a), show, end)
	return c
}

func newHistorySet(a *app) *cobra.Command {
	var window time.Duration
	var budget units.Size
	c := &cobra.Command{
		Use:   "set NAME --window TIME",
		Short: "Keep every write of a volume for a while",
		Long: `Keep every write of a volume for a while: "hv-backup cdp" attaches or restores what it was after any of them. It holds from now on and across restarts; what was before cannot be had.

What is written is copied once more, in the background, before the log lets it go; a guest's write neither waits for that nor fails for it. Over the budget, or when the disk is near full, the oldest history goes first.
A store that has, or had, history is refused by an hvd that does not know it.`,
		Example: `  hv-storage-fabric volume history set web1 --window 1h
  hv-storage-fabric volume history set db1 --window 24h --budget 50GiB`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			if window < time.Second {
				return usagef("--window %v: want at least 1s; `hv-storage-fabric volume history clear` ends history", window)
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.SetVolumeHistory(c.Context(), api, args[0], window.Seconds(), uint64(budget))
			if err != nil {
				return err
			}
			return a.showHistory(args[0], reply.SetVolumeHistory)
		},
	}
	c.Flags().DurationVar(&window, "window", time.Hour, "how far back, such as 90m or 24h")
	c.Flags().Var(&budget, "budget", "what it may take on disk, with "+sizeUnits+"; 0: the lesser of 10GiB and 5 % of the file system")
	for _, name := range []string{"window", "budget"} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return c
}

// showHistory prints the history of a volume: an object, or null where there is none.
func (a *app) showHistory(name string, h *client.History) error {
	v := viewHistory(h)
	return a.show(v, func() {
		if v == nil {
			a.say("volume %s keeps no history", name)
			return
		}
		a.say("volume %s keeps every write of %v, in %s of %s", v.Volume, time.Duration(v.WindowSeconds*float64(time.Second)), units.Size(v.Bytes).Human(), units.Size(v.BudgetBytes).Human())
		if v.First != nil {
			a.say("oldest: record %d of %s", v.FirstSeq, v.First.Format(time.RFC3339Nano))
		}
		if v.LastGap != "" {
			a.say("began anew %d times since the daemon started, last because: %s", v.Gaps, v.LastGap)
		}
		if v.Stopped {
			a.say("nothing is kept at the moment")
		}
	})
}
