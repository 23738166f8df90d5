package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/hyper-nixos/hyper-nixos/api"
	"github.com/hyper-nixos/hyper-nixos/control"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// serve runs the daemon until ctx ends, and closes it clean.
func serve(ctx context.Context, loaded *config.Loaded) error {
	log := newLog(loaded.Log)
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(int64(loaded.Memory) * 15 / 16) // the collector works harder before the budget is spent
	}
	c, err := control.Open(ctx, control.Options{Config: loaded, OpenEngine: control.OpenStore, Log: log, Version: version})
	if err != nil {
		return err
	}
	server, err := api.Serve(c)
	if err != nil {
		return errors.Join(err, c.Close(context.Background()))
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
