package main

import (
	"context"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
)

// completer offers what an argument may be.
type completer func(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective)

// volumesOf returns the names of hvd's volumes, none if it does not answer.
func (a *app) volumesOf(ctx context.Context) (names []cobra.Completion) {
	api, err := a.hvd()
	if err != nil {
		return nil
	}
	reply, err := client.ListVolumes(ctx, api)
	if err != nil {
		return nil
	}
	for _, v := range reply.Volumes {
		names = append(names, v.Name)
	}
	return names
}

// completeVolumes offers volumes for the arguments from one on, up to so many in all.
func (a *app) completeVolumes(from, most int) completer {
	return func(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) < from || len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		left := slices.DeleteFunc(a.volumesOf(c.Context()), func(name cobra.Completion) bool { return slices.Contains(args, name) })
		return left, cobra.ShellCompDirectiveNoFileComp
	}
}

// completionTime is how long a shell may wait for a repository.
const completionTime = 3 * time.Second

// backupsFor returns what is in the repository, as far as its keys open without asking for a passphrase.
func (a *app) backupsFor(ctx context.Context) []*repository.Manifest {
	if a.passwordFile == "" && a.getenv("HV_BACKUP_PASSWORD_FILE") == "" && len(a.identities) == 0 {
		return nil // a passphrase would be asked for in the midst of a line
	}
	ctx, cancel := context.WithTimeout(ctx, completionTime)
	defer cancel()
	r, err := a.open(ctx)
	if err != nil {
		return nil
	}
	all, _ := r.Manifests(ctx, func(string, error) {})
	return all
}

// sourcesOf returns how the sources of backups are called behind latest:, each once.
func sourcesOf(all []*repository.Manifest) (names []string) {
	for _, m := range all {
		name := m.Source.Name
		if isMachine(m) {
			name = "domain:" + name
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// completeBackups offers backups for the arguments from one on, up to so many in all: the youngest ones by their source, then all by their name.
func (a *app) completeBackups(from, most int) completer {
	return func(c *cobra.Command, args []string, _ string) (offers []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) < from || len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		all := a.backupsFor(c.Context())
		for _, source := range sourcesOf(all) {
			offers = append(offers, "latest:"+source)
		}
		for _, m := range slices.Backward(all) {
			if !slices.Contains(args, m.Name) {
				offers = append(offers, cobra.CompletionWithDesc(m.Name, m.Source.Name+", "+m.Time.Local().Format(time.DateTime)))
			}
		}
		return offers, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
	}
}

// completeSources offers the sources of backups for the arguments up to so many.
func (a *app) completeSources(most int) completer {
	return func(c *cobra.Command, args []string, _ string) (names []cobra.Completion, _ cobra.ShellCompDirective) {
		if len(args) < most {
			for _, m := range a.backupsFor(c.Context()) {
				if !slices.Contains(args, m.Source.Name) {
					names = append(names, m.Source.Name)
				}
			}
			slices.Sort(names)
		}
		return slices.Compact(names), cobra.ShellCompDirectiveNoFileComp
	}
}

// complete offers policies.
func (p *policies) complete(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	folder, err := p.in()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names, _ := folder.Names()
	return slices.DeleteFunc(names, func(name string) bool { return slices.Contains(args, name) }), cobra.ShellCompDirectiveNoFileComp
}

// completeOne offers policies for the one argument.
func (p *policies) completeOne(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return p.complete(c, args, text)
}

// completeRun offers volumes, unless the arguments are files.
func (a *app) completeRun(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	for _, flag := range []string{"file", "files"} {
		if set, _ := c.Flags().GetBool(flag); set {
			return nil, cobra.ShellCompDirectiveDefault
		}
	}
	return a.completeVolumes(0, 1000)(c, args, text)
}
