package control

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/control/config"
	"github.com/hyper-nixos/hyper-nixos/tiers/erasure"
	"github.com/hyper-nixos/hyper-nixos/tiers/stripe"
)

// OpenStore opens the engine that a configuration describes: the OpenEngine of a real daemon.
func OpenStore(ctx context.Context, cfg config.Config, log *slog.Logger) (Engine, error) {
	shape, err := erasure.ParseShape(cfg.Store.Parity)
	if err != nil {
		return nil, err
	}
	stripes, err := stripe.ParseShape(cfg.Store.Stripe)
	if err != nil {
		return nil, err
	}
	identities, err := cfg.Store.Identities(os.Getenv)
	if err != nil {
		return nil, err
	}
	alarms := &Alarms{}
	store, err := blockstore.Open(ctx, blockstore.Options{
		Dir:         cfg.DataDir,
		Disks:       cfg.Store.DiskList(),
		Keys:        blockstore.Keys{Identities: identities, Recipients: cfg.Store.RecipientList()},
		Stripe:      stripes,
		LogCopies:   cfg.Store.LogCopies,
		LogCapBytes: int64(cfg.Store.LogCap),
		StreamBytes: int64(cfg.Store.StreamRoom),
		// The rest is for NBD buffers, transfers, the API and Go's own needs.
		MemoryBytes:  engineMemory(int64(cfg.Memory)),
		SyncEvery:    cfg.Store.SyncEvery,
		DestageAfter: cfg.Store.DestageAfter,
		ReserveBytes: int64(cfg.Store.Reserve),
		Workers:      cfg.Store.Workers,
		Parity:       shape,
		ColdAfter:    coldAfter(cfg.Store.ColdAfter),
		SimilarOff:   cfg.Store.Similarity == "off",
		ColdEffort:   map[string]segment.Effort{"low": segment.Low, "normal": segment.Normal, "high": segment.High}[cfg.Store.ColdEffort],

		KeepBytesPerSecond: int64(cfg.Store.KeepRate),
		GCBytesPerSecond:   int64(cfg.Store.GCRate), GCRequestsPerSecond: int64(cfg.Store.GCRequests),
		HoldHistory:    true, // until the attachments are there again
		RestoreDataDir: cfg.Store.Restore == "on",
		Marks:          blockstore.FullMarks{SpaceNear: cfg.Alarms.SpaceNear, SpaceCritical: cfg.Alarms.SpaceCritical, QuotaNear: cfg.Alarms.QuotaNear, QuotaCritical: cfg.Alarms.QuotaCritical},
		Events:         engineEvents(log, alarms, time.Now),
	})
	if err != nil {
		return nil, err
	}
	return storeEngine{store, alarms}, nil
}

// coldAfter is a setting as the engine has it: there 0 is the default, and less is never.
func coldAfter(d time.Duration) time.Duration {
	if d == 0 {
		return -1
	}
	return d
}

// storeEngine is a store behind the Engine that control needs.
type storeEngine struct {
	*blockstore.Store
	alarms *Alarms
}

// Alarms implements Engine.
func (s storeEngine) Alarms() *Alarms { return s.alarms }

// OpenDevice implements Engine.
func (s storeEngine) OpenDevice(volume, snapshot string) (Device, error) {
	device, err := s.Store.OpenDevice(volume, snapshot)
	if err != nil {
		return nil, err // and not a nil *Device in an interface
	}
	return device, nil
}

// OpenPoint implements Engine.
func (s storeEngine) OpenPoint(ctx context.Context, volume string, m blockstore.Moment) (Device, OpenedMoment, error) {
	device, err := s.Store.OpenPoint(ctx, volume, m)
	if err != nil {
		return nil, OpenedMoment{}, err
	}
	seq, at, _ := device.Moment()
	return device, OpenedMoment{Seq: seq, At: at, Thinned: device.Thinned()}, nil
}

// RestorePoint implements Engine.
func (s storeEngine) RestorePoint(ctx context.Context, moment Device, name string) error {
	device, ok := moment.(*blockstore.Device)
	if !ok {
		return fmt.Errorf("restore a moment that is not of this store: %w", block.ErrInvalid)
	}
	_, err := s.Store.RestorePoint(ctx, device, name, nil)
	return err
}

