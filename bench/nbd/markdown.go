package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// markdown prints the report: conditions, the table of verdicts, then each job with its runs.
func (r *report) markdown(out io.Writer) {
	m := r.Machine
	fmt.Fprintf(out, "## hvd against NBD servers that copy bytes (%s)\n\n", m.Date)
	fmt.Fprintf(out, "%s, %d CPUs, %s; %s, %s; %s; %s. %s. MB = 10^6 B. Took %.0f min.\n\n", m.CPU, m.CPUs, m.Memory, m.System, m.Kernel, m.FileSystem, m.Go, strings.Join(m.Versions, "; "), r.TookSeconds/60)
	for _, line := range r.Settings {
		fmt.Fprintf(out, "- %s\n", line)
	}
	fmt.Fprintf(out, "- data of fio (`%s`): %.1f %% of blocks of 4 KiB have no copy, deflate makes %.0f %% of a block\n", strings.Join(dataArgs, " "), 100*r.Data.UniqueShare, 100*r.Data.CompressedShare)
	for _, line := range r.Notes {
		fmt.Fprintf(out, "- %s\n", line)
	}
	r.verdicts(out)
	for _, s := range r.Sections {
		s.markdown(out)
	}
}

func (r *report) verdicts(out io.Writer) {
	fmt.Fprint(out, "\n| job | ratio of | median | least to most | aim | |\n|---|---|---|---|---|---|\n")
	for _, s := range r.Sections {
		for _, f := range s.Figures {
			fmt.Fprintf(out, "| %s | %s | **%.2f** | %.2f to %.2f | %s | %s |\n", s.Title, f.What, f.Median, f.Least, f.Most, f.Aim, f.Verdict)
		}
	}
}

func (s section) markdown(out io.Writer) {
	fmt.Fprintf(out, "\n### %s (`%s`)\n\n", s.Title, s.Name)
	if s.State != "" {
		fmt.Fprintf(out, "State: %s.", s.State)
	}
	if s.Placed != "" {
		fmt.Fprintf(out, " Found: %s.", s.Placed)
	}
	fmt.Fprint(out, "\n")
	if len(s.Runs) > 0 {
		fmt.Fprintf(out, "Command: `%s`\nAccounting: %s.\n\n", s.Runs[len(s.Runs)-1].Command, s.Accounting)
		s.runTable(out)
	}
	if len(s.Table) > 0 {
		fmt.Fprintln(out)
		writeTable(out, s.Table)
	}
	for _, note := range s.Notes {
		fmt.Fprintf(out, "\n%s\n", note)
	}
	for _, f := range s.Figures {
		f.markdown(out)
	}
}

func (f figure) markdown(out io.Writer) {
	fmt.Fprintf(out, "\n- %s: **%.2f**, of %s; aim: %s; **%s**", f.What, f.Median, joined("%.2f", f.Ratios), orDash(f.Aim), f.Verdict)
	if len(f.Void) > 0 {
		fmt.Fprintf(out, " because %s", strings.Join(slices.Compact(slices.Sorted(slices.Values(f.Void))), "; "))
	}
	fmt.Fprintln(out)
}

// runTable has a row for each server: medians of the measured runs, with their spread where it tells something.
func (s section) runTable(out io.Writer) {
	table := [][]string{{"server", s.Metric + ": median", "least to most", "each run", "p50 / p99 µs", "CPU s per GiB", "with work after", "anon MB, most", "file MB, most", "disk B per guest B", "client, % of a core", "load", "destaged"}}
	for _, name := range append(s.peers(), "hvd") {
		runs := slices.DeleteFunc(slices.Clone(s.Runs), func(r runResult) bool { return r.Server != name || r.Pair == 0 })
		if len(runs) == 0 {
			continue
		}
		each := column(runs, s.metric.of)
		sp := spreadOf(each)
		middle := func(f func(runResult) float64) float64 { return spreadOf(column(runs, f)).median }
		disk := "—"
		if runs[0].DiskKnown {
			disk = fmt.Sprintf("%.2f", middle(func(r runResult) float64 { return r.DiskBytesPerByte }))
		}
		var loads []string
		for _, r := range runs {
			loads = append(loads, r.Load)
		}
		table = append(table, []string{
			name, fmt.Sprintf("%.0f", sp.median), fmt.Sprintf("%.0f to %.0f", sp.least, sp.most), joined("%.0f", each),
			fmt.Sprintf("%.0f / %.0f", middle(func(r runResult) float64 { return r.P50 }), middle(func(r runResult) float64 { return r.P99 })),
			fmt.Sprintf("%.2f", middle(func(r runResult) float64 { return r.CPUPerGiB })), fmt.Sprintf("%.2f", middle(func(r runResult) float64 { return r.CPUPerGiBAfter })),
			fmt.Sprintf("%.0f", spreadOf(column(runs, func(r runResult) float64 { return float64(r.AnonBytes) / 1e6 })).most),
			fmt.Sprintf("%.0f", spreadOf(column(runs, func(r runResult) float64 { return float64(r.FileBytes) / 1e6 })).most),
			disk, fmt.Sprintf("%.0f", middle(func(r runResult) float64 { return r.ClientCPU })), strings.Join(loads, ", "), destaged(runs),
		})
	}
	writeTable(out, table)
}

// destaged says of the runs of hvd what the conditions ask for.
func destaged(runs []runResult) string {
	last := runs[len(runs)-1]
	if last.Server != "hvd" {
		return ""
	}
	if last.DestagedShare == 0 && last.Reduction == 0 {
		return fmt.Sprintf("frame cache hits %.1f %%", 100*last.FrameHitRate)
	}
	var parts []string
	for _, r := range runs {
		part := fmt.Sprintf("%.0f %% after %.1f s, %.2f : 1, lag %.1f s", 100*r.DestagedShare, r.DestagedAfterSeconds, r.Reduction, r.MostLagSeconds)
		if r.SettledBytesPerSecond > 0 {
			part += fmt.Sprintf(", %.0f MB/s with settle", r.SettledBytesPerSecond/1e6)
		}
		parts = append(parts, part)
	}
	return strings.Join(parts, "; ")
}

// writeTable prints rows, the first of which has the heads.
func writeTable(out io.Writer, rows [][]string) {
	for k, row := range rows {
		fmt.Fprintf(out, "| %s |\n", strings.Join(row, " | "))
		if k == 0 {
			fmt.Fprintf(out, "|%s\n", strings.Repeat("---|", len(row)))
		}
	}
}

func column(runs []runResult, f func(runResult) float64) []float64 {
	var all []float64
	for _, r := range runs {
		all = append(all, f(r))
	}
	return all
}

func joined(format string, values []float64) string {
	var all []string
	for _, v := range values {
		all = append(all, fmt.Sprintf(format, v))
	}
	return strings.Join(all, ", ")
}

func orDash(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
