package main

import (
	"fmt"
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

	EverySeconds   float64    `json:"everySeconds"` // 0: nothing is thinned
	FlushesSeconds float64    `json:"flushesSeconds"`
	MinutesSeconds float64    `json:"minutesSeconds"`
	WholeSeq       uint64     `json:"wholeSeq"` // every write behind it can be had
	Whole          *time.Time `json:"whole"`
}

// ages are those of the policy.
func (v *historyView) ages() units.Ages {
	return historyAges(v.WindowSeconds, v.EverySeconds, v.FlushesSeconds, v.MinutesSeconds)
}

// String says what is kept, and what it takes.
func (v *historyView) String() string {
	return fmt.Sprintf("%v, in %s of %s", v.ages(), units.Size(v.Bytes).Human(), units.Size(v.BudgetBytes).Human())
}

// historyAges are those of a policy, in seconds, whose last stretch is that of hours.
func historyAges(window, every, flushes, minutes float64) units.Ages {
	a := units.Ages{Every: units.Span(every), Flushes: units.Span(flushes), Minutes: units.Span(minutes)}
	if every == 0 {
		a.Every = units.Span(window)
	} else if w := units.Span(window); w > max(a.Every, a.Flushes, a.Minutes) {
		a.Hours = w
	}
	return a
}

func viewHistory(h *client.History) *historyView {
	if h == nil {
		return nil
	}
	v := &historyView{Volume: h.Volume, WindowSeconds: h.WindowSeconds, BudgetBytes: h.BudgetBytes, Bytes: h.Bytes, FirstSeq: h.FirstSeq, LastSeq: h.LastSeq, Roots: h.Roots, Gaps: h.Gaps, LastGap: h.LastGap, Stopped: h.Stopped,
		EverySeconds: h.EverySeconds, FlushesSeconds: h.FlushesSeconds, MinutesSeconds: h.MinutesSeconds, WholeSeq: h.WholeSeq}
	if h.FirstSeq > 0 {
		v.First, v.Whole = &h.First, &h.Whole
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
	var dryRun bool
	end := a.volumeCommand("clear NAME", "End the history of a volume and give up all that is there of it", func(c *cobra.Command, api *client.Client, name string) error {
		if dryRun {
			return a.showHistoryLoss(c, api, name, 0, 0, units.Ages{})
		}
		reply, err := client.SetVolumeHistory(c.Context(), api, name, 0, 0, 0, 0, 0)
		if err != nil {
			return err
		}
		return a.showHistory(name, reply.SetVolumeHistory)
	})
	end.Long = "End the history of a volume and give up all that is there of it. Refused while a moment of it is attached. --dry-run says what that is: from when on, what it takes on disk, and how many points it has."
	end.Example = "  hv-storage-fabric volume history clear web1 --dry-run\n  hv-storage-fabric volume history clear web1"
	end.Flags().BoolVar(&dryRun, "dry-run", false, historyDryRun)
	c.AddCommand(newHistorySet(a), show, end)
	return c
}

const historyDryRun = "change nothing; say what history would go"

func newHistorySet(a *app) *cobra.Command {
	var dryRun bool
	var window units.Span
	var budget units.Size
	var ages units.Ages
	c := &cobra.Command{
		Use:   "set NAME --window TIME | --every AGE [--flushes AGE] [--minutes AGE] [--hours AGE]",
		Short: "Keep every write of a volume for a while, and points of it for longer",
		Long: `Keep every write of a volume for a while: "hv-backup cdp" attaches or restores what it was after any of them. It holds from now on and across restarts; what was before cannot be had.

What is written is copied once more, in the background, before the log lets it go; a guest's write neither waits for that nor fails for it. Over the budget, or when the disk is near full, the oldest history goes first.

With --every, what is older than that age is thinned in the background, which gives its space back: --flushes says up to which age each flush of the guest is a moment, then --minutes and --hours, up to which each minute, and hour, has one, the last flush of
it. Marks and snapshots stay. A moment between two that are left is the one before, and "hv-backup cdp attach" says so.

--dry-run says what would go of what is there, for a shorter window or ages, or a smaller budget. A store that has, or had, history is refused by an hvd that does not know it.`,
		Example: `  hv-storage-fabric volume history set web1 --window 1h
  hv-storage-fabric volume history set db1 --window 24h --budget 50GiB
  hv-storage-fabric volume history set db1 --every 1h --flushes 24h --minutes 7d --hours 30d --budget 50GiB
  hv-storage-fabric volume history set web1 --window 10m --dry-run`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			thinned, err := ages.Window()
			if err != nil {
				return usagef("%v", err)
			}
			switch {
			case thinned > 0 && window > 0:
				return usagef("--window goes without --every, --flushes, --minutes and --hours: the last of these is how far back history goes")
			case thinned > 0:
				window = thinned
			case window == 0:
				window = 3600
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			if dryRun {
				return a.showHistoryLoss(c, api, args[0], window, budget, ages)
			}
			reply, err := client.SetVolumeHistory(c.Context(), api, args[0], float64(window), uint64(budget), float64(ages.Every), float64(ages.Flushes), float64(ages.Minutes))
			if err != nil {
				return err
			}
			return a.showHistory(args[0], reply.SetVolumeHistory)
		},
	}
	c.Flags().Var(&window, "window", "how far back, such as 90m, 24h or 7d (default 1h)")
	c.Flags().Var(&ages.Every, "every", "every write up to that age, at least 1m")
	c.Flags().Var(&ages.Flushes, "flushes", "each flush up to that age")
	c.Flags().Var(&ages.Minutes, "minutes", "a point each minute up to that age")
	c.Flags().Var(&ages.Hours, "hours", "a point each hour up to that age")
	c.Flags().BoolVar(&dryRun, "dry-run", false, historyDryRun)
	c.Flags().Var(&budget, "budget", "what it may take on disk, with "+sizeUnits+"; 0: the lesser of 10GiB and 5 % of the file system")
	for _, name := range []string{"window", "budget", "every", "flushes", "minutes", "hours"} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return c
}

// showHistoryLoss prints what setting a history so would give up of it.
func (a *app) showHistoryLoss(c *cobra.Command, api *client.Client, name string, window units.Span, budget units.Size, ages units.Ages) error {
	l, err := api.HistoryLoss(c.Context(), name, float64(window), uint64(budget), float64(ages.Every), float64(ages.Flushes), float64(ages.Minutes))
	if err != nil {
		return err
	}
	return a.show(l, func() {
		for _, line := range l.Text() {
			a.say("%s", line)
		}
	})
}

// showHistory prints the history of a volume: an object, or null where there is none.
func (a *app) showHistory(name string, h *client.History) error {
	v := viewHistory(h)
	return a.show(v, func() {
		if v == nil {
			a.say("volume %s keeps no history", name)
			return
		}
		a.say("volume %s keeps %v", v.Volume, v)
		if v.First != nil {
			a.say("oldest: record %d of %s", v.FirstSeq, v.First.Format(time.RFC3339Nano))
		}
		if v.WholeSeq > v.FirstSeq {
			a.say("every write from record %d of %s on; before it, points", v.WholeSeq, v.Whole.Format(time.RFC3339Nano))
		}
		if v.LastGap != "" {
			a.say("began anew %d times since the daemon started, last because: %s", v.Gaps, v.LastGap)
		}
		if v.Stopped {
			a.say("nothing is kept at the moment")
		}
	})
}
