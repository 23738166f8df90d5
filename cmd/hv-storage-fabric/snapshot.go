package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newSnapshot(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "snapshot", Short: "Take, list, compare, rename, protect, delete and roll back to snapshots"})
	c.AddCommand(newSnapshotCreate(a), newSnapshotList(a), newSnapshotDiff(a), newSnapshotRename(a), newSnapshotProtect(a), newSnapshotUnprotect(a), newSnapshotDelete(a), newSnapshotRollback(a), newSnapshotSchedule(a))
	return c
}

// snapshotView is a snapshot with -o json.
type snapshotView struct {
	Volume    string    `json:"volume"`
	Name      string    `json:"name"`
	SizeBytes uint64    `json:"sizeBytes"`
	CreatedAt time.Time `json:"createdAt"`
	Sequence  uint64    `json:"sequence"` // the same for those that were taken together
	Protected bool      `json:"protected"`
	Automatic bool      `json:"automatic"` // a schedule has it
	Clones    int       `json:"clones"`
}

func viewSnapshot(s client.Snapshot) snapshotView {
	return snapshotView{s.Volume, s.Name, s.SizeBytes, s.CreatedAt, s.Sequence, s.Protected, s.Automatic, s.Clones}
}

// snapshotCommand makes a command whose argument is a snapshot: VOLUME@SNAPSHOT, or VOLUME SNAPSHOT.
func (a *app) snapshotCommand(verb, short string, run func(c *cobra.Command, api *client.Client, volume, name string) error) *cobra.Command {
	args := func(c *cobra.Command, args []string) error {
		if len(args) == 2 || len(args) == 1 && strings.Contains(args[0], "@") {
			return nil
		}
		return usagef("%s needs VOLUME@SNAPSHOT", c.CommandPath())
	}
	c := a.command(verb+" VOLUME@SNAPSHOT", short, args, func(c *cobra.Command, api *client.Client, args []string) error {
		if len(args) == 2 {
			return run(c, api, args[0], args[1])
		}
		volume, name, err := splitSnapshot(args[0])
		if err != nil {
			return err
		}
		return run(c, api, volume, name)
	})
	c.ValidArgsFunction = a.completeSnapshots
	return c
}

func newSnapshotList(a *app) *cobra.Command {
	use, short := "list VOLUME", "List the snapshots of a volume, oldest first"
	c := a.command(use, short, exactly("VOLUME"), func(c *cobra.Command, api *client.Client, args []string) error {
		reply, err := client.ListSnapshots(c.Context(), api, args[0])
		if err != nil {
			return err
		}
		views := make([]snapshotView, 0, len(reply.Snapshots))
		rows := make([][]string, 0, len(reply.Snapshots))
		for _, s := range reply.Snapshots {
			views = append(views, viewSnapshot(s))
			rows = append(rows, []string{s.Name, units.Size(s.SizeBytes).Human(), s.CreatedAt.Local().Format(time.DateTime), snapshotNotes(s)})
		}
		return a.show(views, func() { a.table([]string{"NAME", "SIZE", "CREATED", "NOTES"}, rows) })
	})
	c.Example = "  hv-storage-fabric snapshot list web1\n  hv-storage-fabric snapshot list web1 -o json | jq -r '.[].name'"
	return c
}

// snapshotNotes says what keeps a snapshot, and who made it.
func snapshotNotes(s client.Snapshot) string {
	var notes []string
	if s.Protected {
		notes = append(notes, "protected")
	}
	if s.Automatic {
		notes = append(notes, "scheduled")
	}
	if s.Clones > 0 {
		notes = append(notes, counted(s.Clones, "clone"))
	}
	return strings.Join(notes, ", ")
}

func newSnapshotDelete(a *app) *cobra.Command {
	var dryRun bool
	c := a.snapshotCommand("delete", "Delete a snapshot, or tell what that would free", func(c *cobra.Command, api *client.Client, volume, name string) error {
		if dryRun {
			reply, err := client.SnapshotFrees(c.Context(), api, volume, name)
			if err != nil {
				return err
			}
			return a.show(map[string]any{"volume": volume, "name": name, "deleted": false, "freesBytes": reply.SnapshotFrees}, func() {
				a.say("deleting snapshot %s@%s frees %s", volume, name, units.Size(reply.SnapshotFrees).Human())
			})
		}
		if _, err := client.DeleteSnapshot(c.Context(), api, volume, name); err != nil {
			return err
		}
		return a.show(map[string]any{"volume": volume, "name": name, "deleted": true}, func() { a.say("deleted snapshot %s@%s", volume, name) })
	})
	c.Example = `  hv-storage-fabric snapshot delete web1@before-upgrade --dry-run
  hv-storage-fabric snapshot delete web1@before-upgrade`
	c.Flags().BoolVar(&dryRun, "dry-run", false, "delete nothing; print the stored bytes that would become free")
	return c
}

func newSnapshotRollback(a *app) *cobra.Command {
	short := "Make a volume that is not attached what a snapshot is"
	var dryRun bool
	c := a.snapshotCommand("rollback", short, func(c *cobra.Command, api *client.Client, volume, name string) error {
		if dryRun {
			return a.showRollback(c, api, volume, name)
		}
		reply, err := client.Rollback(c.Context(), api, volume, name)
		if err != nil {
			return err
		}
		return a.show(viewVolume(reply.Rollback), func() { a.say("rolled volume %s back to %s", volume, name) })
	})
	c.Long = "Make a volume that is not attached what a snapshot is. What was written since is lost, unless another snapshot has it; --dry-run says how much that is, snapshot diff where."
	c.Example = `  hv-storage-fabric snapshot rollback web1@before-upgrade --dry-run
  hv-storage-fabric snapshot rollback web1@before-upgrade`
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; say how much was changed since")
	return c
}

// showRollback prints what rolling back would give up.
func (a *app) showRollback(c *cobra.Command, api *client.Client, volume, name string) error {
	total, err := api.Changes(c.Context(), volume+"@"+name, volume, func(client.Change) error { return nil })
	if err != nil {
		return err
	}
	reply, err := client.GetVolume(c.Context(), api, volume)
	if err != nil {
		return err
	}
	attached := reply.Volume.Attachment != nil
	return a.show(map[string]any{"volume": volume, "name": name, "rolledBack": false, "attached": attached, "changedRanges": total.Ranges, "changedBytes": total.Bytes}, func() {
		a.say("rolling volume %s back to %s gives up what was changed since: %s in %s", volume, name, units.Size(total.Bytes).Human(), counted(total.Ranges, "range"))
		if attached {
			a.say("it is attached, and refused until that ends")
		}
	})
}
