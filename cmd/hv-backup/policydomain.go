package main

import (
	"encoding/csv"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/backup/machine"
	"github.com/hyper-nixos/hyper-nixos/backup/policy"
	"github.com/hyper-nixos/hyper-nixos/hypervisor/libvirt"
	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// domainFlags adds the flags of a policy about whole machines, and what that means for its arguments.
func (p *policies) domainFlags(c *cobra.Command, want *policy.Policy) {
	f := c.Flags()
	f.StringSliceVar(&want.Domains, "domain", nil, "domains of libvirt to back up as whole machines, instead of volumes")
	f.StringVar(&want.Connect, "connect", "", connectHelp)
	_ = c.RegisterFlagCompletionFunc("domain", p.a.completeDomains)
	volumes, complete := c.Args, c.ValidArgsFunction
	c.Args = func(c *cobra.Command, args []string) error {
		switch {
		case len(want.Domains) == 0:
			return volumes(c, args)
		case len(args) > 1:
			return console.Usagef("--domain finds the volumes of machines by itself: no volumes or group beside it")
		}
		return console.Exactly("NAME")(c, args)
	}
	c.ValidArgsFunction = func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(want.Domains) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return complete(c, args, text)
	}
}

// settleDomains makes what a policy says of machines independent of where it was set.
func (p *policies) settleDomains(want *policy.Policy) error {
	if len(want.Domains) == 0 {
		return nil // without them --connect is refused
	}
	slices.Sort(want.Domains)
	want.Domains = slices.Compact(want.Domains)
	if want.Connect == "" {
		want.Connect = p.a.getenv("LIBVIRT_DEFAULT_URI")
	}
	_, err := libvirt.Find(want.Connect, p.a.getenv)
	return err
}

// targets says what a policy backs up at one moment.
func targets(p *policy.Policy) string {
	switch {
	case p.Group != "":
		return "@" + p.Group
	case len(p.Domains) > 0:
		return "domain:" + strings.Join(p.Domains, " domain:")
	}
	return strings.Join(p.Volumes, " ")
}

// runArgs are the arguments of `run` for that.
func runArgs(p *policy.Policy) []string {
	args := []string{"run"}
	switch {
	case p.Group != "":
		return append(args, "@"+p.Group)
	case len(p.Domains) == 0:
		return append(args, p.Volumes...)
	}
	for _, name := range p.Domains {
		args = append(args, "--domain="+listItem(name))
	}
	if p.Connect != "" {
		args = append(args, "--connect="+p.Connect)
	}
	return args
}

// listItem is a text as an item of a flag that takes a list, which has commas between its items: a domain's name may have one.
func listItem(text string) string {
	var b strings.Builder
	w := csv.NewWriter(&b)
	_ = w.Write([]string{text}) // a builder takes all
	w.Flush()
	return strings.TrimSuffix(b.String(), "\n")
}

// ofGuests are the backups of a run by what a test of restores boots: machines where the policy is of these, else volumes.
func ofGuests(is *policy.Policy, all []doneRun) (names []string, backups map[string]string) {
	backups = make(map[string]string)
	for _, one := range all {
		if (one.Kind == machine.Kind) == (len(is.Domains) > 0) {
			names, backups[one.Source] = append(names, one.Source), one.Backup
		}
	}
	return names, backups
}

// disksOf are the names, in a run's backups, of what a guest is: a domain is one by itself.
func disksOf(is *policy.Policy, guest string) []string {
	if len(is.Domains) > 0 {
		return []string{guest}
	}
	return strings.Split(guest, ",")
}
