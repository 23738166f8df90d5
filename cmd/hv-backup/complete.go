package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
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
