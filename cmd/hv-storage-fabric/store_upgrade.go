package main

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// upgradeView is an upgrade with -o json. Its fields are part of the interface.
type upgradeView struct {
	DataDir    string        `json:"dataDir"`
	Version    uint64        `json:"version"`
	Features   []featureView `json:"features"`
	MetaFormat uint64        `json:"metadataFormat"` // as it was found
	MetaNewest uint64        `json:"metadataFormatNewest"`
	DryRun     bool          `json:"dryRun"`
	Steps      []stepView    `json:"steps"`
}

type featureView struct {
	Kind string `json:"kind"`
	Bit  int    `json:"bit"`
	Name string `json:"name"` // empty: this program does not know it, and need not
	What string `json:"what,omitempty"`
}

type stepView struct {
	What string `json:"what"`
	From uint64 `json:"from"`
	To   uint64 `json:"to"`
	Done bool   `json:"done"`
}

func newStoreUpgrade(a *app) *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "upgrade DATA_DIR",
		Short: "Bring a store that no daemon has open to the newest format",
		Long: `Bring a store to the newest format that this version makes. Nothing else ever changes a store's format: a newer hvd serves an older store as it is, and the older hvd can have it back.
After an upgrade an older hvd may refuse the store, so be sure before that you will not go back. Each step is durable by itself; an upgrade that was interrupted goes on when it is called again.
hvd must be stopped. --dry-run changes nothing, and names the steps and the features that the store uses. A store of a format newer than this version is refused with the reason.`,
		Example: "  hv-storage-fabric store upgrade /var/lib/hyper-nixos --dry-run\n  systemctl stop hvd && hv-storage-fabric store upgrade /var/lib/hyper-nixos && systemctl start hvd",
		Args:    exactly("DATA_DIR"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := blockstore.Upgrade(c.Context(), vfs.Default, args[0], dryRun, func(s blockstore.UpgradeStep) {
				a.note("%s %d: done", s.What, s.To)
			})
			if err != nil {
				return locked(err)
			}
			view := viewUpgrade(r, dryRun)
			return a.show(view, func() { a.upgradeText(view) })
		},
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "change nothing, and say what would be done")
	return c
}

func viewUpgrade(r *blockstore.UpgradeReport, dryRun bool) upgradeView {
	view := upgradeView{DataDir: r.Dir, Version: r.Version, MetaFormat: r.MetaFormat, MetaNewest: r.MetaNewest, DryRun: dryRun, Features: []featureView{}, Steps: []stepView{}}
	for _, f := range r.Features {
		view.Features = append(view.Features, featureView{f.Kind, f.Bit, f.Name, f.What})
	}
	for _, s := range r.Steps {
		view.Steps = append(view.Steps, stepView{s.What, s.From, s.To, s.Done})
	}
	return view
}

func (a *app) upgradeText(v upgradeView) {
	a.say("store %s: superblock version %d, metadata format %d", v.DataDir, v.Version, v.MetaFormat)
	for _, f := range v.Features {
		name := f.Name
		if name == "" {
			name = fmt.Sprintf("bit %d, unknown to this version, which may go on without it", f.Bit)
		}
		a.say("feature %s (%s): %s", name, f.Kind, f.What)
	}
	switch {
	case len(v.Steps) == 0:
		a.say("nothing to do: this version makes no newer format")
	case v.DryRun:
		for _, s := range v.Steps {
			a.say("would bring the %s from %d to %d", s.What, s.From, s.To)
		}
	default:
		a.say("upgraded: metadata format %d", v.Steps[len(v.Steps)-1].To)
	}
}
