package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// quotaView is the quota of a volume with -o json; 0 is none.
type quotaView struct {
	ReferencedBytes uint64      `json:"referencedBytes"`
	ReservedBytes   uint64      `json:"reservedBytes"`
	UniqueBytes     uint64      `json:"uniqueBytes"`
	Unique          *uniqueView `json:"unique"` // null without a bound on it, and before the first survey
	State           string      `json:"state"`
}

// uniqueView is what a volume alone holds with -o json, by the last survey.
type uniqueView struct {
	StoredBytes uint64    `json:"storedBytes"`
	ErrorBytes  uint64    `json:"errorBytes"`
	LogBytes    uint64    `json:"logBytes"`
	MeasuredAt  time.Time `json:"measuredAt"`
}

// String is what of a bound on unique data is used.
func (u *uniqueView) String() string {
	if u == nil {
		return "not measured yet"
	}
	text := units.Size(u.StoredBytes).Human()
	if u.ErrorBytes > 0 {
		text += " ± " + units.Size(u.ErrorBytes).Human()
	}
	if u.LogBytes > 0 {
		text += " and " + units.Size(u.LogBytes).Human() + " in the log"
	}
	return text + " at " + u.MeasuredAt.Local().Format(time.TimeOnly)
}

// viewQuota returns nil where there is none.
func viewQuota(q *client.VolumeQuota) *quotaView {
	if q == nil {
		return nil
	}
	view := &quotaView{ReferencedBytes: q.ReferencedBytes, ReservedBytes: q.ReservedBytes, UniqueBytes: q.UniqueBytes, State: q.State}
	if u := q.Unique; u != nil {
		view.Unique = &uniqueView{u.StoredBytes, u.ErrorBytes, u.LogBytes, u.MeasuredAt}
	}
	return view
}

// String is one line for people.
func (q *quotaView) String() string {
	if q == nil {
		return "none"
	}
	var parts []string
	if q.ReferencedBytes > 0 {
		parts = append(parts, fmt.Sprintf("at most %s of data (%s)", units.Size(q.ReferencedBytes).Human(), q.State))
	}
	if q.ReservedBytes > 0 {
		parts = append(parts, units.Size(q.ReservedBytes).Human()+" kept for it")
	}
	if q.UniqueBytes > 0 {
		parts = append(parts, fmt.Sprintf("at most %s that it alone holds (%s; %s)", units.Size(q.UniqueBytes).Human(), q.State, q.Unique))
	}
	return strings.Join(parts, ", ")
}

func newVolumeQuota(a *app) *cobra.Command {
	c := group(&cobra.Command{Use: "quota", Short: "Bound how much data a volume may hold, or alone hold, and keep room for it"})
	show := a.volumeCommand("show NAME", "Show the quota of a volume", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.GetVolume(c.Context(), api, name)
		if err != nil {
			return err
		}
		return a.showQuota(reply.Volume)
	})
	show.Example = "  hv-storage-fabric volume quota show web1"
	takeAway := a.volumeCommand("clear NAME", "Take bounds and reservation of a volume away", func(c *cobra.Command, api *client.Client, name string) error {
		reply, err := client.ClearVolumeQuota(c.Context(), api, name)
		if err != nil {
			return err
		}
		return a.showQuota(reply.ClearVolumeQuota)
	})
	takeAway.Example = "  hv-storage-fabric volume quota clear web1"
	c.AddCommand(newQuotaSet(a), show, takeAway)
	return c
}

func newQuotaSet(a *app) *cobra.Command {
	var referenced, reserve, unique units.Size
	c := &cobra.Command{
		Use:   "set NAME",
		Short: "Set quota and reservation of a volume",
		Long: `Bound how much data a volume may refer to, or what it alone may hold, and keep room for it. All hold at once and across restarts. What is not given stays as it is; 0 takes it away.

With --referenced and --reserve data counts as the guest wrote it, before dedup and compression; zeroes and trimmed blocks do not count, and snapshots do not. What would add to it beyond the bound
gets ENOSPC, for this volume only: overwrites, trims and zeroes go on. A guest of QEMU with werror=enospc (the default) is paused then, and goes on where it was after the
bound was raised and the guest was told cont.
A reservation is no other volume's, whatever they write; it is refused when so much is not free.

--unique bounds what the volume and its snapshots hold that no other volume needs, after dedup and compression: what deleting it would give back. hvd measures that, at least every 30 s while
something changes, or when so much was written that it might be reached; until then all that is written counts in full. Beyond it all data gets ENOSPC, overwrites too, since a snapshot may
hold what they replace; trims and zeroes go on. Once refused, a volume must fall two percent below its bound. It may go beyond it by what others let go, and by what is written before the
first survey or while one takes longer than 20 s.`,
		Example: `  hv-storage-fabric volume quota set web1 --referenced 15GiB
  hv-storage-fabric volume quota set db1 --reserve 50GiB
  hv-storage-fabric volume quota set tenant7 --unique 20GiB
  hv-storage-fabric volume quota set web1 --referenced 0`,
		Args:              exactly("NAME"),
		ValidArgsFunction: a.completeVolumes,
		RunE: func(c *cobra.Command, args []string) error {
			in := client.VolumeQuotaInput{}
			if c.Flags().Changed("referenced") {
				n := uint64(referenced)
				in.ReferencedBytes = &n
			}
			if c.Flags().Changed("reserve") {
				n := uint64(reserve)
				in.ReservedBytes = &n
			}
			if c.Flags().Changed("unique") {
				n := uint64(unique)
				in.UniqueBytes = &n
			}
			if in.ReferencedBytes == nil && in.ReservedBytes == nil && in.UniqueBytes == nil {
				return usagef("nothing to set: give a bound, such as --referenced 15GiB or --unique 5GiB, or --reserve")
			}
			api, err := a.connect()
			if err != nil {
				return err
			}
			reply, err := client.SetVolumeQuota(c.Context(), api, args[0], in)
			if err != nil {
				return err
			}
			return a.showQuota(reply.SetVolumeQuota)
		},
	}
	c.Flags().Var(&referenced, "referenced", "most data that the volume may refer to, with "+sizeUnits)
	c.Flags().Var(&reserve, "reserve", "data that there is always room for")
	c.Flags().Var(&unique, "unique", "most that the volume may hold and no other one needs, after reduction")
	for _, name := range []string{"referenced", "reserve", "unique"} {
		c.Flags().Lookup(name).DefValue = "" // what is not given stays as it is
		_ = c.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return c
}

// showQuota prints the quota of a volume: an object, or null where there is none.
func (a *app) showQuota(v client.Volume) error {
	quota := viewQuota(v.Quota)
	return a.show(quota, func() {
		if quota == nil {
			a.say("volume %s has no quota; it refers to %s", v.Name, units.Size(v.ReferencedBytes).Human())
			return
		}
		a.say("volume %s refers to %s: %s", v.Name, units.Size(v.ReferencedBytes).Human(), quota)
	})
}
