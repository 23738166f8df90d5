package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolumeReplicate(a *app) *cobra.Command {
	var interval time.Duration
	var limit units.Rate
	c := &cobra.Command{
		Use:   "replicate NAME hvd://HOST[:PORT]/NAME | @GROUP hvd://HOST[:PORT]/@GROUP",
		Short: "Keep a copy of a volume, or of a group at one moment, in another hvd, and take over there",
		Long: `Keep a copy of a volume in another hvd: each interval what has changed since the last point is sent, and becomes the next point there at once or not at all. It holds from now on and across restarts of both, and goes on where it was
interrupted. The volume there is made by itself; it cannot be attached, only cloned, until it is promoted.

@GROUP stands for the volumes of a group (` + "`volume group`" + `): they are frozen at one moment, and what the other hvd has of them is always of one moment, also when one of them is slow or either side is killed. Their copies have the same names there, and are promoted, demoted
and stopped together, as @GROUP. After the group was changed, replicate it again: a volume that is new comes with the next point, and one that is gone is replicated no more.

--limit bounds what is sent a second, for a group all of it together; "replicate limit" changes it while it runs. Without --limit it stays as it is.

hvd:// is TLS with certificates on both sides (replication.cert, .key and .ca of both hvd), and needs replication.listen there. hvd+unix:///NAME?socket=PATH is the control socket of another hvd on this machine.

To take over: "promote" it there. It then is an ordinary volume as it was at its last complete point, with a greater epoch. Its old source is refused from then on, and takes no writes any more as soon as it hears of it.
To go back: "demote" the old source, and replicate to it from the new one; without a loss: detach, "sync", "demote" here, "promote" there.`,
		Example: `  hv-storage-fabric volume replicate web1 hvd://backup.example/web1 --interval 30s
  hv-storage-fabric volume group set shop db1 log1
  hv-storage-fabric volume replicate @shop hvd://backup.example/@shop --limit 50MB/s
  hv-storage-fabric volume replicate status
  hv-storage-fabric volume replicate promote web1        # at the other hvd`,
		Args:              exactly("NAME", "TARGET"),
		ValidArgsFunction: a.completeReplicated,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			var bytes *uint64
			if c.Flags().Changed("limit") {
				n := uint64(limit)
				bytes = &n
			}
			r, err := api.Replicate(c.Context(), args[0], args[1], interval, bytes)
			if err != nil {
				return err
			}
			return a.show(r, func() {
				a.say("%s is replicated to %s every %v%s", called(r), r.Target, time.Duration(r.IntervalSeconds*float64(time.Second)), limitText(r, ", with at most %s"))
			})
		},
	}
	c.Flags().DurationVar(&interval, "interval", time.Minute, "from the beginning of one point to that of the next, such as 10s or 15m; a point that takes longer is followed by the next at once")
	_ = c.RegisterFlagCompletionFunc("interval", cobra.NoFileCompletions)
	c.Flags().Var(&limit, "limit", "bytes sent a second at most, such as 50MB/s or 64MiB/s; 0 is no limit")
	c.Flags().Lookup("limit").DefValue = "" // what is not given stays as it is
	_ = c.RegisterFlagCompletionFunc("limit", cobra.NoFileCompletions)
	c.AddCommand(newReplicateStatus(a), newReplicateSync(a), newReplicateLimit(a), newReplicatePromote(a), newReplicateDemote(a), newReplicateStop(a))
	return c
}

// called is what a replication is of, for people.
func called(r client.Replication) string { return calledName(r.Volume) }

func calledName(name string) string {
	if strings.HasPrefix(name, "@") {
		return "group " + name
	}
	return "volume " + name
}

// limitText says what the limit is, nothing without one.
func limitText(r client.Replication, form string) string {
	if r.LimitBytes == 0 {
		return ""
	}
	return fmt.Sprintf(form, units.Rate(r.LimitBytes))
}

// replicateCommand makes a command about the replication of a volume or a group.
func (a *app) replicateCommand(use, short string, run func(c *cobra.Command, api *client.Client, name string) error) *cobra.Command {
	c := a.volumeCommand(use, short, run)
	c.ValidArgsFunction = a.completeReplicated
	return c
}

