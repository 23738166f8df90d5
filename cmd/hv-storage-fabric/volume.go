package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newVolume(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "volume", Short: "Make, change, attach, import and export volumes"})
	c.AddCommand(newVolumeCreate(a), newVolumeList(a), newVolumeShow(a), newVolumeRename(a), newVolumeResize(a), newVolumeDelete(a),
		newVolumeClone(a), newVolumeAttach(a), newVolumeDetach(a), newVolumeImport(a), newVolumeExport(a))
	return c
}

// volumeView is a volume with -o json. Its fields are part of the interface.
type volumeView struct {
	Name       string          `json:"name"`
	UUID       string          `json:"uuid"`
	SizeBytes  uint64          `json:"sizeBytes"`
	Chunking   string          `json:"chunking"`
	Mode       string          `json:"mode"`
	CreatedAt  time.Time       `json:"createdAt"`
	Snapshots  int             `json:"snapshots"`
	Origin     *originView     `json:"origin,omitempty"`
	Attachment *attachmentView `json:"attachment"` // null when it is not attached
}

type originView struct {
	Volume   string `json:"volume"`
	Snapshot string `json:"snapshot"`
}

type attachmentView struct {
	Volume      string    `json:"volume"`
	URI         string    `json:"uri"`
	Socket      string    `json:"socket"`
	OwnSocket   bool      `json:"ownSocket"`
	AttachedAt  time.Time `json:"attachedAt"`
	Connections int       `json:"connections"`
	Problem     string    `json:"problem,omitempty"`
}

func viewVolume(v client.Volume) volumeView {
	view := volumeView{
		Name: v.Name, UUID: v.Uuid, SizeBytes: v.SizeBytes, Chunking: v.Chunking, Mode: strings.ToLower(string(v.Mode)),
		CreatedAt: v.CreatedAt, Snapshots: v.SnapshotCount,
	}
	if v.OriginVolume != "" || v.OriginSnapshot != "" {
		view.Origin = &originView{v.OriginVolume, v.OriginSnapshot}
	}
	if v.Attachment != nil {
		attachment := viewAttachment(*v.Attachment)
		view.Attachment = &attachment
	}
	return view
}

func viewAttachment(at client.Attachment) attachmentView {
	return attachmentView{at.Volume, at.Uri, at.Socket, at.OwnSocket, at.AttachedAt, at.Connections, at.Problem}
}

// showVolume prints a volume that was just changed.
func (a *app) showVolume(did string, v client.Volume) error {
	return a.show(viewVolume(v), func() {
		a.say("%s volume %s (%s, %s, %s)", did, v.Name, units.Size(v.SizeBytes).Human(), v.Chunking, strings.ToLower(string(v.Mode)))
	})
}

func newVolumeCreate(a *app) *cobra.Command {
	var size units.Size
	var chunking, mode string
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Make a volume that reads as zeroes",
		Long: `Make a volume that reads as zeroes. It takes no space until it is written to.

A name has 1 to 128 letters, digits, dots, underscores and dashes, and does not begin with a dot or a dash.
Volumes that are cut by content (cdc) and volumes with fixed chunks share no data with each other.`,
		Example: `  hv-storage-fabric volume create web1 --size 20GiB
  hv-storage-fabric volume create db1 --size 100GiB --chunking fixed:64KiB --mode durable`,
		Args: exactly("NAME"),
		RunE: func(c *cobra.Command, args []string) error {
			if !c.Flags().Changed("size") {
				return usagef("--size is missing, such as --size 20GiB")
			}
			writeMode, err := parseMode(mode)
			if err != nil {
				return err
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.CreateVolume(c.Context(), api, client.CreateVolumeInput{Name: args[0], SizeBytes: uint64(size), Chunking: chunking, Mode: writeMode})
			if err != nil {
				return err
			}
			if reply.CreateVolume.Chunking != "cdc" {
				a.note("note: a volume with fixed chunks shares no data with volumes that are cut by content")
			}
			return a.showVolume("created", reply.CreateVolume)
		},
	}
	c.Flags().Var(&size, "size", "size in bytes, or with KiB, MiB, GiB or TiB; a multiple of 512")
	chunkingFlag(c, &chunking)
	modeFlag(c, &mode)
	return c
}

