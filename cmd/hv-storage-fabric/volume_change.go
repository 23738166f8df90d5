package main

import (
	"bufio"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolumeRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "rename NAME NEW",
		Short:             "Give a volume that is not attached another name",
		Args:              exactly("NAME", "NEW"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.RenameVolume(c.Context(), api, args[0], args[1])
			if err != nil {
				return err
			}
			return a.showVolume("renamed to", reply.RenameVolume)
		},
	}
}

func newVolumeResize(a *app) *cobra.Command {
	var size units.Size
	var shrink bool
	c := &cobra.Command{
		Use:   "resize NAME --size SIZE",
		Short: "Set the size of a volume",
		Long: `Set the size of a volume. It may grow while it is attached; clients see the new size when they connect again.
A smaller size loses what lies beyond it: that needs --shrink, and no attachment.`,
		Example:           "  hv-storage-fabric volume resize web1 --size 40GiB",
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
			reply, err := client.ResizeVolume(c.Context(), api, args[0], uint64(size), shrink)
			if err != nil {
				return err
			}
			return a.showVolume("resized", reply.ResizeVolume)
		},
	}
	c.Flags().Var(&size, "size", "new size in bytes, or with KiB, MiB, GiB or TiB; a multiple of 512")
	c.Flags().BoolVar(&shrink, "shrink", false, "allow a smaller size, which loses what lies beyond it")
	return c
}

func newVolumeDelete(a *app) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:               "delete NAME",
		Short:             "Delete a volume that is not attached, with its snapshots",
		Example:           "  hv-storage-fabric volume delete web1 --yes",
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.GetVolume(c.Context(), api, args[0])
			if err != nil {
				return err
			}
			v := reply.Volume
			question := fmt.Sprintf("Delete volume %s (%s) and its %d snapshots? Their data is lost.", v.Name, units.Size(v.SizeBytes).Human(), v.SnapshotCount)
			if err := a.confirm(yes, question); err != nil {
				return fmt.Errorf("delete volume %q: %w", args[0], err)
			}
			if _, err := client.DeleteVolume(c.Context(), api, args[0]); err != nil {
				return err
			}
			return a.show(map[string]any{"name": args[0], "deleted": true}, func() { a.say("deleted volume %s", args[0]) })
		},
	}
	c.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// confirm asks on the terminal, unless yes was given. Without a terminal nobody can answer, so it refuses.
func (a *app) confirm(yes bool, question string) error {
	if yes {
		return nil
	}
	if _, ok := terminal(a.in); !ok {
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
