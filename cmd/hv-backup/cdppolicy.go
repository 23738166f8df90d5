package main

import (
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
	var ages units.Ages
	var budget units.Size
	c := &cobra.Command{
		Use:   "set VOLUME --every AGE [--flushes AGE] [--minutes AGE] [--hours AGE]",
		Short: "Keep every write for a while, then flushes, then minutes and hours",
		Long: `Keep every write of a volume up to an age, then what it was after each flush of its guest, then after the last flush of each minute, then of each hour. An age that is not given is a stretch that is not there; each is more than
those before it, and the last is how far back one can go. It holds from now on and across restarts; what is there already is thinned, too, in the background, which gives its space back. What was thinned cannot be had again by a longer age.

Over the budget the oldest history goes first. Thinning rests while "hv-storage-fabric store gc pause" holds, and leaves alone what is attached.`,
		Example: `  hv-backup cdp policy set db1 --every 1h --flushes 24h --minutes 7d --hours 30d --budget 50GiB
  hv-backup cdp policy set web1 --every 6h`,
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			window, err := ages.Window()
			switch {
			case err != nil:
				return console.Usagef("%v", err)
			case window == 0:
				return console.Usagef("give --every AGE, up to which every write stays, such as 1h; `hv-backup cdp policy clear` ends history")
			}
			api, err := a.hvd()
			if err != nil {
				return err
			}
			reply, err := client.SetVolumeHistory(c.Context(), api, args[0], float64(window), uint64(budget), float64(ages.Every), float64(ages.Flushes), float64(ages.Minutes))
			if err != nil {
				return err
			}
			return a.showHistoryPolicy(args[0], reply.SetVolumeHistory)
		},
	}
	f := c.Flags()
	f.Var(&ages.Every, "every", "every write up to that age, at least 1m, such as 1h")
	f.Var(&ages.Flushes, "flushes", "each flush up to that age, such as 24h")
	f.Var(&ages.Minutes, "minutes", "a point each minute up to that age, such as 7d")
	f.Var(&ages.Hours, "hours", "a point each hour up to that age, such as 30d")
	f.Var(&budget, "budget", "what history may take on disk, such as 50GiB; 0: the lesser of 10GiB and 5 % of the file system")
	for _, name := range []string{"every", "flushes", "minutes", "hours", "budget"} {
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return c
}

func newCDPPolicyShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show VOLUME",
		Short:             "Show how dense the history of a volume is",
		Long:              "Show how far back a volume can go, how dense its history is, and what that takes.",
		Example:           "  hv-backup cdp policy show db1 -o json",
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.hvd()
			if err != nil {
				return err
			}
			reply, err := client.GetHistory(c.Context(), api, args[0])
			if err != nil {
				return err
			}
			return a.showHistoryPolicy(args[0], &reply.History)
		},
	}
}

func newCDPPolicyClear(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "clear VOLUME",
		Short:             "End the history of a volume and give up all that is there of it",
		Long:              "End the history of a volume and give up all that is there of it. Refused while a moment of it is attached.",
		Example:           "  hv-backup cdp policy clear db1",
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.hvd()
			if err != nil {
				return err
			}
			reply, err := client.SetVolumeHistory(c.Context(), api, args[0], 0, 0, 0, 0, 0)
			if err != nil {
				return err
			}
			return a.showHistoryPolicy(args[0], reply.SetVolumeHistory)
		},
	}
}
