package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolumeReplicate(a *app) *cobra.Command {
	var interval time.Duration
	c := &cobra.Command{
		Use:   "replicate NAME hvd://HOST[:PORT]/NAME",
		Short: "Keep a copy of a volume in another hvd, and take over there",
		Long: `Keep a copy of a volume in another hvd: each interval what has changed since the last point is sent, and becomes the next point there at once or not at all. It holds from now on and across restarts of both, and goes on where it was
interrupted. The volume there is made by itself; it cannot be attached, only cloned, until it is promoted.

hvd:// is TLS with certificates on both sides (replication.cert, .key and .ca of both hvd), and needs replication.listen there. hvd+unix:///NAME?socket=PATH is the control socket of another hvd on this machine.

To take over: "promote" it there. It then is an ordinary volume as it was at its last complete point, with a greater epoch. Its old source is refused from then on, and takes no writes any more as soon as it hears of it.
To go back: "demote" the old source, and replicate to it from the new one; without a loss: detach, "sync", "demote" here, "promote" there.`,
		Example: `  hv-storage-fabric volume replicate web1 hvd://backup.example/web1 --interval 30s
  hv-storage-fabric volume replicate status
  hv-storage-fabric volume replicate promote web1        # at the other hvd`,
		Args: exactly("NAME", "TARGET"),
		ValidArgsFunction: func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return a.completeVolumes(c, args, text)
		},
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			r, err := api.Replicate(c.Context(), args[0], args[1], interval)
			if err != nil {
				return err
			}
			return a.show(r, func() {
				a.say("volume %s is replicated to %s every %v", r.Volume, r.Target, time.Duration(r.IntervalSeconds*float64(time.Second)))
			})
		},
	}
	c.Flags().DurationVar(&interval, "interval", time.Minute, "from the beginning of one point to that of the next, such as 10s or 15m; a point that takes longer is followed by the next at once")
	_ = c.RegisterFlagCompletionFunc("interval", cobra.NoFileCompletions)
	c.AddCommand(newReplicateStatus(a), newReplicateSync(a), newReplicatePromote(a), newReplicateDemote(a), newReplicateStop(a))
	return c
}

func newReplicateStatus(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "status [NAME]",
		Short: "Show how far replicas are behind, in time (RPO) and bytes",
		Long: `Show how far replicas are behind. RPO is the age of the last complete point, which is what a promotion now would lose; of a replica it is told by the clocks of both machines.
BEHIND is what differs at the source from that point.`,
		Example:           "  hv-storage-fabric volume replicate status\n  hv-storage-fabric volume replicate status web1 -o json | jq .rpoSeconds",
		Args:              console.Between(0, 1, "NAME"),
		ValidArgsFunction: a.completeVolumes,
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
				return a.show(r, func() { a.pairs(replicationPairs(r)) })
			}
			all, err := api.Replications(c.Context())
			if err != nil {
				return err
			}
			rows := make([][]string, 0, len(all))
			for _, r := range all {
				rows = append(rows, []string{r.Volume, r.Role, r.State, rpoText(r), behindText(r), rateText(r), fmt.Sprint(r.Epoch), otherSide(r)})
			}
			return a.show(all, func() {
				a.table([]string{"VOLUME", "ROLE", "STATE", "RPO", "BEHIND", "RATE", "EPOCH", "OTHER SIDE"}, rows)
			})
		},
	}
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
	list := [][2]string{{"volume", r.Volume}, {"role", r.Role}, {"state", r.State}, {"rpo", rpoText(r)}}
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
	list = append(list, [2]string{"rate", rateText(r)}, [2]string{"other side", otherSide(r)}, [2]string{"epoch", fmt.Sprint(r.Epoch)})
	if r.FencedBy != 0 {
		list = append(list, [2]string{"promoted there", fmt.Sprintf("with epoch %d: takes no writes here", r.FencedBy)})
	}
	return append(list, [2]string{"points", fmt.Sprintf("%d, %d tries failed", r.Cycles, r.Failures)}, [2]string{"problem", r.Error})
}

