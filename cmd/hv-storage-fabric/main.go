// Command hv-storage-fabric controls the storage of Hyper-NixOS: the volumes, snapshots and tokens of a running hvd.
//
// It is a thin client: flags, tables, JSON and exit codes. What can be done is in package control, behind package api.
package main

import (
	"context"
	"os"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "development"

func main() {
	ctx, stop := console.Interruptible(context.Background(), os.Interrupt, syscall.SIGTERM)
	a := newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv)
	a.environ = os.Environ()
	code := run(ctx, a, os.Args[1:])
	stop()
	os.Exit(code)
}
