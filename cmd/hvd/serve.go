package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"

	"github.com/hyper-nixos/hyper-nixos/api"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// serve runs the daemon until ctx ends, and closes it clean.
func serve(ctx context.Context, loaded *config.Loaded) error {
	log := newLog(loaded.Log)
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(loaded.Memory) - max(int64(loaded.Memory)/16, outsideMemory) - control.OutsideHeap(&loaded.Config)) // the collector works harder before the budget is spent
		if loaded.Memory >= roomyMemory {
			useIdleCPUs()
		}
	}
	c, err := control.Open(ctx, control.Options{Config: loaded, OpenEngine: control.OpenStore, Log: log, Version: version})
	if err != nil {
		return err
	}
	server, err := api.Serve(c)
	if err != nil {
		return errors.Join(err, c.Close(context.Background()))
	}
	for _, m := range config.Misspelled(os.Environ()) {
		log.Warn("an environment variable is no setting and has no effect", "variable", m.Name, "nearest", m.Meant)
	}
	log.Info("ready", "version", version, "dataDir", loaded.DataDir, "controlSocket", loaded.ControlSocket, "nbdSocket", loaded.NBD.Socket,
		"configFile", loaded.File, "pid", os.Getpid())
	notify(log, "READY=1")

	<-ctx.Done()
	log.Info("stopping")
	notify(log, "STOPPING=1")
	server.Close()
	if err := c.Close(context.Background()); err != nil { // bounded by its own drain time
		return err
	}
	log.Info("stopped")
	return nil
}

// newLog writes to standard error as the configuration says, which has been validated.
func newLog(cfg config.Log) *slog.Logger {
	var level slog.Level
	_ = level.UnmarshalText([]byte(cfg.Level))
	options := &slog.HandlerOptions{Level: level}
	if cfg.Format == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, options))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, options))
}

// outsideMemory is what the runtime does not count, and what the heap overshoots its limit by while it is collected, in bytes.
const outsideMemory = 14 << 20

// roomyMemory is the budget, in bytes, from which on caches for each running goroutine do not count.
const roomyMemory = 256 << 20

// useIdleCPUs lets twice as many goroutines run as there are CPUs. Many of hvd's are in a system call that waits for a device, which keeps its place until the scheduler notices,
// up to 10 ms later. Measured with random writes on two CPUs, of which 30 % were idle: 5 to 15 % more of them.
func useIdleCPUs() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2 * runtime.GOMAXPROCS(0))
	}
}
