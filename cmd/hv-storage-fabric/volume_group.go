package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// groupView is a group with -o json.
type groupView struct {
	Name    string   `json:"name"`
	Volumes []string `json:"volumes"`
}

func newVolumeGroup(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "group", Short: "Name volumes that are frozen at one moment"})
	list := a.command("list", "List groups and their volumes", exactly(), func(c *cobra.Command, api *client.Client, _ []string) error {
		reply, err := client.ListVolumeGroups(c.Context(), api)
		if err != nil {
			return err
		}
		views, rows := make([]groupView, 0, len(reply.VolumeGroups)), [][]string{}
		for _, g := range reply.VolumeGroups {
			views = append(views, groupView{g.Name, g.Volumes})
			rows = append(rows, []string{g.Name, strings.Join(g.Volumes, " ")})
		}
		return a.show(views, func() { a.table([]string{"NAME", "VOLUMES"}, rows) })
	})
	list.ValidArgsFunction = cobra.NoFileCompletions
	list.Example = "  hv-storage-fabric volume group list"
	remove := a.command("delete NAME", "Forget a group; its volumes and their snapshots stay", exactly("NAME"), func(c *cobra.Command, api *client.Client, args []string) error {
		if _, err := client.DeleteVolumeGroup(c.Context(), api, args[0]); err != nil {
			return err
		}
		return a.show(map[string]any{"name": args[0], "deleted": true}, func() { a.say("deleted group %s", args[0]) })
	})
	remove.Example = "  hv-storage-fabric volume group delete shop"
	remove.ValidArgsFunction = a.completeGroups
	c.AddCommand(newVolumeGroupSet(a), list, remove)
	return c
}

func newVolumeGroupSet(a *app) *cobra.Command {
	args := func(c *cobra.Command, args []string) error {
		if len(args) < 2 {
			return usagef("%s needs NAME VOLUME...", c.CommandPath())
		}
		return nil
	}
	c := a.command("set NAME VOLUME...", "Make a group of volumes, or change which it has", args, func(c *cobra.Command, api *client.Client, args []string) error {
		reply, err := client.SetVolumeGroup(c.Context(), api, args[0], args[1:])
		if err != nil {
			return err
		}
		g := reply.SetVolumeGroup
		return a.show(groupView{g.Name, g.Volumes}, func() { a.say("group %s is %s", g.Name, strings.Join(g.Volumes, " ")) })
	})
	c.Long = `Make a group of volumes, such as those of one application, or change which volumes it has. ` + "`snapshot create @NAME@SNAPSHOT`" + ` freezes all of them at one
moment, and so do schedules. A volume can be in several groups. It stays in them when it is renamed; one that is deleted falls out.`
	c.Example = "  hv-storage-fabric volume group set shop db1 log1"
	c.ValidArgsFunction = func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeGroups(c, nil, text)
		}
		return a.completeVolumes(c, nil, text)
	}
	return c
}

// completeGroups offers the names of groups for the first argument.
func (a *app) completeGroups(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListVolumeGroups(c.Context(), api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []cobra.Completion
	for _, g := range reply.VolumeGroups {
		names = append(names, g.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
