package main

import (
	"errors"
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
		newVolumeClone(a), newVolumeQoS(a), newVolumeQuota(a), newVolumeGroup(a), newVolumeHistory(a), newVolumeBitmap(a), newVolumeReplicate(a), newVolumeAttach(a), newVolumeDetach(a), newVolumeMap(a), newVolumeUnmap(a), newVolumeImport(a), newVolumeExport(a))
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
	Bitmaps    []string        `json:"bitmaps"`
	Undestaged uint64          `json:"undestagedBytes"`
	Referenced uint64          `json:"referencedBytes"`
	Limits     *limitsView     `json:"limits"` // null when there are none
	Quota      *quotaView      `json:"quota"`  // null when there is none
	Origin     *originView     `json:"origin,omitempty"`
	Attachment *attachmentView `json:"attachment"` // null when it is not attached
	Restoring  *restoringView  `json:"restoring,omitempty"`
	History    *historyView    `json:"history,omitempty"` // of show; not there when none is kept
}

// restoringView is how far the live restore of a volume is.
type restoringView struct {
	Backup       string `json:"backup"`
	Repository   string `json:"repository"`
	ContentBytes uint64 `json:"contentBytes"`
	ReachedBytes uint64 `json:"reachedBytes"`
	Pulling      bool   `json:"pulling"`
	WaitingReads int    `json:"waitingReads"`
	Problem      string `json:"problem,omitempty"`
}

// String says it in a line.
func (r *restoringView) String() string {
	text := fmt.Sprintf("from backup %s, %s of %s have come", r.Backup, units.Size(r.ReachedBytes).Human(), units.Size(r.ContentBytes).Human())
	switch {
	case r.Problem != "":
		return r.Problem
	case !r.Pulling:
		text += "; stopped: run hv-backup restore --live again"
	}
	if r.WaitingReads > 0 {
		text += fmt.Sprintf(", %d reads wait", r.WaitingReads)
	}
	return text
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
	TCPURI      string    `json:"tcpUri,omitempty"`
	TCPMode     string    `json:"tcpMode,omitempty"`
	Clients     []string  `json:"clients,omitempty"`
	ReadOnly    bool      `json:"readOnly,omitempty"`
	Inject      string    `json:"inject,omitempty"`
	AttachedAt  time.Time `json:"attachedAt"`
	Connections int       `json:"connections"`
	Problem     string    `json:"problem,omitempty"`
}

func viewVolume(v client.Volume) volumeView {
	view := volumeView{
		Name: v.Name, UUID: v.Uuid, SizeBytes: v.SizeBytes, Chunking: v.Chunking, Mode: strings.ToLower(string(v.Mode)),
		CreatedAt: v.CreatedAt, Snapshots: v.SnapshotCount, Bitmaps: v.Bitmaps,
		Undestaged: v.UndestagedBytes, Referenced: v.ReferencedBytes, Limits: viewLimits(v.Limits), Quota: viewQuota(v.Quota),
	}
	if v.OriginVolume != "" || v.OriginSnapshot != "" {
		view.Origin = &originView{v.OriginVolume, v.OriginSnapshot}
	}
	if r := v.Restoring; r != nil {
		view.Restoring = &restoringView{r.Backup, r.Repository, r.ContentBytes, r.ReachedBytes, r.Pulling, r.WaitingReads, r.Problem}
	}
	if v.Attachment != nil {
		attachment := viewAttachment(*v.Attachment)
		view.Attachment = &attachment
	}
	return view
}

func viewAttachment(at client.Attachment) attachmentView {
	return attachmentView{at.Volume, at.Uri, at.Socket, at.OwnSocket, at.TcpUri, at.TcpMode, at.Clients, at.ReadOnly, at.Inject, at.AttachedAt, at.Connections, at.Problem}
}

// showVolume prints a volume that was just changed.
func (a *app) showVolume(did string, v client.Volume) error {
	return a.show(viewVolume(v), func() {
		a.say("%s volume %s (%s, %s, %s)", did, v.Name, units.Size(v.SizeBytes).Human(), v.Chunking, strings.ToLower(string(v.Mode)))
	})
}

func newVolumeCreate(a *app) *cobra.Command {
	var size volumeSize
	var chunking, mode string
	c := &cobra.Command{
		Use:   "create NAME --size SIZE",
		Short: "Make a volume that reads as zeroes",
		Long: `Make a volume that reads as zeroes. It takes no space until it is written to.

A name has 1 to 128 letters, digits, dots, underscores and dashes, and does not begin with a dot or a dash.
Volumes share data only with those that are cut alike: cdc cuts by content, 16 KiB on average; cdc:8KiB and the like with another average; fixed:64KiB and the like at
fixed offsets. Smaller chunks find more that is there already, and cost memory and disk for each: at 4 KiB the index takes four times as much.`,
		Example: `  hv-storage-fabric volume create web1 --size 20GiB
  hv-storage-fabric volume create db1 --size 100GiB --chunking fixed:64KiB --mode durable
  hv-storage-fabric volume create mail1 --size 50GiB --chunking cdc:8KiB`,
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
			reply, err := client.CreateVolume(c.Context(), api, client.CreateVolumeInput{Name: args[0], SizeBytes: uint64(size.Size), Chunking: chunking, Mode: writeMode})
			if err != nil {
				return err
			}
			a.noteChunking(reply.CreateVolume.Chunking)
			return a.showVolume("created", reply.CreateVolume)
		},
	}
	c.Flags().Var(&size, "size", "size in bytes, or with "+sizeUnits+"; a multiple of 512")
	chunkingFlag(c, &chunking)
	modeFlag(c, &mode)
	return c
}

