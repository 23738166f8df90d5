package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/api/client"
)

// completeVolumes offers the names of volumes for the first argument.
func (a *app) completeVolumes(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveDefault
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListVolumes(c.Context(), api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, 0, len(reply.Volumes))
	for _, v := range reply.Volumes {
		names = append(names, v.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeSnapshots offers volumes, and behind VOLUME@ or as a second word the snapshots of that volume.
func (a *app) completeSnapshots(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	volume, _, at := strings.Cut(text, "@")
	prefix := volume + "@"
	switch {
	case len(args) == 0 && !at:
		names, _ := a.completeVolumes(c, nil, text)
		for i := range names {
			names[i] += "@"
		}
		return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	case len(args) == 1 && !strings.Contains(args[0], "@"):
		volume, prefix = args[0], ""
	case len(args) > 0:
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListSnapshots(c.Context(), api, volume)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, 0, len(reply.Snapshots))
	for _, s := range reply.Snapshots {
		names = append(names, prefix+s.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeStates offers snapshots for both of two states.
func (a *app) completeStates(c *cobra.Command, args []string, text string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.completeSnapshots(c, nil, text)
}

// completeTokens offers the names of tokens for the first argument.
func (a *app) completeTokens(c *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	api, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	reply, err := client.ListTokens(c.Context(), api)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	names := make([]cobra.Completion, 0, len(reply.Tokens))
	for _, t := range reply.Tokens {
		names = append(names, t.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
