package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newDiff(a *app) *cobra.Command {
	var quick, summary bool
	c := &cobra.Command{
		Use:   "diff BACKUP BACKUP",
		Short: "Show in which ranges two backups differ",
		Long: `Show in which ranges of the content the second backup differs from the first, to the sector of 512 bytes: changed, filled (zeroes before), zeroed (zeroes now), added or removed (behind
the end of the other). What the two have in common is skipped unread, so it costs what has changed. With --quick no data is read at all: ranges are of whole chunks, some 16 KiB, and
data that was only cut differently counts as changed.

The backups may be of different sources. With -o json one document is written while it is found; without its end, and the sums in it, it is not complete. It needs an owner's keys.`,
		Example: `  hv-backup diff 20261128t220000z latest:web1 --repo /mnt/backup/vms
  hv-backup diff --quick --summary 20261128 20261129 -o json --repo s3://bucket/vms`,
		Args: console.Exactly("BACKUP", "BACKUP"),

		ValidArgsFunction: a.completeBackups(0, 2),
		RunE:              func(c *cobra.Command, args []string) error { return a.diff(c.Context(), args, quick, summary) },
	}
	c.Flags().BoolVar(&quick, "quick", false, "compare chunks, without reading data")
	c.Flags().BoolVar(&summary, "summary", false, "only the sums")
	return c
}

func (a *app) diff(ctx context.Context, names []string, quick, summary bool) error {
	r, err := a.openIndexed(ctx)
	if err != nil {
		return err
	}
	all, err := r.Manifests(ctx, a.warn)
	if err != nil {
		return err
	}
	first, err := choose(all, names[0])
	if err != nil {
		return err
	}
	second, err := choose(all, names[1])
	if err != nil {
		return err
	}
	out := &diffPrinter{w: bufio.NewWriter(a.out), json: a.output == "json", silent: summary}
	if err := out.begin(first.Name, second.Name); err != nil {
		return err
	}
	began := time.Now()
	meter := a.newMeter("comparing", max(first.SizeBytes, second.SizeBytes))
	sums, err := backup.Diff(ctx, r, first, second, backup.Diffing{Quick: quick, Visit: out.change, Progress: meter.At})
	meter.End()
	if err != nil {
		_ = out.w.Flush() // what was found is true all the same
		return fmt.Errorf("compare %s with %s: %w", first.Name, second.Name, err)
	}
	return out.end(sums, time.Since(began))
}

// diffPrinter prints changes as they are found: there may be more than fit into memory.
type diffPrinter struct {
	w      *bufio.Writer
	json   bool
	silent bool // no ranges
	some   bool // a range was printed
}

const diffRow = "%16d  %12s  %s\n"

func (p *diffPrinter) begin(first, second string) (err error) {
	switch {
	case p.json:
		var names []byte
		if names, err = json.Marshal([]string{first, second}); err == nil {
			_, err = fmt.Fprintf(p.w, "{\n  \"backups\": %s,\n  \"ranges\": [", names)
		}
	case !p.silent:
		_, err = fmt.Fprintf(p.w, "%16s  %12s  %s\n", "OFFSET", "LENGTH", "WHAT")
	}
	return err
}

func (p *diffPrinter) change(c backup.Change) error {
	if p.silent {
		return nil
	}
	if !p.json {
		_, err := fmt.Fprintf(p.w, diffRow, c.Off, units.Size(c.Len).Human(), c.Kind)
		return err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	if p.some {
		_ = p.w.WriteByte(',') // the error comes again
	}
	p.some = true
	_, err = fmt.Fprintf(p.w, "\n    %s", text)
	return err
}

func (p *diffPrinter) end(sums backup.Differences, took time.Duration) error {
	if p.json {
		text, err := json.Marshal(sums)
		if err != nil {
			return err
		}
		fmt.Fprintf(p.w, "\n  ],\n  \"total\": %s,\n  \"seconds\": %g\n}\n", text, took.Seconds())
		return p.w.Flush()
	}
	fmt.Fprintf(p.w, "%s in %s", units.Size(sums.Bytes).Human(), console.Counted(sums.Ranges, "range"))
	for _, kind := range []string{backup.Changed, backup.Filled, backup.Zeroed, backup.Added, backup.Removed} {
		if n := sums.Kinds[kind]; n > 0 {
			fmt.Fprintf(p.w, ", %s %s", units.Size(n).Human(), kind)
		}
	}
	fmt.Fprintf(p.w, "; looked into %s of 16 MiB\n", console.Counted(sums.Pages, "region"))
	return p.w.Flush()
}
