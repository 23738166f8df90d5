package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

func newConfig() *cobra.Command {
	c := &cobra.Command{Use: "config", Short: "Show, describe and check the configuration", Args: cobra.ArbitraryArgs}
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return fmt.Errorf("unknown command %q for %q", args[0], c.CommandPath())
	}
	c.AddCommand(
		&cobra.Command{
			Use:     "show",
			Short:   "Print the configuration that would be in effect, as a config file",
			Example: "  hvd config show >hvd.yaml\n  hvd config show --config /etc/hyper-nixos/hvd.yaml --memory 1GiB",
			Args:    cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				loaded, err := config.Load(c.Flags(), os.Getenv)
				if loaded == nil {
					return err
				}
				return errors.Join(err, loaded.Show(c.OutOrStdout()))
			},
		},
		&cobra.Command{
			Use:     "schema",
			Short:   "Print the JSON Schema of the config file",
			Example: "  hvd config schema >hvd.schema.json",
			Args:    cobra.NoArgs,
			RunE:    func(c *cobra.Command, _ []string) error { return config.Schema(c.OutOrStdout()) },
		},
		&cobra.Command{
			Use:     "check",
			Short:   "Check the configuration that would be in effect, and start nothing",
			Example: "  hvd config check --config /etc/hyper-nixos/hvd.yaml",
			Args:    cobra.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				loaded, err := config.Load(c.Flags(), os.Getenv)
				if err != nil {
					return err
				}
				if err := control.CheckTLS(loaded.NBD); err != nil {
					return err
				}
				if err := control.CheckReplicationTLS(loaded.Replication); err != nil {
					return err
				}
				if err := control.CheckRepositoryTLS(loaded.Repository); err != nil {
					return err
				}
				from := "there is no config file"
				if loaded.File != "" {
					from = loaded.File
				}
				for _, m := range config.Misspelled(os.Environ()) {
					fmt.Fprintf(c.ErrOrStderr(), "hvd: environment variable %s is no setting and has no effect; did you mean %s?\n", m.Name, m.Meant)
				}
				fmt.Fprintf(c.OutOrStdout(), "configuration is good (%s)\n", from)
				return nil
			},
		},
	)
	return c
}
