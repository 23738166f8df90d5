package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newSnapshotDiff(a *app) *cobra.Command {
	args := func(c *cobra.Command, args []string) error {
		if n := len(args); n < 1 || n > 2 || !strings.Contains(args[0], "@") {
			return usagef("%s needs VOLUME@SNAPSHOT [VOLUME@SNAPSHOT]", c.CommandPath())
		}
		return nil
	}
	c := a.command("diff VOLUME@SNAPSHOT [VOLUME[@SNAPSHOT]]", "List what changed from a snapshot to another one, or to now", args, func(c *cobra.Command, api *client.Client, args []string) error {
		volume, _, err := splitSnapshot(args[0])
		if err != nil {
			return err
		}
		from, to := args[0], volume
		if len(args) == 2 {
			to = args[1]
		}
		if a.output == "json" {
			return diffJSON(c, api, a.out, from, to)
		}
		return a.diffTable(c, api, from, to)
	})
	c.Long = `List the ranges in which a second state differs from a first one: another snapshot of the volume, or the volume as it is now; or a clone, or a
snapshot of it, and what it was made from. It costs what has changed, however large the volume is.

KIND says what the second one holds there: data; zero, what was zeroed or trimmed and is stored as such; hole, nothing, which reads as zeroes as well. All
that is not listed is the same. What was written anew with the same content may be listed.`
	c.Example = `  hv-storage-fabric snapshot diff web1@monday web1@tuesday
  hv-storage-fabric snapshot diff web1@monday
  hv-storage-fabric snapshot diff golden@v7 web1 -o json`
	c.ValidArgsFunction = a.completeStates
	return c
}

// diffTable prints ranges as they come.
func (a *app) diffTable(c *cobra.Command, api *client.Client, from, to string) error {
	out := bufio.NewWriter(a.out)
	header := false
	total, err := api.Changes(c.Context(), from, to, func(r client.Change) error {
		if !header {
			header = true
			fmt.Fprintf(out, "%20s %20s  %s\n", "OFFSET", "LENGTH", "KIND")
		}
		_, err := fmt.Fprintf(out, "%20d %20d  %s\n", r.Offset, r.Length, r.Kind)
		return err
	})
	if err == nil {
		human := func(n uint64) string { return units.Size(n).Human() }
		fmt.Fprintf(out, "%s, %s: %s data, %s zero, %s hole\n", counted(total.Ranges, "range"), human(total.Bytes), human(total.DataBytes), human(total.ZeroBytes), human(total.HoleBytes))
	}
	if flushed := out.Flush(); err == nil {
		err = flushed
	}
	return err
}

// diffJSON prints one document, range by range, so that it takes no memory for them. If it fails the document has no end.
func diffJSON(c *cobra.Command, api *client.Client, w io.Writer, from, to string) error {
	out := bufio.NewWriter(w)
	before := fmt.Sprintf("{\n  \"from\": %q,\n  \"to\": %q,\n  \"changes\": [", from, to)
	total, err := api.Changes(c.Context(), from, to, func(r client.Change) error {
		text, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "%s\n    %s", before, text)
		before = ","
		return err
	})
	if err != nil {
		_ = out.Flush() // the first error counts
		return err
	}
	if before != "," {
		fmt.Fprint(out, before)
	}
	text, err := json.Marshal(total)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n  ],\n  \"total\": %s\n}\n", text)
	return out.Flush()
}