func chunkingFlag(c *cobra.Command, chunking *string) {
	c.Flags().StringVar(chunking, "chunking", "cdc", "how data is cut: cdc, or fixed:SIZE with a power of two from 4KiB to 1MiB")
}

func modeFlag(c *cobra.Command, mode *string) {
	c.Flags().StringVar(mode, "mode", "writeback", "writeback: safe from a power loss when the guest flushes; durable: when each write is done")
	_ = c.RegisterFlagCompletionFunc("mode", cobra.FixedCompletions([]string{"writeback", "durable"}, cobra.ShellCompDirectiveNoFileComp))
}

func parseMode(text string) (client.WriteMode, error) {
	switch text {
	case "writeback":
		return client.WriteModeWriteback, nil
	case "durable":
		return client.WriteModeDurable, nil
	}
	return "", usagef("--mode %q: use writeback or durable", text)
}

func newVolumeList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all volumes",
		Args:  exactly(),
		RunE: func(c *cobra.Command, _ []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.ListVolumes(c.Context(), api)
			if err != nil {
				return err
			}
			views := make([]volumeView, 0, len(reply.Volumes))
			rows := make([][]string, 0, len(reply.Volumes))
			for _, v := range reply.Volumes {
				view := viewVolume(v)
				views = append(views, view)
				rows = append(rows, []string{view.Name, units.Size(view.SizeBytes).Human(), view.Chunking, view.Mode, fmt.Sprint(view.Snapshots), attachedText(view.Attachment)})
			}
			return a.show(views, func() { a.table([]string{"NAME", "SIZE", "CHUNKING", "MODE", "SNAPSHOTS", "ATTACHED"}, rows) })
		},
	}
}

func attachedText(at *attachmentView) string {
	switch {
	case at == nil:
		return "no"
	case at.Problem != "":
		return "not served"
	case at.Connections == 1:
		return "yes, 1 client"
	}
	return fmt.Sprintf("yes, %d clients", at.Connections)
}

func newVolumeShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show one volume",
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
			view := viewVolume(reply.Volume)
			return a.show(view, func() { a.volumePairs(view) })
		},
	}
}

func (a *app) volumePairs(v volumeView) {
	list := [][2]string{
		{"name", v.Name}, {"id", v.UUID},
		{"size", fmt.Sprintf("%s (%d bytes)", units.Size(v.SizeBytes).Human(), v.SizeBytes)},
		{"chunking", v.Chunking}, {"mode", v.Mode}, {"created", v.CreatedAt.Local().Format(time.DateTime)},
		{"snapshots", fmt.Sprint(v.Snapshots)},
	}
	if v.Origin != nil {
		list = append(list, [2]string{"clone of", v.Origin.Volume + "@" + v.Origin.Snapshot})
	}
	list = append(list, [2]string{"attached", attachedText(v.Attachment)})
	if at := v.Attachment; at != nil {
		list = append(list, [2]string{"uri", at.URI}, [2]string{"problem", at.Problem})
	}
	a.pairs(list)
}

// splitSnapshot takes VOLUME[@SNAPSHOT] apart. Both names are checked by hvd.
func splitSnapshot(text string) (volume, snapshot string, err error) {
	volume, snapshot, has := strings.Cut(text, "@")
	if has && snapshot == "" {
		return "", "", usagef("%q: the name of the snapshot is missing after '@'", text)
	}
	return volume, snapshot, nil
}

// completeVolumes offers the names of volumes for the first argument.
func (a *app) completeVolumes(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListVolumes(c.Context(), api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, 0, len(reply.Volumes))
	for _, v := range reply.Volumes {
		names = append(names, v.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
