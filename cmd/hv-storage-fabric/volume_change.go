package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolumeRename(a *app) *cobra.Command {
	use, short := "rename NAME NEW", "Give a volume that is not attached another name"
	c := a.command(use, short, exactly("NAME", "NEW"), func(c *cobra.Command, api *client.Client, args []string) error {
		reply, err := client.RenameVolume(c.Context(), api, args[0], args[1])
		if err != nil {
			return err
		}
		return a.showVolume("renamed to", reply.RenameVolume)
	})
	c.Example = "  hv-storage-fabric volume rename web1 web1-old"
	return c
}

func newVolumeResize(a *app) *cobra.Command {
	var size volumeSize
	in := client.ResizeVolumeInput{}
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Set the size of a volume",
		Long: `Set the size of a volume, attached or not. NBD tells a client the size when it connects, so the connections of its clients are ended after
the requests in flight; a QEMU with reconnect-delay comes back by itself, and then its monitor's block_resize tells the guest.
With --keep-connections clients are left alone and go on with the size they know.

A smaller size loses what lies beyond it: that needs --shrink, and --force while the volume is attached.`,
		Example: `  hv-storage-fabric volume resize web1 --size 40GiB
  # then in QEMU: {"execute": "block_resize", "arguments": {"node-name": "NODE", "size": 42949672960}}`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("size") {
				return usagef("--size is missing, such as --size 40GiB")
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			in.SizeBytes = uint64(size.Size)
			reply, err := client.ResizeVolume(c.Context(), api, args[0], in)
			if err != nil {
				return err
			}
			if reply.ResizeVolume.Attachment != nil && !in.KeepConnections {
				a.note("note: clients that were connected see the new size when they connect again; a QEMU does that by itself with reconnect-delay, and needs block_resize then")
			}
			return a.showVolume("resized", reply.ResizeVolume)
		},
	}
	c.Flags().Var(&size, "size", "new size in bytes, or with "+sizeUnits+"; a multiple of 512")
	c.Flags().BoolVar(&in.Shrink, "shrink", false, "allow a smaller size, which loses what lies beyond it")
	c.Flags().BoolVar(&in.Force, "force", false, "allow that while the volume is attached")
	c.Flags().BoolVar(&in.KeepConnections, "keep-connections", false, "do not end the connections of clients, who then do not see the new size")
	return c
}

func newVolumeDelete(a *app) *cobra.Command {
	var yes, dryRun bool
	use, short := "delete NAME", "Delete a volume that is not attached, with its snapshots"
	c := a.volumeCommand(use, short, func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.GetVolume(c.Context(), api, name)
		if err != nil {
			return err
		}
		v := reply.Volume
		if dryRun {
			return a.showVolumeLoss(c, api, &v)
		}
		question := fmt.Sprintf("Delete volume %s (%s) and its %d snapshots? Their data is lost.", v.Name, units.Size(v.SizeBytes).Human(), v.SnapshotCount)
		if err := a.confirm(yes, question); err != nil {
			return fmt.Errorf("delete volume %q: %w", name, err)
		}
		if _, err := client.DeleteVolume(c.Context(), api, name); err != nil {
			return err
		}
		return a.show(map[string]any{"name": name, "deleted": true}, func() { a.say("deleted volume %s", name) })
	})
	c.Example = "  hv-storage-fabric volume delete web1 --dry-run\n  hv-storage-fabric volume delete web1 --yes"
	c.Flags().BoolVar(&dryRun, "dry-run", false, "delete nothing; say what would go, history included")
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// showVolumeLoss prints what goes with a volume.
func (a *app) showVolumeLoss(c *cobra.Command, api *client.Client, v *client.Volume) error {
	l, err := api.HistoryLoss(c.Context(), v.Name, 0, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	view := map[string]any{"name": v.Name, "deleted": false, "attached": v.Attachment != nil, "sizeBytes": v.SizeBytes, "referencedBytes": v.ReferencedBytes, "snapshots": v.SnapshotCount, "history": l}
	if l.First == nil {
		view["history"] = nil
	}
	return a.show(view, func() {
		a.say("deleting volume %s gives up %s of data, and %s", v.Name, units.Size(v.ReferencedBytes).Human(), counted(v.SnapshotCount, "snapshot"))
		if l.First != nil {
			for _, line := range l.Text() {
				a.say("%s", line)
			}
		}
		if v.Attachment != nil {
			a.say("it is attached, and refused until that ends")
		}
	})
}

// confirm asks on the terminal, unless yes was given. Without a terminal nobody can answer, so it refuses.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if _, ok := console.Terminal(a.in); !ok {
		return fmt.Errorf("nobody is there to ask; confirm with --yes: %w", errRefused)
	}
	fmt.Fprintf(a.err, "%s [y/N] ", question)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if answer = strings.ToLower(strings.TrimSpace(answer)); err != nil || answer != "y" && answer != "yes" {
		return fmt.Errorf("not confirmed: %w", errRefused)
	}
	return nil
}

func newVolumeClone(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "clone VOLUME[@SNAPSHOT] NEW",
		Short: "Make a volume from a snapshot, or from a volume as it is",
		Long:  "Make a volume from a snapshot, or from a volume as it is now. Nothing is copied; both go their own ways from here.",
		Example: `  hv-storage-fabric volume clone debian@golden web2
  hv-storage-fabric volume clone web1 web1-test`,
		Args:              exactly("VOLUME[@SNAPSHOT]", "NEW"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			volume, snapshot, err := splitSnapshot(args[0])
			if err != nil {
				return err
			}
			var from *string
			if snapshot != "" {
				from = &snapshot
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.CloneVolume(c.Context(), api, volume, from, args[1])
			if err != nil {
				return err
			}
			return a.showVolume("cloned to", reply.CloneVolume)
		},
	}
}