// completeReplicated offers volumes, and behind @ groups, for the first argument.
func (a *app) completeReplicated(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	if !strings.HasPrefix(text, "@") {
		return a.completeVolumes(c, args, text)
	}
	names, directive := a.completeGroups(c, nil, "")
	for i := range names {
		names[i] = "@" + names[i]
	}
	if api, err := a.connect(); err == nil { // groups that came with their replication
		all, _ := api.Replications(c.Context())
		for _, r := range all {
			if name := "@" + r.Group; r.Group != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	return names, directive
}

func newReplicateLimit(a *app) *cobra.Command {
	c := a.command("limit NAME|@GROUP RATE", "Change how much a replication may send a second, while it runs", exactly("NAME", "RATE"), func(c *cobra.Command, api *client.Client, args []string) error {
		rate, err := units.ParseRate(args[1])
		if err != nil {
			return usagef("%v", err)
		}
		r, err := api.LimitReplication(c.Context(), args[0], uint64(rate))
		if err != nil {
			return err
		}
		return a.show(r, func() {
			a.say("%s is replicated with %s", called(r), cmp.Or(limitText(r, "at most %s"), "no limit"))
		})
	})
	c.Long = `Change how much a replication may send a second, at its source. It holds at once, also for what is being sent, and across restarts. 0 is no limit. The volumes of a group share it.
It counts what goes over the wire, which is packed; what the two sides tell each other beside the data is not held up by it.`
	c.Example = "  hv-storage-fabric volume replicate limit web1 50MB/s\n  hv-storage-fabric volume replicate limit @shop 0"
	c.ValidArgsFunction = a.completeReplicated
	return c
}

func newReplicateStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status [NAME|@GROUP]",
		Short: "Show how far replicas are behind, in time (RPO) and bytes",
		Long: `Show how far replicas are behind. RPO is the age of the last complete point, which is what a promotion now would lose; of a replica it is told by the clocks of both machines.
BEHIND is what differs at the source from that point. A member of a group is "ready" when all of its part of the next point has come, and others' parts have not. RATE is that of the data, which is packed on its way; LIMIT bounds the packed bytes.`,
		Example:           "  hv-storage-fabric volume replicate status\n  hv-storage-fabric volume replicate status @shop\n  hv-storage-fabric volume replicate status web1 -o json | jq .rpoSeconds",
		Args:              console.Between(0, 1, "NAME"),
		ValidArgsFunction: a.completeReplicated,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			if len(args) == 1 {
				r, err := api.Replication(c.Context(), args[0])
				if err != nil {
					return err
				}
				return a.show(r, func() {
					a.pairs(replicationPairs(r))
					if len(r.Members) > 0 {
						a.showReplications(r.Members)
					}
				})
			}
			all, err := api.Replications(c.Context())
			if err != nil {
				return err
			}
			return a.show(all, func() { a.showReplications(all) })
		},
	}
}

func (a *app) showReplications(all []client.Replication) {
	rows := make([][]string, 0, len(all))
	for _, r := range all {
		rows = append(rows, []string{r.Volume, groupText(r), r.Role, r.State, rpoText(r), behindText(r), rateText(r), limitText(r, "%s"), fmt.Sprint(r.Epoch), otherSide(r)})
	}
	a.table([]string{"VOLUME", "GROUP", "ROLE", "STATE", "RPO", "BEHIND", "RATE", "LIMIT", "EPOCH", "OTHER SIDE"}, rows, "EPOCH", "LIMIT", "RATE")
}

func groupText(r client.Replication) string {
	if r.Group == "" {
		return ""
	}
	return "@" + r.Group
}

func rpoText(r client.Replication) string {
	if r.RPOSeconds == nil {
		return "no point yet"
	}
	return time.Duration(*r.RPOSeconds * float64(time.Second)).Round(time.Second).String()
}

func behindText(r client.Replication) string {
	if r.BehindBytes == nil {
		return "?"
	}
	return units.Size(*r.BehindBytes).Human()
}

func rateText(r client.Replication) string {
	return units.Size(r.RateBytes).Human() + "/s"
}

func otherSide(r client.Replication) string {
	if r.Target != "" {
		return r.Target
	}
	return r.Peer
}

func replicationPairs(r client.Replication) [][2]string {
	list := [][2]string{{"volume", r.Volume}, {"group", groupText(r)}, {"role", r.Role}, {"state", r.State}, {"rpo", rpoText(r)}}
	if r.PointAt != nil {
		list = append(list, [2]string{"last point", r.PointAt.Local().Format(time.DateTime)})
	}
	if r.Role == "source" {
		list = append(list, [2]string{"behind", behindText(r)}, [2]string{"interval", time.Duration(r.IntervalSeconds * float64(time.Second)).String()})
	}
	if r.State == "sending" {
		list = append(list, [2]string{"this point", units.Size(r.DoneBytes).Human() + " of " + units.Size(r.TotalBytes).Human()})
	}
	if r.State == "receiving" {
		list = append(list, [2]string{"this point", units.Size(r.DoneBytes).Human() + " came"})
	}
	list = append(list, [2]string{"rate", rateText(r)}, [2]string{"limit", limitText(r, "%s")}, [2]string{"other side", otherSide(r)}, [2]string{"epoch", fmt.Sprint(r.Epoch)})
	if r.FencedBy != 0 {
		list = append(list, [2]string{"promoted there", fmt.Sprintf("with epoch %d: takes no writes here", r.FencedBy)})
	}
	return append(list, [2]string{"points", fmt.Sprintf("%d, %d tries failed", r.Cycles, r.Failures)}, [2]string{"problem", r.Error})
}