// engineEvents logs what an operator should know of the engine. Faults that repeat are told at once, and then once a minute with a count.
func engineEvents(log *slog.Logger, alarms *Alarms, now func() time.Time) blockstore.Events {
	repeats := newRepeats(now)
	fault := func(message string, err error, about ...any) {
		tell, heldBack := repeats.tell(fmt.Sprint(message, about, err))
		if !tell {
			return
		}
		about = append(about, "error", err)
		if heldBack > 0 {
			about = append(about, "heldBack", heldBack)
		}
		log.Error(message, about...)
	}
	return blockstore.Events{
		Corruption: func(err error) { fault("data failed its check", err) },
		Damage: func(d blockstore.Damage) {
			if h := d.History; h != nil {
				if d.Mended {
					log.Warn("a damaged file of history was mended", "file", d.File, "volume", h.Volume, "columns", d.Columns)
				} else {
					fault("a file of history is damaged", errors.New(d.String()), "file", d.File, "volume", h.Volume)
				}
				return
			}
			if d.Mended {
				log.Warn("a damaged segment was mended", "segment", d.File, "columns", d.Columns)
				return
			}
			fault("a segment is damaged", errors.New(d.String()), "segment", d.File)
		},
		Disk: func(dir, state string, err error) {
			switch {
			case err == nil && state == "filling":
				log.Info("a disk that was away is there again: what it lacks is made in the background", "dir", dir)
				return
			case err == nil && state == "in sync":
				log.Info("a disk is in sync", "dir", dir)
				return
			}
			log.Error("a disk is not in sync: the store goes on without it", "dir", dir, "state", state, "error", err)
		},
		SpaceState: func(state blockstore.SpaceState, freeBytes int64) {
			level := slog.LevelWarn
			if state == blockstore.SpaceOK {
				level = slog.LevelInfo
			}
			log.Log(context.Background(), level, "space", "state", state.String(), "freeBytes", freeBytes)
			alarms.raise(Alarm{At: now().UTC(), Kind: AlarmSpace, State: state.String(), FreeBytes: uint64(max(0, freeBytes))})
		},
		QuotaState: func(volume string, of blockstore.QuotaKind, state blockstore.FillState, used, limit uint64) {
			level := slog.LevelWarn
			if state == blockstore.FillOK {
				level = slog.LevelInfo
			}
			kind := AlarmQuota
			if of == blockstore.QuotaUnique {
				kind = AlarmUniqueQuota
			}
			log.Log(context.Background(), level, kind, "volume", volume, "state", state.String(), "usedBytes", used, "limitBytes", limit)
			alarms.raise(Alarm{At: now().UTC(), Kind: kind, Volume: volume, State: state.String(), UsedBytes: used, LimitBytes: limit})
		},
		HistoryGap: func(volume string, cause error) {
			fault("the history of a volume could not go on, and begins anew: what it had cannot be had any more", cause, "volume", volume)
		},
		HistoryDropped: func(volume string, bytes int64) {
			log.Warn("history within the window of a volume went, as it is over its budget", "volume", volume, "bytes", bytes)
		},
		BackgroundError: func(task string, err error) {
			fault("background work failed and will be tried again", err, "task", task)
		},
		Recovered: func(r blockstore.RecoveryInfo) {
			if b := r.Rebuilt; b != nil {
				log.Warn("the metadata was lost and was made anew from its checkpoints", "reason", b.Reason, "keptAs", b.Kept, "rows", b.Rows, "chunks", b.Chunks, "duration", b.Duration)
				if l := &b.Lost; l.Chunks > 0 {
					log.Error("data is lost: these blocks give EIO until they are written over", "chunks", l.Chunks, "bytes", l.Bytes, "where", l.String())
				}
			}
			if r.Unindexed > 0 {
				log.Warn("the index lacks chunks, which are put in again in the background: until then some of what is written is stored a second time, and joined later", "chunks", r.Unindexed)
			}
			if r.Created {
				log.Info("store created")
				return
			}
			log.Info("store opened", "clean", r.Clean, "replayedRecords", r.Records, "replayedBytes", r.Bytes, "duration", r.Duration)
		},
	}
}

// What is not the engine's: the runtime, connections and their buffers, which do not become smaller with the budget. The engine needs leastEngine.
const (
	besideEngine = 38 << 20
	leastEngine  = 32 << 20
)

// engineMemory is the part of the daemon's budget that the engine gets, in bytes.
func engineMemory(total int64) int64 {
	return max(leastEngine, min(total*5/8, total-besideEngine))
}

// OutsideHeap is the part of the daemon's budget that lies beside Go's heap, in bytes.
func OutsideHeap(cfg *config.Config) int64 {
	return blockstore.OutsideHeap(blockstore.Options{MemoryBytes: engineMemory(int64(cfg.Memory)), LogCapBytes: int64(cfg.Store.LogCap)})
}
