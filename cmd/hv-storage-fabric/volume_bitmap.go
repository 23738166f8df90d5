package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// bitmapView is a bitmap with -o json.
type bitmapView struct {
	Volume       string    `json:"volume"`
	Name         string    `json:"name"`
	Since        time.Time `json:"since"`
	Sequence     uint64    `json:"sequence"`
	All          bool      `json:"all"` // the volume was rolled back since: everything counts as changed
	GranuleBytes uint64    `json:"granuleBytes"`
	Context      string    `json:"context"` // its NBD metadata context
}

func viewBitmap(b client.Bitmap) bitmapView {
	return bitmapView{b.Volume, b.Name, b.Since, b.Sequence, b.All, b.GranuleBytes, "qemu:dirty-bitmap:" + b.Name}
}

func newVolumeBitmap(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "bitmap", Short: "Remember what changes in a volume, for backup programs that speak NBD"})
	c.Long = `Remember what changes in a volume, without keeping what it was: a bitmap takes 48 bytes for each 16 MiB of the volume that are written to. Programs that speak NBD ask for it as the
metadata context qemu:dirty-bitmap:NAME of the volume and of its snapshots, in granules of 64 KiB: what was written, trimmed or zeroed since the bitmap was added or cleared. It survives crashes and restarts. After a
rollback of the volume everything counts as changed until the bitmap is cleared.

For incremental copies, add the bitmap of the next copy before the snapshot of this one, so that nothing falls between the two:
  volume bitmap add web1 tuesday; snapshot create web1@tuesday-copy
  copy from web1@tuesday-copy what qemu:dirty-bitmap:monday says there
  volume bitmap remove web1 monday; snapshot delete web1@tuesday-copy`
	c.AddCommand(newBitmapAdd(a), newBitmapList(a), newBitmapClear(a), newBitmapRemove(a))
	return c
}

func newBitmapAdd(a *app) *cobra.Command {
	c := a.command("add VOLUME NAME", "Begin to remember what changes in a volume", exactly("VOLUME", "NAME"), func(c *cobra.Command, api *client.Client, args []string) error {
		reply, err := client.AddBitmap(c.Context(), api, args[0], args[1])
		if err != nil {
			return err
		}
		b := viewBitmap(reply.AddBitmap)
		return a.show(b, func() { a.say("added bitmap %s to volume %s: NBD clients find it as %s", b.Name, b.Volume, b.Context) })
	})
	c.Long = "Begin to remember what changes in a volume from now on, attached or not. No snapshot of the volume has the same name, as NBD clients tell both by it; a volume has 64 bitmaps at most."
	c.Example = `  hv-storage-fabric volume bitmap add web1 monday
  nbdinfo --map=qemu:dirty-bitmap:monday --totals 'nbd+unix:///web1?socket=/var/lib/hvd/nbd.sock'`
	return c
}

func newBitmapList(a *app) *cobra.Command {
	c := a.command("list VOLUME", "List the bitmaps of a volume, those first that began first", exactly("VOLUME"), func(c *cobra.Command, api *client.Client, args []string) error {
		reply, err := client.ListBitmaps(c.Context(), api, args[0])
		if err != nil {
			return err
		}
		views, rows := make([]bitmapView, 0, len(reply.Bitmaps)), make([][]string, 0, len(reply.Bitmaps))
		for _, b := range reply.Bitmaps {
			view, notes := viewBitmap(b), ""
			if b.All {
				notes = "all counts as changed: rolled back since"
			}
			views = append(views, view)
			rows = append(rows, []string{view.Name, view.Since.Local().Format(time.DateTime), view.Context, notes})
		}
		return a.show(views, func() { a.table([]string{"NAME", "SINCE", "NBD CONTEXT", "NOTES"}, rows) })
	})
	c.Example = "  hv-storage-fabric volume bitmap list web1"
	return c
}

func newBitmapClear(a *app) *cobra.Command {
	c := a.bitmapCommand("clear", "Let a bitmap begin again from now", func(c *cobra.Command, api *client.Client, old bitmapView) error {
		reply, err := client.ClearBitmap(c.Context(), api, old.Volume, old.Name)
		if err != nil {
			return err
		}
		return a.show(viewBitmap(reply.ClearBitmap), func() { a.say("cleared bitmap %s of volume %s: nothing has changed from now on", old.Name, old.Volume) })
	})
	c.Long = "Let a bitmap begin again from now. What is written between a copy and this is in neither: to copy increments, add another bitmap before each copy instead (see `volume bitmap --help`)."
	c.Example = `  hv-storage-fabric volume bitmap clear web1 monday --dry-run
  hv-storage-fabric volume bitmap clear web1 monday`
	return c
}

func newBitmapRemove(a *app) *cobra.Command {
	c := a.bitmapCommand("remove", "Forget a bitmap", func(c *cobra.Command, api *client.Client, old bitmapView) error {
		if _, err := client.RemoveBitmap(c.Context(), api, old.Volume, old.Name); err != nil {
			return err
		}
		return a.show(map[string]any{"volume": old.Volume, "name": old.Name, "removed": true}, func() { a.say("removed bitmap %s of volume %s", old.Name, old.Volume) })
	})
	c.Long = "Forget a bitmap. NBD clients that asked for it get errors when they ask again."
	c.Example = `  hv-storage-fabric volume bitmap remove web1 monday --dry-run
  hv-storage-fabric volume bitmap remove web1 monday`
	return c
}

// bitmapCommand makes a command that ends what a bitmap has remembered, or with --dry-run says what that is.
func (a *app) bitmapCommand(verb, short string, run func(c *cobra.Command, api *client.Client, old bitmapView) error) *cobra.Command {
	var dryRun bool
	c := a.command(verb+" VOLUME NAME", short, exactly("VOLUME", "NAME"), func(c *cobra.Command, api *client.Client, args []string) error {
		if !dryRun {
			return run(c, api, bitmapView{Volume: args[0], Name: args[1]})
		}
		reply, err := client.ListBitmaps(c.Context(), api, args[0])
		if err != nil {
			return err
		}
		for _, b := range reply.Bitmaps {
			if b.Name == args[1] {
				return a.show(viewBitmap(b), func() {
					a.say("%s would forget what changed in volume %s since %s", verb, b.Volume, b.Since.Local().Format(time.DateTime))
				})
			}
		}
		return fmt.Errorf("volume %q has no bitmap %q; `volume bitmap list %s` names those that it has: %w", args[0], args[1], args[0], block.ErrNotFound)
	})
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing; say what would be forgotten")
	c.ValidArgsFunction = a.completeBitmaps
	return c
}

// completeBitmaps offers volumes, and as a second word the bitmaps of that volume.
func (a *app) completeBitmaps(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	switch len(args) {
	case 0:
		return a.completeVolumes(c, nil, text)
	case 1:
	default:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListBitmaps(c.Context(), api, args[0])
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, 0, len(reply.Bitmaps))
	for _, b := range reply.Bitmaps {
		names = append(names, b.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
