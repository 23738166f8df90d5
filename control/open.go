package control

import (
	"context"
	"log/slog"

	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/control/config"
)

// OpenStore opens the engine that a configuration describes: the OpenEngine of a real daemon.
func OpenStore(ctx context.Context, cfg config.Config, log *slog.Logger) (Engine, error) {
	store, err := blockstore.Open(ctx, blockstore.Options{
		Dir:         cfg.DataDir,
		LogCapBytes: int64(cfg.Store.LogCap),
		// The rest is for NBD buffers, transfers, the API and Go's own needs.
		MemoryBytes:  int64(cfg.Memory) * 5 / 8,
		SyncEvery:    cfg.Store.SyncEvery,
		DestageAfter: cfg.Store.DestageAfter,
		ReserveBytes: int64(cfg.Store.Reserve),
		Workers:      cfg.Store.Workers,
		Events:       engineEvents(log),
	})
	if err != nil {
		return nil, err
	}
	return storeEngine{store}, nil
}

// storeEngine is a store behind the Engine that control needs.
type storeEngine struct{ *blockstore.Store }

// OpenDevice implements Engine.
func (s storeEngine) OpenDevice(volume, snapshot string) (Device, error) {
	device, err := s.Store.OpenDevice(volume, snapshot)
	if err != nil {
		return nil, err // and not a nil *Device in an interface
	}
	return device, nil
}

// engineEvents logs what an operator should know of the engine.
func engineEvents(log *slog.Logger) blockstore.Events {
	return blockstore.Events{
		Corruption: func(err error) { log.Error("data failed its check", "error", err) },
		SpaceState: func(state blockstore.SpaceState, freeBytes int64) {
			level := slog.LevelWarn
			if state == blockstore.SpaceOK {
				level = slog.LevelInfo
			}
			log.Log(context.Background(), level, "space", "state", state.String(), "freeBytes", freeBytes)
		},
		BackgroundError: func(task string, err error) {
			log.Error("background work failed and will be tried again", "task", task, "error", err)
		},
		Recovered: func(r blockstore.RecoveryInfo) {
			log.Info("store opened", "clean", r.Clean, "replayedRecords", r.Records, "replayedBytes", r.Bytes, "duration", r.Duration)
		},
	}
}
