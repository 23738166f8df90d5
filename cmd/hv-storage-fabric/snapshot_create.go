package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

func newSnapshotCreate(a *app) *cobra.Command {
	use, short := "create VOLUME@SNAPSHOT... | @GROUP@SNAPSHOT", "Freeze volumes as they are, attached or not, all at one moment"
	c := a.command(use, short, checkSnapshotCreate, a.createSnapshots)
	c.Long = `Freeze a volume as it is, attached or not. Every write that was replied is in the snapshot. It takes no time and no space at first.

Several volumes are frozen at one moment: a write that followed on another one's reply, on whichever of them, is never there without that. Either all snapshots
are made or none, whatever happens meanwhile. @GROUP stands for the volumes of a group (` + "`volume group`" + `), each of which gets a snapshot of that name.`
	c.Example = `  hv-storage-fabric snapshot create web1@before-upgrade
  hv-storage-fabric snapshot create db1@release-7 log1@release-7
  hv-storage-fabric snapshot create @shop@release-7`
	c.ValidArgsFunction = a.completeFrozen
	return c
}

func checkSnapshotCreate(c *cobra.Command, args []string) error {
	bare := func(arg string) bool { return !strings.Contains(arg, "@") }
	if len(args) > 0 && !slices.ContainsFunc(args, bare) || len(args) == 2 && bare(args[0]) { // VOLUME SNAPSHOT is another way to say it
		return nil
	}
	return usagef("%s needs VOLUME@SNAPSHOT, several of them, or @GROUP@SNAPSHOT", c.CommandPath())
}

func (a *app) createSnapshots(c *cobra.Command, api *client.Client, args []string) error {
	switch group, name, ofGroup := splitGroup(args[0]); {
	case ofGroup && (len(args) > 1 || group == "" || name == ""):
		return usagef("want @GROUP@SNAPSHOT by itself")
	case ofGroup:
		reply, err := client.CreateGroupSnapshot(c.Context(), api, group, name)
		if err != nil {
			return err
		}
		return a.showSnapshots(reply.CreateGroupSnapshot)
	case len(args) == 2 && !strings.Contains(args[0], "@"):
		return a.createSnapshot(c, api, args[0], args[1])
	case len(args) == 1:
		volume, name, err := splitSnapshot(args[0])
		if err != nil {
			return err
		}
		return a.createSnapshot(c, api, volume, name)
	}
	names := make([]client.SnapshotNameInput, 0, len(args))
	for _, arg := range args {
		volume, name, err := splitSnapshot(arg)
		if err != nil {
			return err
		}
		if volume == "" {
			return usagef("%q: a group stands by itself", arg)
		}
		names = append(names, client.SnapshotNameInput{Volume: volume, Name: name})
	}
	reply, err := client.CreateSnapshots(c.Context(), api, names)
	if err != nil {
		return err
	}
	return a.showSnapshots(reply.CreateSnapshots)
}

func (a *app) createSnapshot(c *cobra.Command, api *client.Client, volume, name string) error {
	reply, err := client.CreateSnapshot(c.Context(), api, volume, name)
	if err != nil {
		return err
	}
	return a.show(viewSnapshot(reply.CreateSnapshot), func() { a.say("created snapshot %s@%s", volume, name) })
}

// showSnapshots prints snapshots that were made together.
func (a *app) showSnapshots(made []client.Snapshot) error {
	views := make([]snapshotView, 0, len(made))
	for _, s := range made {
		views = append(views, viewSnapshot(s))
	}
	return a.show(views, func() {
		for _, s := range made {
			a.say("created snapshot %s@%s", s.Volume, s.Name)
		}
	})
}

// splitGroup reads @GROUP@REST, or @GROUP.
func splitGroup(text string) (group, rest string, ofGroup bool) {
	text, ofGroup = strings.CutPrefix(text, "@")
	group, rest, _ = strings.Cut(text, "@")
	return group, rest, ofGroup
}

// completeFrozen offers volumes, and behind @ groups.
func (a *app) completeFrozen(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if strings.HasPrefix(text, "@") {
		names, directive := a.completeGroups(c, nil, "")
		for i := range names {
			names[i] = "@" + names[i] + "@"
		}
		return names, directive | cobra.ShellCompDirectiveNoSpace
	}
	return a.completeVolumes(c, nil, text)
}
