package main

import (
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newSnapshot(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "snapshot", Short: "Take, list, delete and roll back to snapshots"})
	c.AddCommand(newSnapshotCreate(a), newSnapshotList(a), newSnapshotDelete(a), newSnapshotRollback(a))
	return c
}

// snapshotView is a snapshot with -o json.
type snapshotView struct {
	Volume    string    `json:"volume"`
	Name      string    `json:"name"`
	SizeBytes uint64    `json:"sizeBytes"`
	CreatedAt time.Time `json:"createdAt"`
}

func viewSnapshot(s client.Snapshot) snapshotView {
	return snapshotView{s.Volume, s.Name, s.SizeBytes, s.CreatedAt}
}

// snapshotArgs accepts VOLUME@SNAPSHOT as well as VOLUME SNAPSHOT.
func snapshotArgs(c *cobra.Command, args []string) error {
	if len(args) == 2 || len(args) == 1 && strings.Contains(args[0], "@") {
		return nil
	}
	return usagef("%s needs VOLUME@SNAPSHOT", c.CommandPath())
}

func splitArgs(args []string) (volume, snapshot string, err error) {
	if len(args) == 2 {
		return args[0], args[1], nil
	}
	return splitSnapshot(args[0])
}

func newSnapshotCreate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "create VOLUME@SNAPSHOT",
		Short:             "Freeze a volume as it is, attached or not",
		Long:              "Freeze a volume as it is, attached or not. Every write that was replied is in the snapshot. It takes no time and no space at first.",
		Example:           "  hv-storage-fabric snapshot create web1@before-upgrade",
		Args:              snapshotArgs,
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			volume, name, err := splitArgs(args)
			if err != nil {
				return err
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.CreateSnapshot(c.Context(), api, volume, name)
			if err != nil {
				return err
			}
			return a.show(viewSnapshot(reply.CreateSnapshot), func() { a.say("created snapshot %s@%s", volume, name) })
		},
	}
}

func newSnapshotList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "list VOLUME",
		Short:             "List the snapshots of a volume, oldest first",
		Args:              exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.ListSnapshots(c.Context(), api, args[0])
			if err != nil {
				return err
			}
			views := make([]snapshotView, 0, len(reply.Snapshots))
			rows := make([][]string, 0, len(reply.Snapshots))
			for _, s := range reply.Snapshots {
				views = append(views, viewSnapshot(s))
				rows = append(rows, []string{s.Name, units.Size(s.SizeBytes).Human(), s.CreatedAt.Local().Format(time.DateTime)})
			}
			return a.show(views, func() { a.table([]string{"NAME", "SIZE", "CREATED"}, rows) })
		},
	}
}

func newSnapshotDelete(a *app) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "delete VOLUME@SNAPSHOT",
		Short: "Delete a snapshot, or tell what that would free",
		Example: `  hv-storage-fabric snapshot delete web1@before-upgrade --dry-run
  hv-storage-fabric snapshot delete web1@before-upgrade`,
		Args:              snapshotArgs,
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			volume, name, err := splitArgs(args)
			if err != nil {
				return err
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
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
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "delete nothing; print the stored bytes that would become free")
	return c
}

func newSnapshotRollback(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rollback VOLUME@SNAPSHOT",
		Short:             "Make a volume that is not attached what a snapshot is",
		Long:              "Make a volume that is not attached what a snapshot is. What was written since is lost, unless another snapshot has it.",
		Example:           "  hv-storage-fabric snapshot rollback web1@before-upgrade",
		Args:              snapshotArgs,
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			volume, name, err := splitArgs(args)
			if err != nil {
				return err
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.Rollback(c.Context(), api, volume, name)
			if err != nil {
				return err
			}
			return a.show(viewVolume(reply.Rollback), func() { a.say("rolled volume %s back to %s", volume, name) })
		},
	}
}
