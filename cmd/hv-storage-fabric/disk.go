package main

import (
	"context"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newDisk(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "disk", Short: "See the disks of the store, and replace one"})
	c.AddCommand(newDiskList(a), newDiskReplace(a))
	return c
}

func newDiskList(a *app) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "list",
		Short: "Show each disk of the store, and whether a loss could be borne",
		Long: `Show the data directory and each directory of store.disks: whether its copy of the log and its part of the segments are in sync, and its free space;
and how much is still to be made where a disk was lost, or came back after it was away. A disk that was gone while hvd ran is taken back by itself when it is at its path again.
The exit code is 0 also when a disk is missing; with -o json, degraded says so.`,
		Example: "  hv-storage-fabric disk list\n  hv-storage-fabric disk list --wait\n  hv-storage-fabric disk list -o json | jq .degraded",
		Args:    exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.GetDisks(c.Context(), api)
			if err != nil {
				return err
			}
			disks := reply.Disks
			if wait {
				if disks, err = a.waitHealthy(c.Context(), api, disks); err != nil {
					return err
				}
			}
			return a.showDisks(disks)
		},
	}
	c.Flags().BoolVar(&wait, "wait", false, "show progress, and return when everything is as it shall be")
	return c
}

func newDiskReplace(a *app) *cobra.Command {
	var wait bool
	c := &cobra.Command{
		Use:   "replace OLD NEW",
		Short: "Take another directory in the place of a disk",
		Long: `Take the directory NEW in the place of the disk OLD, which may be lost already, and make what that held anew from the others. Both may be the same path, when
another disk was mounted there. Guests are served meanwhile. Write NEW instead of OLD into store.disks of hvd's configuration before its next start.`,
		Example: "  hv-storage-fabric disk replace /mnt/disk2/hv /mnt/disk5/hv --wait\n  hv-storage-fabric disk replace /mnt/disk2/hv /mnt/disk2/hv",
		Args:    exactly("OLD", "NEW"),
		RunE: func(c *cobra.Command, args []string) error {
			for i := range args {
				path, err := filepath.Abs(args[i])
				if err != nil {
					return err
				}
				args[i] = path
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.ReplaceDisk(c.Context(), api, args[0], args[1])
			if err != nil {
				return err
			}
			disks := reply.ReplaceDisk
			if wait {
				if disks, err = a.waitHealthy(c.Context(), api, disks); err != nil {
					return err
				}
			}
			return a.showDisks(disks)
		},
		ValidArgsFunction: a.completeDisks,
	}
	c.Flags().BoolVar(&wait, "wait", false, "return when everything is made anew")
	return c
}

// completeDisks offers the disks of the store for the first argument, and directories for the second.
func (a *app) completeDisks(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.GetDisks(c.Context(), api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var paths []string
	for _, d := range reply.Disks.Disks {
		paths = append(paths, d.Path)
	}
	return paths, cobra.ShellCompDirectiveNoFileComp
}

// waitHealthy returns when nothing is missing any more.
func (a *app) waitHealthy(ctx context.Context, api *client.Client, d client.Disks) (client.Disks, error) {
	most := d.BytesLeft
	meter := a.newMeter("rebuilding", most, false)
	defer meter.End()
	for d.Degraded || d.SegmentsWaiting > 0 {
		select {
		case <-ctx.Done():
			return d, fmt.Errorf("stopped waiting, the rebuild goes on: %w", ctx.Err())
		case <-time.After(settleEvery):
		}
		reply, err := client.GetDisks(ctx, api)
		if err != nil {
			return d, err
		}
		d = reply.Disks
		most = max(most, d.BytesLeft)
		meter.Total = most
		meter.At(most - d.BytesLeft)
	}
	return d, nil
}

func (a *app) showDisks(d client.Disks) error {
	return a.show(d, func() {
		rows := [][]string{}
		for _, k := range d.Disks {
			log := k.Log
			if k.LogFiles > 0 {
				log += ", " + strconv.Itoa(k.LogFiles) + " files left"
			}
			rows = append(rows, []string{k.Path, dash(log), dash(k.Segments), units.Size(k.FreeBytes).Human() + " of " + units.Size(k.TotalBytes).Human()})
		}
		a.table([]string{"DISK", "LOG", "SEGMENTS", "FREE"}, rows)
		for _, k := range d.Disks {
			if k.Problem != "" {
				a.note("%s: %s", k.Path, k.Problem)
			}
		}
		if d.Missed > 0 {
			a.note("%s that was in use is not there", counted(d.Missed, "disk"))
		}
		if d.SegmentsLacking > 0 {
			a.note("%s with fewer shards than there shall be", counted(d.SegmentsLacking, "segment"))
		}
		if d.SegmentsWaiting > 0 {
			a.note("%s not cut over the disks yet", counted(d.SegmentsWaiting, "segment"))
		}
		if d.BytesLeft > 0 {
			a.note("%s of segments and log files are left to go through", units.Size(d.BytesLeft).Human())
		}
	})
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
