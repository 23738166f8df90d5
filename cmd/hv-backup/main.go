// Command hv-backup keeps backups of images and volumes in a repository: deduplicated, compressed, encrypted.
//
// It is a thin client: flags, tables, JSON and exit codes. What it does is in package backup; volumes it reads from a running hvd.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/internal/console"
)

// version is set by the build (-ldflags "-X main.version=…").
var version = "development"

// memoryLimit is where Go's collector begins to work harder, bytes. What a run holds by design is under half of it.
const memoryLimit = 224 << 20

func main() {
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup means that it goes on
		ends = append(ends, syscall.SIGHUP) // the terminal has gone: what is served or mounted must not stay behind
	}
	ctx, stop := console.Interruptible(context.Background(), ends...)
	code := run(ctx, newApp(os.Stdin, os.Stdout, os.Stderr, os.Getenv), os.Args[1:])
	stop()
	os.Exit(code)
}
