package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// historyPolicyView is the policy of a volume's history with -o json. Its fields are part of the interface.
type historyPolicyView struct {
	Volume         string  `json:"volume"`
	EverySeconds   uint64  `json:"everySeconds"`
	FlushesSeconds uint64  `json:"flushesSeconds"` // 0: there is no such stretch, as with the next ones
	MinutesSeconds uint64  `json:"minutesSeconds"`
	HoursSeconds   uint64  `json:"hoursSeconds"`
	BudgetBytes    uint64  `json:"budgetBytes"`
	Bytes          uint64  `json:"bytes"`
	WindowSeconds  float64 `json:"windowSeconds"`
}

// policyAges are those of a policy: without an age of its own, every write stays for the whole window.
func policyAges(h *client.History) units.Ages {
	a := units.Ages{Every: units.Span(h.EverySeconds), Flushes: units.Span(h.FlushesSeconds), Minutes: units.Span(h.MinutesSeconds)}
	window := units.Span(h.WindowSeconds)
	switch {
	case a.Every == 0:
		a.Every = window
	case window > max(a.Every, a.Flushes, a.Minutes):
		a.Hours = window
	}
	return a
}

// showHistoryPolicy prints the policy of a volume, or null where it keeps no history.
func (a *app) showHistoryPolicy(name string, h *client.History) error {
	if h == nil {
		return a.show(nil, func() { a.say("volume %s keeps no history", name) })
	}
	ages := policyAges(h)
	v := historyPolicyView{
		Volume: h.Volume, EverySeconds: uint64(ages.Every), FlushesSeconds: uint64(ages.Flushes), MinutesSeconds: uint64(ages.Minutes), HoursSeconds: uint64(ages.Hours),
		BudgetBytes: h.BudgetBytes, Bytes: h.Bytes, WindowSeconds: h.WindowSeconds,
	}
	return a.show(v, func() {
		a.say("volume %s keeps %v, in %s of %s", v.Volume, ages, units.Size(v.Bytes).Human(), units.Size(v.BudgetBytes).Human())
	})
}

func newCDPPolicy(a *app) *cobra.Command {
	c := console.Group(&cobra.Command{
		Use:   "policy",
		Short: "How far back a volume can go, and how dense its history is",
		Long: `How far back a volume can go, and how dense its history is: every write for a while, then what it was after each flush, then after the last flush of each minute, then of each hour. Marks ("cdp mark")
and snapshots stay as long as the history goes back.`,
	})
	c.AddCommand(newCDPPolicySet(a), newCDPPolicyShow(a), newCDPPolicyClear(a))
	return c
}

func newCDPPolicySet(a *app) *cobra.Command {
	h := &historyChange{a: a}
	c := a.historyCommand(&cobra.Command{
		Use:   "set VOLUME --every AGE [--flushes AGE] [--minutes AGE] [--hours AGE]",
		Short: "Keep every write for a while, then flushes, then minutes and hours",
		Long: `Keep every write of a volume up to an age, then what it was after each flush of its guest, then after the last flush of each minute, then of each hour. An age that is not given is a stretch that is not there; each is more than
those before it, and the last is how far back one can go. It holds from now on and across restarts; what is there already is thinned, too, in the background, which gives its space back. What was thinned cannot be had again by a longer age.

--dry-run says what would go of what is there, for shorter ages or a smaller budget. Over the budget the oldest history goes first. Thinning rests while "hv-storage-fabric store gc pause" holds, and leaves alone what is attached.`,
		Example: `  hv-backup cdp policy set db1 --every 1h --flushes 24h --minutes 7d --hours 30d --budget 50GiB
  hv-backup cdp policy set db1 --every 1h --hours 7d --dry-run
  hv-backup cdp policy set web1 --every 6h`,
	}, h.apply)
	c.PreRunE = func(*cobra.Command, []string) (err error) {
		h.window, err = h.ages.Window()
		switch {
		case err != nil:
			return console.Usagef("%v", err)
		case h.window == 0:
			return console.Usagef("give --every AGE, up to which every write stays, such as 1h; `hv-backup cdp policy clear` ends history")
		}
		return nil
	}
	f := c.Flags()
	f.Var(&h.ages.Every, "every", "every write up to that age, at least 1m, such as 1h")
	f.Var(&h.ages.Flushes, "flushes", "each flush up to that age, such as 24h")
	f.Var(&h.ages.Minutes, "minutes", "a point each minute up to that age, such as 7d")
	f.Var(&h.ages.Hours, "hours", "a point each hour up to that age, such as 30d")
	f.Var(&h.budget, "budget", "what history may take on disk, such as 50GiB; 0: the lesser of 10GiB and 5 % of the file system")
	for _, name := range []string{"every", "flushes", "minutes", "hours", "budget"} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	h.dryRunFlag(c)
	return c
}

// historyCommand is a command about the history of one volume, which do does something with.
func (a *app) historyCommand(c *cobra.Command, do func(ctx context.Context, api *client.Client, volume string) error) *cobra.Command {
	c.Args, c.ValidArgsFunction = console.Exactly("VOLUME"), a.completeVolumes(0, 1)
	c.RunE = func(c *cobra.Command, args []string) error {
		api, err := a.hvd()
		if err != nil {
			return err
		}
		return do(c.Context(), api, args[0])
	}
	return c
}

func newCDPPolicyShow(a *app) *cobra.Command {
	return a.historyCommand(&cobra.Command{
		Use:     "show VOLUME",
		Short:   "Show how dense the history of a volume is",
		Long:    "Show how far back a volume can go, how dense its history is, and what that takes.",
		Example: "  hv-backup cdp policy show db1 -o json",
	}, func(ctx context.Context, api *client.Client, volume string) error {
		reply, err := client.GetHistory(ctx, api, volume)
		if err != nil {
			return err
		}
		return a.showHistoryPolicy(volume, &reply.History)
	})
}

func newCDPPolicyClear(a *app) *cobra.Command {
	h := &historyChange{a: a}
	c := a.historyCommand(&cobra.Command{
		Use:   "clear VOLUME",
		Short: "End the history of a volume and give up all that is there of it",
		Long:  "End the history of a volume and give up all that is there of it. Refused while a moment of it is attached. --dry-run says what that is: from when on, what it takes on disk, and how many points it has.",
		Example: `  hv-backup cdp policy clear db1 --dry-run
  hv-backup cdp policy clear db1`,
	}, h.apply)
	h.dryRunFlag(c)
	return c
}

// historyChange is a new policy for the history of a volume; the zero value ends it.
type historyChange struct {
	a      *app
	dryRun bool
	window units.Span
	ages   units.Ages
	budget units.Size
}

func (h *historyChange) dryRunFlag(c *cobra.Command) {
	c.Flags().BoolVar(&h.dryRun, "dry-run", false, "change nothing; say what history would go")
}

// apply sets the policy, or says what that would give up.
func (h *historyChange) apply(ctx context.Context, api *client.Client, volume string) error {
	window, budget, every, flushes, minutes := float64(h.window), uint64(h.budget), float64(h.ages.Every), float64(h.ages.Flushes), float64(h.ages.Minutes)
	if h.dryRun {
		l, err := api.HistoryLoss(ctx, volume, window, budget, every, flushes, minutes)
		if err != nil {
			return err
		}
		return h.a.show(l, func() {
			for _, line := range l.Text() {
				h.a.say("%s", line)
			}
		})
	}
	reply, err := client.SetVolumeHistory(ctx, api, volume, window, budget, every, flushes, minutes)
	if err != nil {
		return err
	}
	return h.a.showHistoryPolicy(volume, reply.SetVolumeHistory)
}