func newReplicateSync(a *app) *cobra.Command {
	c := a.replicateCommand("sync NAME|@GROUP", "Send what has changed now, and wait until the other side has it", func(c *cobra.Command, api *client.Client, name string) error {
		r, err := api.SyncReplication(c.Context(), name)
		if err != nil {
			return err
		}
		return a.show(r, func() {
			a.say("the replica of %s has all that was written up to %s", called(r), r.PointAt.Local().Format(time.DateTime))
		})
	})
	c.Example = "  hv-storage-fabric volume replicate sync web1"
	return c
}

func newReplicatePromote(a *app) *cobra.Command {
	var yes bool
	c := a.replicateCommand("promote NAME|@GROUP", "Make an ordinary volume of a replica, as it was at its last complete point", func(c *cobra.Command, api *client.Client, name string) error {
		before, err := api.Replication(c.Context(), name)
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Promote %s as it was %s ago? Its source is refused from then on, and takes no writes.", called(before), rpoText(before))
		if err := a.confirm(yes, question); err != nil {
			return fmt.Errorf("promote %s: %w", called(before), err)
		}
		r, err := api.PromoteReplica(c.Context(), name)
		if err != nil {
			return err
		}
		return a.show(r, func() {
			a.say("promoted %s, as it was at %s, with epoch %d", called(r), r.PointAt.Local().Format(time.DateTime), r.Epoch)
		})
	})
	c.Long = `Make an ordinary volume of a replica, as it was at its last complete point. Of @GROUP all volumes become that, as they were at one moment: what came of a point of which others' parts are missing is given up. Its source is refused from then on.`
	c.Example = "  hv-storage-fabric volume replicate promote web1 --yes\n  hv-storage-fabric volume replicate promote @shop"
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

func newReplicateDemote(a *app) *cobra.Command {
	var yes, dryRun bool
	c := a.replicateCommand("demote NAME|@GROUP", "Make a replica of a source, or of a volume that was promoted", func(c *cobra.Command, api *client.Client, name string) error {
		d, err := api.DemoteReplica(c.Context(), name, true)
		if err != nil {
			return err
		}
		if dryRun {
			return a.show(d, func() {
				a.say("%s of %s differ from the newest point that the other side may have, and would be lost", units.Size(d.LostBytes).Human(), calledName(name))
				a.sayLeft(d)
			})
		}
		question := fmt.Sprintf("Demote %s? %s differ from the newest point that the other side may have, and are lost when it sends.", calledName(name), units.Size(d.LostBytes).Human())
		if err := a.confirm(yes, question); err != nil {
			return fmt.Errorf("demote %s: %w", calledName(name), err)
		}
		if d, err = api.DemoteReplica(c.Context(), name, false); err != nil {
			return err
		}
		return a.show(d, func() {
			a.say("%s is a replica", calledName(name))
			a.sayLeft(d)
		})
	})
	c.Long = `Make a replica of a source, or of a volume that was promoted: it takes what the other side sends once that is promoted and replicates to here. The volume must not be attached.
What was written since the last point that both sides have is lost when the first point comes; --dry-run tells how much that is, seen from the newest point that the other side may have.`
	c.Example = "  hv-storage-fabric volume replicate demote web1 --dry-run\n  hv-storage-fabric volume replicate demote web1 --yes"
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would be lost, and change nothing")
	return c
}

// sayLeft tells of volumes of a group that the other side has nothing of.
func (a *app) sayLeft(d client.Demotion) {
	if len(d.Left) > 0 {
		a.say("nothing of %s ever became complete at the other side: replicated no more, and as before otherwise", strings.Join(d.Left, ", "))
	}
}

func newReplicateStop(a *app) *cobra.Command {
	var yes bool
	c := a.replicateCommand("stop NAME|@GROUP", "End the replication of a volume for good", func(c *cobra.Command, api *client.Client, name string) error {
		if err := a.confirm(yes, fmt.Sprintf("Stop the replication of %s? To begin anew sends everything to a new volume.", calledName(name))); err != nil {
			return fmt.Errorf("stop the replication of %s: %w", calledName(name), err)
		}
		if err := api.StopReplication(c.Context(), name); err != nil {
			return err
		}
		return a.show(map[string]any{"volume": name, "stopped": true}, func() { a.say("%s is replicated no more", calledName(name)) })
	})
	c.Long = `End the replication of a source, or of a volume that was promoted, for good. The volume stays as it is and takes writes; what the other side has stays there, to be promoted or deleted. To begin anew sends everything to a new volume.`
	c.Example = "  hv-storage-fabric volume replicate stop web1 --yes"
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}
