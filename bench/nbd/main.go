// Command nbd compares hvd with NBD servers that only copy bytes, on this machine, and prints Markdown: `make bench-nbd` runs all of it.
//
// Each server runs in a cgroup of its own, which says what CPU time and memory it took. fio's nbd engine drives one server at a time over a unix socket; servers take turns, and a ratio is of
// two neighbours in time. A figure that misses a condition, such as data that was not reduced in time, is printed as void. What it knows of hvd is its API.
//
// It owns one folder, which it removes, and the processes that it started, which it ends by their ids, also when it is interrupted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench/nbd: %v\n", err)
		os.Exit(2)
	}
	if o.list {
		listJobs(os.Stdout)
		return
	}
	err = run(ctx, o)
	if ctx.Err() != nil {
		err = errors.New("interrupted; what it started is ended and its folder removed")
	}
	stop()
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench/nbd: %v\n", err)
		os.Exit(1)
	}
}