func newReplicateSync(a *app) *cobra.Command {
	c := a.volumeCommand("sync NAME", "Send what has changed now, and wait until the other side has it", func(c *cobra.Command, api *client.Client, name string) error {
		r, err := api.SyncReplication(c.Context(), name)
		if err != nil {
			return err
		}
		return a.show(r, func() {
			a.say("the replica of volume %s has all that was written up to %s", name, r.PointAt.Local().Format(time.DateTime))
		})
	})
	c.Example = "  hv-storage-fabric volume replicate sync web1"
	return c
}

func newReplicatePromote(a *app) *cobra.Command {
	var yes bool
	c := a.volumeCommand("promote NAME", "Make an ordinary volume of a replica, as it was at its last complete point", func(c *cobra.Command, api *client.Client, name string) error {
		before, err := api.Replication(c.Context(), name)
		if err != nil {
			return err
		}
		question := fmt.Sprintf("Promote volume %s as it was %s ago? Its source is refused from then on, and takes no writes.", name, rpoText(before))
		if err := a.confirm(yes, question); err != nil {
			return fmt.Errorf("promote volume %q: %w", name, err)
		}
		r, err := api.PromoteReplica(c.Context(), name)
		if err != nil {
			return err
		}
		return a.show(r, func() {
			a.say("promoted volume %s, as it was at %s, with epoch %d", name, r.PointAt.Local().Format(time.DateTime), r.Epoch)
		})
	})
	c.Example = "  hv-storage-fabric volume replicate promote web1 --yes"
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

func newReplicateDemote(a *app) *cobra.Command {
	var yes, dryRun bool
	c := a.volumeCommand("demote NAME", "Make a replica of a source, or of a volume that was promoted", func(c *cobra.Command, api *client.Client, name string) error {
		d, err := api.DemoteReplica(c.Context(), name, true)
		if err != nil {
			return err
		}
		if dryRun {
			return a.show(d, func() {
				a.say("%s of volume %s differ from the newest point that the other side may have, and would be lost", units.Size(d.LostBytes).Human(), name)
			})
		}
		question := fmt.Sprintf("Demote volume %s? %s differ from the newest point that the other side may have, and are lost when it sends.", name, units.Size(d.LostBytes).Human())
		if err := a.confirm(yes, question); err != nil {
			return fmt.Errorf("demote volume %q: %w", name, err)
		}
		if d, err = api.DemoteReplica(c.Context(), name, false); err != nil {
			return err
		}
		return a.show(d, func() { a.say("volume %s is a replica", name) })
	})
	c.Long = `Make a replica of a source, or of a volume that was promoted: it takes what the other side sends once that is promoted and replicates to here. The volume must not be attached.
What was written since the last point that both sides have is lost when the first point comes; --dry-run tells how much that is, seen from the newest point that the other side may have.`
	c.Example = "  hv-storage-fabric volume replicate demote web1 --dry-run\n  hv-storage-fabric volume replicate demote web1 --yes"
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "tell what would be lost, and change nothing")
	return c
}

func newReplicateStop(a *app) *cobra.Command {
	var yes bool
	c := a.volumeCommand("stop NAME", "End the replication of a volume for good", func(c *cobra.Command, api *client.Client, name string) error {
		if err := a.confirm(yes, fmt.Sprintf("Stop the replication of volume %s? To begin anew sends everything to a new volume.", name)); err != nil {
			return fmt.Errorf("stop the replication of volume %q: %w", name, err)
		}
		if err := api.StopReplication(c.Context(), name); err != nil {
			return err
		}
		return a.show(map[string]any{"volume": name, "stopped": true}, func() { a.say("volume %s is replicated no more", name) })
	})
	c.Long = `End the replication of a source, or of a volume that was promoted, for good. The volume stays as it is and takes writes; what the other side has stays there, to be promoted or deleted. To begin anew sends everything to a new volume.`
	c.Example = "  hv-storage-fabric volume replicate stop web1 --yes"
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}
