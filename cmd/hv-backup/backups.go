package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// choose finds the one backup whose name begins with a prefix; "latest" is the youngest, "latest:SOURCE" the youngest of a source. A machine is called domain:NAME among sources, as a volume may have its name; where there are only machines, NAME is enough.
func choose(all []*repository.Manifest, name string) (*repository.Manifest, error) {
	if name == "" || name == "latest:" {
		return nil, console.Usagef("which backup? give its name, or the beginning of it, latest, or latest:SOURCE")
	}
	if latest, source, ofSource := strings.Cut(name, ":"); latest == "latest" {
		only := !slices.ContainsFunc(all, func(m *repository.Manifest) bool { return !isMachine(m) })
		domain, ofDomain := strings.CutPrefix(source, "domain:")
		for _, m := range slices.Backward(all) {
			switch {
			case !ofSource && (only || !isMachine(m)), m.Source.Name == source && (only || !isMachine(m)), ofDomain && isMachine(m) && m.Source.Name == domain:
				return m, nil
			}
		}
		if len(all) == 0 {
			return nil, fmt.Errorf("%s: there is no backup yet; `hv-backup run VOLUME` makes one: %w", name, block.ErrNotFound)
		}
		return nil, fmt.Errorf("%s: no backup of that source; `hv-backup list` shows what there is: %w", name, block.ErrNotFound)
	}
	var found *repository.Manifest
	for _, m := range all {
		if m.Name == name {
			return m, nil
		}
		if !strings.HasPrefix(m.Name, name) {
			continue
		}
		if found != nil {
			return nil, console.Usagef("%s and %s both begin with %s", found.Name, m.Name, name)
		}
		found = m
	}
	if found == nil {
		return nil, fmt.Errorf("backup %q; `hv-backup list` shows what there is: %w", name, block.ErrNotFound)
	}
	return found, nil
}

// shownBackup is a backup as -o json prints it.
type shownBackup struct {
	Name string `json:"name"`
	*repository.Manifest
	Root    struct{}         `json:"-"`                 // of no use to anybody
	Machine *machine.Machine `json:"machine,omitempty"` // of a backup of one
}

// machineRows are what is shown of a machine.
func machineRows(m *machine.Machine) [][2]string {
	if m == nil {
		return nil
	}
	rows := [][2]string{{"machine", fmt.Sprintf("%s (%s), %s", m.Name, m.Type, m.State)}, {"uuid", m.UUID}, {"addresses", strings.Join(m.MACs, ", ")}}
	for _, d := range m.Disks {
		rows = append(rows, [2]string{d.Device + " " + d.Target, fmt.Sprintf("volume %s (%s)", d.Volume, units.Size(d.SizeBytes).Human())})
	}
	for _, medium := range m.Media {
		rows = append(rows, [2]string{"medium " + medium.Target, medium.Path})
	}
	for _, left := range m.Left {
		rows = append(rows, [2]string{left.Device + " " + left.Target, fmt.Sprintf("not in the backup: %s (%s)", left.Source, left.Why)})
	}
	for _, part := range []struct {
		name string
		part *machine.Part
	}{{"firmware", m.NVRAM}, {"tpm", m.TPM}} {
		if part.part != nil {
			rows = append(rows, [2]string{part.name, strings.TrimSuffix(part.part.State+": "+part.part.Why, ": ")})
		}
	}
	if m.Reason != "" {
		rows = append(rows, [2]string{"not at rest", m.Reason})
	}
	return rows
}

func newList(a *app) *cobra.Command {
	var tags []string
	c := &cobra.Command{
		Use:     "list [SOURCE]",
		Short:   "List backups, the oldest first",
		Example: "  hv-backup list web1 --tag daily --repo /mnt/backup/vms",
		Args:    console.Between(0, 1, "SOURCE"),

		ValidArgsFunction: a.completeSources(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.open(c.Context())
			if err != nil {
				return err
			}
			all, err := r.Manifests(c.Context(), a.warn)
			if err != nil {
				return err
			}
			list, rows := []shownBackup{}, [][]string{}
			for _, m := range all {
				if len(args) > 0 && m.Source.Name != args[0] || slices.ContainsFunc(tags, func(tag string) bool { return !slices.Contains(m.Tags, tag) }) {
					continue
				}
				list = append(list, shownBackup{Name: m.Name, Manifest: m})
				rows = append(rows, []string{m.Name, m.Source.Name, m.Source.Kind, m.Time.Local().Format("2006-01-02 15:04"), units.Size(m.SizeBytes).Human(), units.Size(m.NonZero).Human(), units.Size(m.StoredBytes).Human(), strings.Join(m.Tags, ","), lockColumn(m)})
			}
			switch {
			case len(list) > 0:
			case len(all) == 0:
				a.note("hv-backup: there is no backup yet; `hv-backup run VOLUME` makes one")
			default:
				a.note("hv-backup: none of the %d backups is what was asked for; `hv-backup list` shows them all", len(all))
			}
			return a.show(list, func() {
				console.Table(a.out, a.getenv, []string{"BACKUP", "SOURCE", "KIND", "TIME", "SIZE", "DATA", "ADDED", "TAGS", "LOCKED UNTIL"}, rows, "KIND", "DATA", "ADDED", "SIZE")
			})
		},
	}
	c.Flags().StringArrayVar(&tags, "tag", nil, "only backups with this tag; may be repeated")
	return c
}

func newShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:     "show BACKUP",
		Short:   "Show one backup",
		Long:    "Show one backup: by its name, as many letters of it as tell it from others, latest, or latest:SOURCE. latest:domain:NAME is that of a machine: its name, UUID, addresses and disks are shown, too.",
		Example: "  hv-backup show latest:web1 --repo /mnt/backup/vms",
		Args:    console.Exactly("BACKUP"),

		ValidArgsFunction: a.completeBackups(0, 1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.open(c.Context())
			if err != nil {
				return err
			}
			m, err := complete(c.Context(), a, r, args[0])
			if err != nil {
				return err
			}
			shown := shownBackup{Name: m.Name, Manifest: m}
			if m.Source.Kind == machine.Kind {
				if err := r.LoadIndex(c.Context(), a.warn); err != nil {
					return err
				}
				if shown.Machine, err = readMachine(c.Context(), r, m); err != nil {
					return fmt.Errorf("%s: %w", m.Name, err)
				}
			}
			return a.show(shown, func() {
				console.Pairs(a.out, append([][2]string{
					{"backup", m.Name}, {"source", m.Source.Kind + " " + m.Source.Name}, {"host", m.Source.Host}, {"time", m.Time.Local().Format(time.RFC3339)}, {"consistency", m.Consistency},
					{"size", units.Size(m.SizeBytes).Human()}, {"data", units.Size(m.NonZero).Human()}, {"new data", units.Size(m.NewBytes).Human()}, {"added", units.Size(m.StoredBytes).Human()},
					{"tags", strings.Join(m.Tags, ", ")}, {"locked until", lockColumn(m)},
				}, machineRows(shown.Machine)...))
			})
		},
	}
}
