package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

// choose finds the one backup whose name begins with a prefix; "latest" is the youngest, "latest:SOURCE" the youngest of a source.
func choose(all []*repository.Manifest, name string) (*repository.Manifest, error) {
	if latest, source, ofSource := strings.Cut(name, ":"); latest == "latest" {
		for _, m := range slices.Backward(all) {
			if !ofSource || m.Source.Name == source {
				return m, nil
			}
		}
		return nil, fmt.Errorf("a backup %s: %w", name, block.ErrNotFound)
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
	if found == nil || name == "" {
		return nil, fmt.Errorf("backup %q; `hv-backup list` shows what there is: %w", name, block.ErrNotFound)
	}
	return found, nil
}

// shownBackup is a backup as -o json prints it.
type shownBackup struct {
	Name string `json:"name"`
	*repository.Manifest
	Root struct{} `json:"-"` // of no use to anybody
}

func newList(a *app) *cobra.Command {
	var tags []string
	c := &cobra.Command{
		Use:     "list [SOURCE]",
		Short:   "List backups, the oldest first",
		Example: "  hv-backup list web1 --tag daily --repo /mnt/backup/vms",
		Args:    console.Between(0, 1, "SOURCE"),
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
				rows = append(rows, []string{m.Name, m.Source.Name, m.Source.Kind, m.Time.Local().Format(time.DateTime), units.Size(m.SizeBytes).Human(), units.Size(m.NonZero).Human(), units.Size(m.StoredBytes).Human(), strings.Join(m.Tags, ",")})
			}
			return a.show(list, func() {
				console.Table(a.out, a.getenv, []string{"BACKUP", "SOURCE", "KIND", "TIME", "SIZE", "DATA", "ADDED", "TAGS"}, rows)
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
		Long:    "Show one backup: by its name, as many letters of it as tell it from others, latest, or latest:SOURCE.",
		Example: "  hv-backup show latest:web1 --repo /mnt/backup/vms",
		Args:    console.Exactly("BACKUP"),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.open(c.Context())
			if err != nil {
				return err
			}
			m, err := complete(c.Context(), a, r, args[0])
			if err != nil {
				return err
			}
			return a.show(shownBackup{Name: m.Name, Manifest: m}, func() {
				console.Pairs(a.out, [][2]string{
					{"backup", m.Name}, {"source", m.Source.Kind + " " + m.Source.Name}, {"host", m.Source.Host}, {"time", m.Time.Local().Format(time.RFC3339)}, {"consistency", m.Consistency},
					{"size", units.Size(m.SizeBytes).Human()}, {"data", units.Size(m.NonZero).Human()}, {"new data", units.Size(m.NewBytes).Human()}, {"added", units.Size(m.StoredBytes).Human()},
					{"tags", strings.Join(m.Tags, ", ")},
				})
			})
		},
	}
}
