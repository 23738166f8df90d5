// Command hvd is the daemon of Hyper-NixOS: it owns a store, serves its volumes over NBD and takes orders over its control API.
//
// This package reads flags and starts and stops things; what they do is in package control and package api.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore/keyring"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/internal/helptext"
	"github.com/hyper-nixos/hyper-nixos/internal/secret"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "development"

// Exit codes are part of the interface; hv-storage-fabric has the same.
const (
	exitFailed  = 1
	exitUsage   = 2
	exitRefused = 4
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := newRoot().ExecuteContext(ctx)
	stop()
	if err != nil {
		code, hint := judge(err)
		fmt.Fprintf(os.Stderr, "hvd: %s%s\n", strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; "), hint)
		os.Exit(code)
	}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "hvd --data-dir DIR",
		Short: "Serve the volumes of a store over NBD",
		Long: `hvd owns the store in a data directory, serves its attached volumes over NBD, and takes orders on its control socket. The store is made
at the first start. Stop it with SIGTERM or SIGINT: requests in flight are finished first.

A setting is taken from its flag, else from its HV_* environment variable, else from the config file, else from the defaults.`,
		Example: `  hvd --data-dir /srv/store
  hvd config show`,
		Args:          cobra.NoArgs,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(c *cobra.Command, _ []string) error {
			loaded, err := config.Load(c.Flags(), os.Getenv)
			if err != nil {
				return err
			}
			return serve(c.Context(), loaded)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w", err, block.ErrInvalid) })
	root.SetVersionTemplate("hvd {{.Version}}\n")
	config.AddFlags(root.PersistentFlags())
	root.PersistentFlags().SortFlags = false
	root.AddCommand(newConfig())
	helptext.Fit(root)
	return root
}

// judge returns the exit code of an error, and what to do next.
func judge(err error) (code int, hint string) {
	switch {
	case errors.Is(err, block.ErrLocked):
		return exitRefused, "; another hvd has it open: stop that first, or use another --data-dir"
	case errors.Is(err, keyring.ErrNoKey):
		return exitRefused, "; name the file of its age identity with --store-key-file, or a systemd credential with --store-key-credential"
	case errors.Is(err, keyring.ErrWrongKey):
		return exitRefused, "; `hv-storage-fabric store key list DATA_DIR` says whose keys open it"
	case errors.Is(err, secret.ErrExposed):
		return exitRefused, ""
	case errors.Is(err, block.ErrInvalid), strings.HasPrefix(err.Error(), "unknown command"):
		return exitUsage, "; see `hvd --help`"
	case errors.Is(err, block.ErrVersion):
		return exitFailed, "; use the version of hvd that wrote it, or a newer one"
	case errors.Is(err, block.ErrCorrupt):
		return exitFailed, "; leave the directory as it is and look at it with `hv-storage-fabric store check`"
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		return exitFailed, "; run hvd as the owner of the data directory, on a writable file system"
	}
	return exitFailed, ""
}
