package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// limitsView is the limits of a volume with -o json; 0 is none.
type limitsView struct {
	ReadIOPS     uint64  `json:"readIops"`
	WriteIOPS    uint64  `json:"writeIops"`
	ReadBytes    uint64  `json:"readBytes"`
	WriteBytes   uint64  `json:"writeBytes"`
	BurstSeconds float64 `json:"burstSeconds"`
}

// viewLimits returns nil where there are none.
func viewLimits(l *client.VolumeLimits) *limitsView {
	if l == nil {
		return nil
	}
	return &limitsView{l.ReadIops, l.WriteIops, l.ReadBytes, l.WriteBytes, l.BurstSeconds}
}

// String is one line for people.
func (l *limitsView) String() string {
	if l == nil {
		return "none"
	}
	var parts []string
	for _, p := range []struct {
		what        string
		iops, bytes uint64
	}{{"read", l.ReadIOPS, l.ReadBytes}, {"write", l.WriteIOPS, l.WriteBytes}} {
		if p.iops > 0 {
			parts = append(parts, fmt.Sprintf("%s %d IOPS", p.what, p.iops))
		}
		if p.bytes > 0 {
			parts = append(parts, p.what+" "+units.Rate(p.bytes).String())
		}
	}
	if l.BurstSeconds > 0 {
		parts = append(parts, fmt.Sprintf("bursts of %gs", l.BurstSeconds))
	}
	return strings.Join(parts, ", ")
}

func newVolumeQoS(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "qos", Short: "Limit what the clients of a volume may do in a second"})
	c.AddCommand(newQoSSet(a), newQoSShow(a), newQoSClear(a))
	return c
}

func newQoSSet(a *app) *cobra.Command {
	var readIOPS, writeIOPS uint64
	var readBytes, writeBytes units.Rate
	var burst time.Duration
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Set limits of a volume",
		Long: `Set limits of a volume, attached or not. They hold at once and across restarts. What is not given stays as it is; 0 takes a limit away.
Reading its snapshots, as exports and backups do, is not limited.`,
		Example: `  hv-storage-fabric volume qos set web1 --write-iops 2000 --write-bytes 100MB/s
  hv-storage-fabric volume qos set web1 --read-bytes 200MiB/s --burst 2s`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			in := client.VolumeLimitsInput{}
			given := false
			take := func(flag string, set func()) {
				if c.Flags().Changed(flag) {
					set()
					given = true
				}
			}
			rate := func(r units.Rate) *uint64 { n := uint64(r); return &n }
			take("read-iops", func() { in.ReadIops = &readIOPS })
			take("write-iops", func() { in.WriteIops = &writeIOPS })
			take("read-bytes", func() { in.ReadBytes = rate(readBytes) })
			take("write-bytes", func() { in.WriteBytes = rate(writeBytes) })
			take("burst", func() { s := burst.Seconds(); in.BurstSeconds = &s })
			if !given {
				return usagef("nothing to set: give a limit, such as --write-iops 2000")
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.SetVolumeLimits(c.Context(), api, args[0], in)
			if err != nil {
				return err
			}
			return a.showLimits(reply.SetVolumeLimits)
		},
	}
	c.Flags().Uint64Var(&readIOPS, "read-iops", 0, "reads a second")
	c.Flags().Uint64Var(&writeIOPS, "write-iops", 0, "writes a second, trims and zeroes included")
	c.Flags().Var(&readBytes, "read-bytes", "bytes read a second, such as 100MB/s or 64MiB/s")
	c.Flags().Var(&writeBytes, "write-bytes", "bytes written a second")
	for _, name := range []string{"read-bytes", "write-bytes"} {
		c.Flags().Lookup(name).DefValue = "" // what is not given stays as it is
	}
	c.Flags().DurationVar(&burst, "burst", 0, "after an idle time, what the limits allow in so long may be done at once (default 100ms, at most 1m)")
	return c
}

func newQoSShow(a *app) *cobra.Command {
	c := a.volumeCommand("show NAME", "Show the limits of a volume", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.GetVolume(c.Context(), api, name)
		if err != nil {
			return err
		}
		return a.showLimits(reply.Volume)
	})
	c.Example = "  hv-storage-fabric volume qos show web1"
	return c
}

func newQoSClear(a *app) *cobra.Command {
	c := a.volumeCommand("clear NAME", "Take all limits of a volume away", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.ClearVolumeLimits(c.Context(), api, name)
		if err != nil {
			return err
		}
		return a.showLimits(reply.ClearVolumeLimits)
	})
	c.Example = "  hv-storage-fabric volume qos clear web1"
	return c
}

// showLimits prints the limits of a volume: an object, or null where there are none.
func (a *app) showLimits(v client.Volume) error {
	limits := viewLimits(v.Limits)
	return a.show(limits, func() {
		if limits == nil {
			a.say("volume %s has no limits", v.Name)
			return
		}
		a.say("volume %s: %s", v.Name, limits)
	})
}
