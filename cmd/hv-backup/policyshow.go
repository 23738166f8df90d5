package main

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/units"
)

func newPolicyShow(p *policies) *cobra.Command {
	return &cobra.Command{
		Use:               "show NAME",
		Short:             "Show a policy and what came of it",
		Long:              "Show a policy and what came of it: its last backups, what went wrong, and the restore tests. -o json has all that was set.",
		Example:           "  hv-backup policy show nightly",
		Args:              console.Exactly("NAME"),
		ValidArgsFunction: p.completeOne,
		RunE: func(c *cobra.Command, args []string) error {
			folder, err := p.in()
			if err != nil {
				return err
			}
			is, s, err := folder.Load(args[0])
			if err != nil {
				return policyError(err)
			}
			v := p.view(is, s)
			return p.a.show(v, func() { console.Pairs(p.a.out, policyRows(v)) })
		},
	}
}

// policyRows are what people see of a policy.
func policyRows(v policyView) [][2]string {
	when := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return t.Local().Format(time.DateTime)
	}
	every := units.Span(v.Every).String()
	if v.At != "" {
		every += " at " + v.At
	}
	rows := [][2]string{
		{"policy", v.Name}, {"backs up", targets(v.Policy)}, {"libvirt", v.Connect}, {"files", strings.Join(slices.Sorted(maps.Keys(v.Files)), ", ")}, {"to", v.Repository}, {"copies", v.CopyTo},
		{"every", every}, {"keeps", v.Keep.String()}, {"last", when(v.State.LastDone)}, {"next", when(v.Next)}, {"backups", strings.Join(v.State.Backups, ", ")},
	}
	for _, upkeep := range []struct {
		name  string
		every int64
		last  time.Time
	}{{"prune", int64(v.PruneEvery), v.State.LastPrune}, {"verify", int64(v.VerifyEvery), v.State.LastVerify}} {
		if upkeep.every > 0 {
			rows = append(rows, [2]string{upkeep.name, fmt.Sprintf("every %v, last %s", units.Span(upkeep.every), when(upkeep.last))})
		}
	}
	if v.TestEvery > 0 {
		rows = append(rows, [2]string{"restore test", fmt.Sprintf("every %v: %s", units.Span(v.TestEvery), lastTest(v.Policy, v.State))})
	}
	for _, test := range v.State.Tests {
		rows = append(rows, [2]string{"tested", strings.Join(test.Backups, ", ") + ": " + test.Answer + test.Error})
	}
	return append(rows, [2]string{"trouble", v.trouble()})
}
