package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// momentsAre says what --at takes.
const momentsAre = "TIME (2026-11-29T06:00:00.123456789Z, \"2026-11-29 06:00:00\" by this host's clock, \"5m ago\", now), the number of a record, or the label of a mark or snapshot"

// askedMoment is what was given for --at, as hvd takes it: a time without a zone is one of this host's clock, as tables show it.
func askedMoment(text string, zone *time.Location) string {
	if at, ok := clockTime(text, zone); ok {
		return at.UTC().Format(time.RFC3339Nano)
	}
	return text
}

// clockTime reads a time as RFC 3339 has it, or by a clock of that zone.
func clockTime(text string, zone *time.Location) (time.Time, bool) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02 15:04:05Z07:00", time.DateTime, "2006-01-02T15:04:05", "2006-01-02 15:04", "2006-01-02T15:04"} {
		if at, err := time.ParseInLocation(layout, text, zone); err == nil {
			return at, true
		}
	}
	return time.Time{}, false
}

// momentView is a moment with -o json. Its fields are part of the interface.
type momentView struct {
	URI    string    `json:"uri,omitempty"`
	Volume string    `json:"volume"`
	At     time.Time `json:"at"`
	Seq    uint64    `json:"seq"`

	Thinned bool `json:"thinned"` // it is the newest point that is left at or before what was asked for
}

func viewMoment(m client.HistoryMoment) momentView {
	v := momentView{Volume: m.Volume, At: m.At, Seq: m.Seq, Thinned: m.Thinned}
	if m.Attachment != nil {
		v.URI = m.Attachment.Uri
	}
	return v
}

// tellMoment says which moment it is, and whether it is an earlier one than was asked for.
func (a *app) tellMoment(v momentView) {
	a.note("%s is record %d of %s", v.Volume, v.Seq, v.At.Format(time.RFC3339Nano))
	if v.Thinned {
		a.note("history is thinned there: that is the newest point that is left at or before the moment (`hv-backup cdp points` lists them)")
	}
}

// hvd returns a client of the daemon.
func (a *app) hvd() (*client.Client, error) {
	return client.New(config.Endpoint(a.endpoint, a.getenv), a.getenv("HV_TOKEN"))
}

func newCDP(a *app) *cobra.Command {
	c := console.Group(&cobra.Command{
		Use:   "cdp",
		Short: "Go back to any write of a volume that keeps history",
		Long: `Go back to any write of a volume that keeps history. "hv-storage-fabric volume history set VOLUME --window 1h" has hvd keep it; from then on what the volume was after each write of that
window can be attached, or restored to another volume. No repository is needed. "cdp policy set" keeps points for longer.`,
	})
	c.AddCommand(newCDPPoints(a), newCDPAttach(a), newCDPExports(a), newCDPDetach(a), newCDPRestore(a), newCDPMark(a), newCDPPolicy(a), newCDPFindOnset(a))
	return c
}

func newCDPPoints(a *app) *cobra.Command {
	var after uint64
	var limit int
	var labelled bool
	c := &cobra.Command{
		Use:   "points VOLUME",
		Short: "List the moments of a volume that have a name: flushes, snapshots, marks",
		Long: `List the newest moments of a volume that have a name, the newest last: what its guest flushed, snapshots, marks, resizes and rollbacks. Every other write is a moment, too: by its time, or by the number of a record;
where history is thinned ("cdp policy"), only these are.
With --after NUMBER the first behind that one are listed instead, 0 begins with the oldest there is; --limit bounds the page, and the number of its last moment is where the next one goes on.`,
		Example: `  hv-backup cdp points web1
  hv-backup cdp points web1 --limit 1
  hv-backup cdp points web1 --labelled
  hv-backup cdp points web1 --after 123456 --limit 1000 -o json`,
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if limit < 1 || limit > maxPoints {
				return console.Usagef("--limit %d: want 1 to %d", limit, maxPoints)
			}
			api, err := a.hvd()
			if err != nil {
				return err
			}
			info, err := client.GetHistory(c.Context(), api, args[0])
			if err != nil {
				return err
			}
			h, forward := info.History, c.Flags().Changed("after")
			var points []client.HistoryPoint
			if forward {
				var reply *client.ListHistoryPointsResponse
				if reply, err = client.ListHistoryPoints(c.Context(), api, args[0], after, limit, labelled); err == nil {
					points = reply.HistoryPoints
				}
			} else {
				points, err = newestPoints(c.Context(), api, h, limit, labelled)
			}
			if err != nil {
				return err
			}
			points = append([]client.HistoryPoint{}, points...)
			return a.show(map[string]any{"history": h, "points": points}, func() { a.tellPoints(h, points, limit, forward) })
		},
	}
	f := c.Flags()
	f.Uint64Var(&after, "after", 0, "the first behind the record of that `NUMBER`, not the newest")
	f.IntVar(&limit, "limit", 100, fmt.Sprintf("at most so many, 1 to %d", maxPoints))
	f.BoolVar(&labelled, "labelled", false, "without flushes")
	return c
}