// usualChunk is the average for which the memory of the store is published, bytes.
const usualChunk = 16 << 10

// noteChunking says what comes with chunks that are cut in another way than usual.
func (a *app) noteChunking(chunking string) {
	kind, text, other := strings.Cut(chunking, ":")
	if !other {
		return
	}
	if kind == "fixed" {
		a.note("note: a volume with fixed chunks shares no data with volumes that are cut by content")
	} else {
		a.note("note: a volume that is cut to %s on average shares no data with volumes that are cut otherwise", text)
	}
	if n, err := units.ParseSize(text); err == nil && n > 0 && n < usualChunk {
		a.note("note: its chunks take %d times as much memory and disk for the index as usual ones: about %d MiB of memory for each TiB of its data", usualChunk/n, 160*usualChunk/n)
	}
}

func chunkingFlag(c *cobra.Command, chunking *string) {
	c.Flags().StringVar(chunking, "chunking", "cdc", "how data is cut: cdc, cdc:AVERAGE from 4KiB to 64KiB, or fixed:SIZE from 4KiB to 1MiB, powers of two")
	_ = c.RegisterFlagCompletionFunc("chunking", cobra.FixedCompletions([]string{"cdc", "cdc:", "fixed:"}, cobra.ShellCompDirectiveNoSpace|cobra.ShellCompDirectiveNoFileComp))
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
		Use:     "list",
		Short:   "List all volumes",
		Example: "  hv-storage-fabric volume list\n  hv-storage-fabric volume list -o json | jq -r '.[] | select(.attachment) | .name'",
		Args:    exactly(),
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
			return a.show(views, func() {
				a.table([]string{"NAME", "SIZE", "CHUNKING", "MODE", "SNAPSHOTS", "ATTACHED"}, rows, "CHUNKING", "MODE")
			})
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
	c := a.volumeCommand("show NAME", "Show one volume", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.GetVolume(c.Context(), api, name)
		if err != nil {
			return err
		}
		view := viewVolume(reply.Volume)
		history, err := client.GetHistory(c.Context(), api, name)
		if said := (*client.Error)(nil); err == nil {
			view.History = viewHistory(&history.History)
		} else if !errors.As(err, &said) || said.Code != client.CodeNotFound {
			return err
		}
		return a.show(view, func() { a.volumePairs(view) })
	})
	c.Example = "  hv-storage-fabric volume show web1\n  hv-storage-fabric volume show web1 -o json | jq -r .attachment.uri"
	return c
}

// volumeCommand makes a command whose one argument is a volume.
func (a *app) volumeCommand(use, short string, run func(c *cobra.Command, api *client.Client, name string) error) *cobra.Command {
	return a.command(use, short, exactly("NAME"), func(c *cobra.Command, api *client.Client, args []string) error { return run(c, api, args[0]) })
}

// command makes a command of which the first argument is a volume, and which asks hvd.
func (a *app) command(use, short string, args cobra.PositionalArgs, run func(c *cobra.Command, api *client.Client, args []string) error) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: args, ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.connect()
			if err != nil {
				return err
			}
			return run(c, api, args)
		},
	}
}

func (a *app) volumePairs(v volumeView) {
	list := [][2]string{
		{"name", v.Name}, {"id", v.UUID},
		{"size", fmt.Sprintf("%s (%d bytes)", units.Size(v.SizeBytes).Human(), v.SizeBytes)},
		{"chunking", v.Chunking}, {"mode", v.Mode}, {"created", v.CreatedAt.Local().Format(time.DateTime)},
		{"snapshots", fmt.Sprint(v.Snapshots)}, {"not destaged", units.Size(v.Undestaged).Human()}, {"data", units.Size(v.Referenced).Human()}, {"limits", v.Limits.String()}, {"quota", v.Quota.String()},
	}
	if len(v.Bitmaps) > 0 {
		list = append(list, [2]string{"bitmaps", strings.Join(v.Bitmaps, ", ")})
	}
	if h := v.History; h != nil {
		list = append(list, [2]string{"history", h.String()})
	}
	if v.Origin != nil {
		list = append(list, [2]string{"clone of", v.Origin.Volume + "@" + v.Origin.Snapshot})
	}
	if v.Restoring != nil {
		list = append(list, [2]string{"being restored", v.Restoring.String()})
	}
	list = append(list, [2]string{"attached", attachedText(v.Attachment)})
	if at := v.Attachment; at != nil {
		list = append(list, at.pairs()...)
	}
	a.pairs(list)
}

// pairs are the lines of an attachment; empty ones are not shown.
func (at *attachmentView) pairs() [][2]string {
	overTCP, access := "", ""
	if at.TCPMode != "" {
		overTCP = at.TCPMode + ", for all clients that the door lets in"
	}
	if len(at.Clients) > 0 {
		overTCP = at.TCPMode + ", for " + strings.Join(at.Clients, ", ")
	}
	if at.ReadOnly {
		access = "read-only"
	}
	return [][2]string{{"uri", at.URI}, {"tcp uri", at.TCPURI}, {"over TCP", overTCP}, {"access", access}, {"FAULTS", at.Inject}, {"problem", at.Problem}}
}

// splitSnapshot takes VOLUME[@SNAPSHOT] apart. Both names are checked by hvd.
func splitSnapshot(text string) (volume, snapshot string, err error) {
	volume, snapshot, has := strings.Cut(text, "@")
	if has && snapshot == "" {
		return "", "", usagef("%q: the name of the snapshot is missing after '@'", text)
	}
	return volume, snapshot, nil
}
