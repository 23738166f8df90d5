// Command hv-demo shows the product's main job on this machine, with a real guest: a Linux boots from a deduplicated volume over NBD, the
// daemon is killed under it, the guest goes on, and nothing that it fsynced is lost. `make demo` runs it.
//
// It runs hvd, hv-storage-fabric, qemu and e2fsck as a user would and prints what it measured, nothing else. It owns one folder, which it
// removes, and the processes that it started, which it ends, also when it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hyper-nixos/hyper-nixos/internal/console"
	"github.com/hyper-nixos/hyper-nixos/internal/guest"
)

func main() {
	ctx, stop := console.Interruptible(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	options, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "hv-demo: %v\n", err)
		os.Exit(2)
	}
	err = run(ctx, options, os.Stdout)
	code := 1
	if ctx.Err() != nil {
		code = console.InterruptCode(ctx)
		err = errors.New("interrupted; what it started is ended and its folder removed")
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "hv-demo: %v\n", err)
		os.Exit(code)
	}
}

// options of one demo.
type options struct {
	guest guest.Kind
	bin   string // folder with hvd and hv-storage-fabric
	cache string // folder that keeps guest disks between demos; the store lives in a new folder inside, and goes
	keep  bool   // leave the store's folder
}

func parse(args []string) (options, error) {
	var o options
	kind := string(guest.Busybox)
	flags := flag.NewFlagSet("hv-demo", flag.ContinueOnError)
	flags.StringVar(&kind, "guest", kind, "what boots: busybox, or debian (needs root, and a download at first)")
	flags.StringVar(&o.bin, "bin", "bin", "folder with hvd and hv-storage-fabric")
	flags.StringVar(&o.cache, "cache", "", "folder that keeps the guest's disks (default: hyper-nixos in the user's cache folder)")
	flags.BoolVar(&o.keep, "keep", false, "leave the store behind, and say where")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unknown argument %q", flags.Arg(0))
	}
	o.guest = guest.Kind(kind)
	if o.guest != guest.Busybox && o.guest != guest.Debian {
		return o, fmt.Errorf("unknown guest %q: use busybox or debian", kind)
	}
	if o.cache == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return o, fmt.Errorf("%w; say --cache DIR", err)
		}
		o.cache = filepath.Join(user, "hyper-nixos")
	}
	return o, nil
}
