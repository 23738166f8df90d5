package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/retention"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// scheduleView is a schedule with -o json.
type scheduleView struct {
	Target       string           `json:"target"`
	EverySeconds uint64           `json:"everySeconds"`
	Keep         client.KeepRules `json:"keep"`    // all 0: everything is kept
	LastRun      *time.Time       `json:"lastRun"` // null: it has no snapshot
	NextRun      time.Time        `json:"nextRun"`
	Error        string           `json:"error,omitempty"` // why its last run failed
}

func viewSchedule(s client.Schedule) scheduleView {
	return scheduleView{s.Target, s.EverySeconds, s.Keep, s.LastRun, s.NextRun, s.Error}
}

func newSnapshotSchedule(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "schedule", Short: "Take snapshots again and again, and thin them out"})
	list := a.command("list", "List schedules", exactly(), func(c *cobra.Command, api *client.Client, _ []string) error {
		reply, err := client.ListSchedules(c.Context(), api)
		if err != nil {
			return err
		}
		views, rows := make([]scheduleView, 0, len(reply.Schedules)), [][]string{}
		for _, s := range reply.Schedules {
			views = append(views, viewSchedule(s))
			last := "never"
			if s.LastRun != nil {
				last = s.LastRun.Local().Format(time.DateTime)
			}
			rows = append(rows, []string{s.Target, units.Span(s.EverySeconds).String(), retention.Rules(s.Keep).String(), last, s.NextRun.Local().Format(time.DateTime), s.Error})
		}
		return a.show(views, func() { a.table([]string{"TARGET", "EVERY", "KEEP", "LAST", "NEXT", "ERROR"}, rows, "LAST", "KEEP") })
	})
	list.ValidArgsFunction = cobra.NoFileCompletions
	list.Example = "  hv-storage-fabric snapshot schedule list"
	remove := a.command("delete VOLUME|@GROUP", "End a schedule; its snapshots stay", exactly("VOLUME|@GROUP"), func(c *cobra.Command, api *client.Client, args []string) error {
		if _, err := client.DeleteSchedule(c.Context(), api, args[0]); err != nil {
			return err
		}
		return a.show(map[string]any{"target": args[0], "deleted": true}, func() { a.say("deleted the schedule of %s; its snapshots stay", args[0]) })
	})
	remove.Example = "  hv-storage-fabric snapshot schedule delete web1"
	remove.ValidArgsFunction = a.completeScheduled
	c.AddCommand(newScheduleSet(a), list, remove)
	return c
}

// keepFlags are the flags of the rules.
func keepFlags(flags *pflag.FlagSet, keep *client.KeepRulesInput) {
	flags.IntVar(&keep.Last, "keep-last", 0, "keep the N youngest")
	for _, f := range []struct {
		name, periods string
		to            *int
	}{{"hourly", "hours", &keep.Hourly}, {"daily", "days", &keep.Daily}, {"weekly", "weeks", &keep.Weekly}, {"monthly", "months", &keep.Monthly}, {"yearly", "years", &keep.Yearly}} {
		flags.IntVar(f.to, "keep-"+f.name, 0, fmt.Sprintf("keep the youngest of each of the last N %s that have one", f.periods))
	}
}

func newScheduleSet(a *app) *cobra.Command {
	var every string
	var keep client.KeepRulesInput
	var dryRun bool
	c := a.command("set VOLUME|@GROUP --every TIME", "Make a schedule of snapshots, or change it", exactly("VOLUME|@GROUP"), func(c *cobra.Command, api *client.Client, args []string) error {
		seconds, err := parseSpan("--every", every)
		if err != nil {
			return err
		}
		if dryRun {
			return a.dryRunRetention(c, api, args[0], keep)
		}
		if seconds == 0 {
			return usagef("--every is missing, such as --every 1h")
		}
		reply, err := client.SetSchedule(c.Context(), api, args[0], seconds, keep)
		if err != nil {
			return err
		}
		s := reply.SetSchedule
		return a.show(viewSchedule(s), func() {
			a.say("snapshots of %s every %s, of which it keeps %s", s.Target, units.Span(s.EverySeconds).String(), retention.Rules(s.Keep).String())
		})
	})
	c.Long = `Make a schedule of snapshots of a volume, or of all volumes of a group at one moment, or change the one that is there.

In each period one snapshot is taken; periods are counted from midnight of a Monday in UTC, so that hours begin on the hour. Of those that were missed while hvd was down one
is taken at once. They are called auto-20261129T061500Z, and auto-GROUP-20261129T061500Z, by their time in UTC.

After each the schedule deletes those of its own snapshots that no rule keeps, days and weeks counted in UTC; without rules it keeps all. It never deletes what is protected,
has a clone, is in use by an NBD client, was renamed, or was not taken by it.`
	c.Example = `  hv-storage-fabric snapshot schedule set web1 --every 15m --keep-last 8 --keep-hourly 24 --keep-daily 14
  hv-storage-fabric snapshot schedule set @shop --every 1d --keep-daily 7 --keep-weekly 5 --keep-monthly 12
  hv-storage-fabric snapshot schedule set web1 --keep-daily 3 --dry-run`
	c.Flags().StringVar(&every, "every", "", "how often: from 1m to 366d, such as 15m, 1h, 1d, 1w")
	keepFlags(c.Flags(), &keep)
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; print which of the snapshots that are there these rules would keep and delete")
	c.ValidArgsFunction = a.completeTargets
	return c
}

// verdictView is what rules think of a snapshot, with -o json.
type verdictView struct {
	Volume    string    `json:"volume"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"createdAt"`
	Keep      bool      `json:"keep"`
	Reasons   []string  `json:"reasons"`
}

func (a *app) dryRunRetention(c *cobra.Command, api *client.Client, target string, keep client.KeepRulesInput) error {
	reply, err := client.Retention(c.Context(), api, target, keep)
	if err != nil {
		return err
	}
	views, rows, gone := []verdictView{}, [][]string{}, 0
	for _, v := range reply.Retention {
		kept := len(v.Reasons) > 0
		views = append(views, verdictView{v.Snapshot.Volume, v.Snapshot.Name, v.Snapshot.CreatedAt, kept, v.Reasons})
		text := "keep: " + strings.Join(v.Reasons, ", ")
		if !kept {
			gone++
			text = "delete"
		}
		rows = append(rows, []string{v.Snapshot.Volume + "@" + v.Snapshot.Name, v.Snapshot.CreatedAt.Local().Format(time.DateTime), text})
	}
	return a.show(views, func() {
		a.table([]string{"SNAPSHOT", "CREATED", "WHAT"}, rows)
		a.say("%d of %s would be deleted", gone, counted(len(views), "snapshot"))
	})
}

// completeTargets offers volumes, and behind @ groups.
func (a *app) completeTargets(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 || !strings.HasPrefix(text, "@") {
		return a.completeVolumes(c, args, text)
	}
	names, directive := a.completeGroups(c, nil, "")
	for i := range names {
		names[i] = "@" + names[i]
	}
	return names, directive
}

// completeScheduled offers what has a schedule.
func (a *app) completeScheduled(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListSchedules(c.Context(), api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, s := range reply.Schedules {
		names = append(names, s.Target)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