// maxPoints is how many points hvd gives at once.
const maxPoints = 1000

// newestPoints returns the newest points of a history, oldest first. hvd gives pages from a number on, so it is asked from ever further back, as records are numbered without gaps.
func newestPoints(ctx context.Context, api *client.Client, h client.History, limit int, labelled bool) (points []client.HistoryPoint, err error) {
	for span := 16 * uint64(limit); ; span *= 8 {
		after := uint64(0)
		if h.LastSeq > span {
			after = h.LastSeq - span
		}
		points = points[:0]
		for next := after; ; {
			reply, err := client.ListHistoryPoints(ctx, api, h.Volume, next, maxPoints, labelled)
			if err != nil {
				return nil, err
			}
			points = append(points, reply.HistoryPoints...)
			points = slices.Delete(points, 0, max(0, len(points)-limit))
			if len(reply.HistoryPoints) < maxPoints {
				break
			}
			next = reply.HistoryPoints[len(reply.HistoryPoints)-1].Seq
		}
		if len(points) >= limit || after <= h.FirstSeq {
			return points, nil
		}
	}
}

// tellPoints prints a page of points.
func (a *app) tellPoints(h client.History, points []client.HistoryPoint, limit int, forward bool) {
	if h.FirstSeq == 0 {
		a.say("volume %s has no moment yet", h.Volume)
	} else {
		if h.WholeSeq > h.FirstSeq {
			a.say("points of volume %s from record %d (%s) on", h.Volume, h.FirstSeq, h.First.Format(time.RFC3339Nano))
		}
		a.say("every write of volume %s from record %d (%s) on", h.Volume, h.WholeSeq, h.Whole.Format(time.RFC3339Nano))
	}
	if h.Stopped {
		a.say("nothing is kept at the moment: %s", h.LastGap)
	}
	for _, p := range points {
		a.say("%12d  %-30s  %-8s  %s", p.Seq, p.At.Format(time.RFC3339Nano), p.Kind, p.Label)
	}
	switch {
	case len(points) < limit || len(points) == 0:
	case forward:
		a.say("there may be more: --after %d", points[len(points)-1].Seq)
	default:
		a.say("there may be older ones: --after 0 begins with the oldest")
	}
}

func newCDPAttach(a *app) *cobra.Command {
	var at, as string
	var writable bool
	c := &cobra.Command{
		Use:   "attach VOLUME --at MOMENT",
		Short: "Export a volume as it was at a moment, over NBD, and print its URI",
		Long: `Export a volume as it was after a write of its past, and print the URI. It is read-only, there at once whatever the age of the moment, and until "cdp detach"; meanwhile history does not let go what it
needs. Where history is thinned, the newest point that is left at or before the moment is exported, and named.
With --writable a volume of its own is made of the moment (as "cdp restore" does, which takes as long as writing what was written since the automatic root before it), attached, and stays until it is deleted.`,
		Example: `  hv-backup cdp attach web1 --at "5m ago"
  hv-backup cdp attach web1 --at "2026-11-29 06:00:00"
  hv-backup cdp attach web1 --at 2026-11-29T06:00:00.5Z -o json
  hv-backup cdp attach web1 --at before-upgrade --writable --as web1-check`,
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case at == "":
				return console.Usagef("which moment? give --at: %s", momentsAre)
			case as != "" && !writable:
				return console.Usagef("--as goes with --writable")
			}
			api, err := a.hvd()
			if err != nil {
				return err
			}
			var moment client.HistoryMoment
			if writable {
				if as == "" {
					as = args[0] + "-" + time.Now().UTC().Format("20060102t150405.000z")
				}
				reply, err := client.RestoreHistory(c.Context(), api, args[0], askedMoment(at, time.Local), as, true)
				if err != nil {
					return err
				}
				moment = reply.RestoreHistory
			} else {
				reply, err := client.AttachHistory(c.Context(), api, args[0], askedMoment(at, time.Local))
				if err != nil {
					return err
				}
				moment = reply.AttachHistory
			}
			v := viewMoment(moment)
			a.tellMoment(v)
			return a.show(v, func() { a.say("%s", v.URI) })
		},
	}
	c.Flags().StringVar(&at, "at", "", "the moment: "+momentsAre)
	c.Flags().BoolVar(&writable, "writable", false, "make a volume of it that can be written")
	c.Flags().StringVar(&as, "as", "", "name of that volume (default: the old name and the present time)")
	return c
}

