package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

func newSnapshotRename(a *app) *cobra.Command {
	args := func(c *cobra.Command, args []string) error {
		if len(args) == 3 || len(args) == 2 && strings.Contains(args[0], "@") {
			return nil
		}
		return usagef("%s needs VOLUME@SNAPSHOT NEW", c.CommandPath())
	}
	c := a.command("rename VOLUME@SNAPSHOT NEW", "Give a snapshot another name", args, func(c *cobra.Command, api *client.Client, args []string) error {
		volume, name, to := args[0], args[1], args[len(args)-1]
		if len(args) == 2 {
			var err error
			if volume, name, err = splitSnapshot(args[0]); err != nil {
				return err
			}
		}
		reply, err := client.RenameSnapshot(c.Context(), api, volume, name, to)
		if err != nil {
			return err
		}
		return a.show(viewSnapshot(reply.RenameSnapshot), func() { a.say("renamed snapshot %s@%s to %s@%s", volume, name, volume, to) })
	})
	c.Long = "Give a snapshot another name. Refused while NBD clients use it, as they know it by its name."
	c.Example = "  hv-storage-fabric snapshot rename web1@before-upgrade release-7"
	c.ValidArgsFunction = a.completeSnapshots
	return c
}

func newSnapshotProtect(a *app) *cobra.Command {
	c := a.snapshotCommand("protect", "Make a snapshot one that cannot be deleted", func(c *cobra.Command, api *client.Client, volume, name string) error {
		reply, err := client.ProtectSnapshot(c.Context(), api, volume, name)
		if err != nil {
			return err
		}
		return a.show(viewSnapshot(reply.ProtectSnapshot), func() { a.say("protected snapshot %s@%s", volume, name) })
	})
	c.Long = "Make a snapshot one that cannot be deleted, nor its volume, by nobody and no schedule, until `snapshot unprotect` allows it again."
	c.Example = "  hv-storage-fabric snapshot protect web1@release-7"
	return c
}

func newSnapshotUnprotect(a *app) *cobra.Command {
	c := a.snapshotCommand("unprotect", "Allow again that a snapshot is deleted", func(c *cobra.Command, api *client.Client, volume, name string) error {
		reply, err := client.UnprotectSnapshot(c.Context(), api, volume, name)
		if err != nil {
			return err
		}
		return a.show(viewSnapshot(reply.UnprotectSnapshot), func() { a.say("unprotected snapshot %s@%s", volume, name) })
	})
	c.Example = "  hv-storage-fabric snapshot unprotect web1@release-7"
	return c
}
