package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// exportedMoment is a moment that is attached, with -o json. Its fields are part of the interface.
type exportedMoment struct {
	Export      string    `json:"export"` // VOLUME@seq:NUMBER
	Volume      string    `json:"volume"`
	URI         string    `json:"uri"`
	AttachedAt  time.Time `json:"attachedAt"`
	Connections int       `json:"connections"`
}

// exportedMoments returns the moments of a volume, or of all if it is "", that are attached.
func exportedMoments(ctx context.Context, api *client.Client, volume string) ([]exportedMoment, error) {
	reply, err := client.ListAttachments(ctx, api)
	if err != nil {
		return nil, err
	}
	moments := []exportedMoment{}
	for _, at := range reply.Attachments {
		if of, _, ok := strings.Cut(at.Volume, "@seq:"); ok && (volume == "" || of == volume) { // no volume, and no snapshot, has a colon in its name
			moments = append(moments, exportedMoment{at.Volume, of, at.Uri, at.AttachedAt, at.Connections})
		}
	}
	return moments, nil
}

func newCDPExports(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "exports [VOLUME]",
		Short: "List the moments that are attached",
		Long: `List the moments of a volume, or of all, that "cdp attach" has exported, read-only, and "cdp detach" ends: as long as they are there, history keeps what they need. Those of --writable are volumes of
their own: "hv-storage-fabric volume list" shows them.`,
		Example: `  hv-backup cdp exports
  hv-backup cdp exports web1 -o json | jq -r '.[].export'`,
		Args:              console.Between(0, 1, "VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.hvd()
			if err != nil {
				return err
			}
			volume := ""
			if len(args) > 0 {
				volume = args[0]
			}
			moments, err := exportedMoments(c.Context(), api, volume)
			if err != nil {
				return err
			}
			return a.show(moments, func() {
				var rows [][]string
				for _, m := range moments {
					rows = append(rows, []string{m.Export, m.AttachedAt.Local().Format(time.DateTime), fmt.Sprint(m.Connections), m.URI})
				}
				console.Table(a.out, a.getenv, []string{"EXPORT", "ATTACHED", "CLIENTS", "URI"}, rows)
			})
		},
	}
}

// completeExports offers the moments that are attached.
func (a *app) completeExports(c *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
	if api, err := a.hvd(); err == nil && len(args) == 0 {
		moments, _ := exportedMoments(c.Context(), api, "")
		for _, m := range moments {
			names = append(names, m.Export)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