func newCDPDetach(a *app) *cobra.Command {
	var force bool
	c := &cobra.Command{
		Use:   "detach EXPORT",
		Short: "End the export of a moment",
		Long: `End the export of a moment, by the name that "cdp attach" printed: VOLUME@seq:NUMBER, or the name of a volume that was made with --writable, which stays. Refused while clients are connected, unless --force
ends their connections after the requests in flight.`,
		Example: `  hv-backup cdp detach web1@seq:123456`,
		Args:    console.Exactly("EXPORT"),

		ValidArgsFunction: a.completeExports,
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.hvd()
			if err != nil {
				return err
			}
			if _, err := client.DetachHistory(c.Context(), api, args[0], force); err != nil {
				return err
			}
			return a.show(map[string]any{"export": args[0], "detached": true}, func() { a.say("detached %s", args[0]) })
		},
	}
	c.Flags().BoolVar(&force, "force", false, "end the connections of clients")
	return c
}

func newCDPRestore(a *app) *cobra.Command {
	var at, to string
	c := &cobra.Command{
		Use:   "restore VOLUME --at MOMENT --to-volume NAME",
		Short: "Make a volume that begins as another one was at a moment",
		Long: `Make a volume that begins as another one was after a write of its past. What lies below the automatic root before the moment is shared, what was written since is written anew. The new volume appears
under its name when it is whole and durable; an interrupt leaves nothing of it.`,
		Example:           `  hv-backup cdp restore web1 --at "90s ago" --to-volume web1-rescued`,
		Args:              console.Exactly("VOLUME"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			if at == "" || to == "" {
				return console.Usagef("give --at MOMENT (%s) and --to-volume NAME", momentsAre)
			}
			api, err := a.hvd()
			if err != nil {
				return err
			}
			reply, err := client.RestoreHistory(c.Context(), api, args[0], askedMoment(at, time.Local), to, false)
			if err != nil {
				return err
			}
			v := viewMoment(reply.RestoreHistory)
			if v.Thinned {
				a.tellMoment(v)
			}
			return a.show(v, func() {
				a.say("volume %s is %s at record %d of %s", v.Volume, args[0], v.Seq, v.At.Format(time.RFC3339Nano))
			})
		},
	}
	c.Flags().StringVar(&at, "at", "", "the moment: "+momentsAre)
	c.Flags().StringVar(&to, "to-volume", "", "name of the new volume")
	return c
}

func newCDPMark(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "mark VOLUME LABEL",
		Short:             "Name the present moment of a volume",
		Long:              `Name the present moment of a volume, durably, so that "--at LABEL" finds it. Of a label that was given twice the newer counts.`,
		Example:           `  hv-backup cdp mark web1 before-upgrade`,
		Args:              console.Exactly("VOLUME", "LABEL"),
		ValidArgsFunction: a.completeVolumes(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			api, err := a.hvd()
			if err != nil {
				return err
			}
			reply, err := client.MarkHistory(c.Context(), api, args[0], args[1])
			if err != nil {
				return err
			}
			p := reply.MarkHistory
			return a.show(p, func() { a.say("record %d of volume %s is %q", p.Seq, args[0], p.Label) })
		},
	}
}
