package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// LimitsChange says what limits of a volume shall become; nil leaves one as it is, 0 takes it away.
type LimitsChange struct {
	ReadIOPS, WriteIOPS   *uint64
	ReadBytes, WriteBytes *uint64
	BurstSeconds          *float64
}

// apply returns limits with the change made.
func (l LimitsChange) apply(to blockstore.VolumeLimits) (blockstore.VolumeLimits, error) {
	for _, f := range []struct{ from, to *uint64 }{
		{l.ReadIOPS, &to.ReadIOPS}, {l.WriteIOPS, &to.WriteIOPS}, {l.ReadBytes, &to.ReadBytes}, {l.WriteBytes, &to.WriteBytes},
	} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	if s := l.BurstSeconds; s != nil {
		if !(*s >= 0 && *s <= blockstore.MaxBurst.Seconds()) {
			return to, fmt.Errorf("burst of %g s: want 0 to %g s: %w", *s, blockstore.MaxBurst.Seconds(), block.ErrInvalid)
		}
		to.Burst = time.Duration(*s * float64(time.Second))
	}
	return to, to.Validate()
}

// SetLimits changes what the clients of a volume may do in a second, at once and for good.
func (c *Control) SetLimits(ctx context.Context, name string, change LimitsChange) (Volume, error) {
	return c.limit(ctx, name, change.apply)
}

// ClearLimits takes all limits of a volume away.
func (c *Control) ClearLimits(ctx context.Context, name string) (Volume, error) {
	return c.limit(ctx, name, func(blockstore.VolumeLimits) (none blockstore.VolumeLimits, _ error) { return none, nil })
}

func (c *Control) limit(ctx context.Context, name string, change func(blockstore.VolumeLimits) (blockstore.VolumeLimits, error)) (Volume, error) {
	err := c.change(ctx, "limit", name, nil, func() error {
		info, err := c.visible(name)
		if err != nil {
			return err
		}
		limits, err := change(info.Limits)
		if err != nil {
			return fmt.Errorf("limit volume %q: %w", name, err)
		}
		if err := c.engine.SetVolumeLimits(name, limits); err != nil {
			return err
		}
		if err := c.saveLimits(); err != nil {
			return errors.Join(err, c.engine.SetVolumeLimits(name, info.Limits))
		}
		return nil
	})
	if err != nil {
		return Volume{}, err
	}
	return c.Volume(name)
}

// limitsRecord is the limits of one volume in limits.json (docs/format/control.md). The volume is the one with that id, whatever it is called by now.
type limitsRecord struct {
	Volume     string `json:"volume"`
	UUID       string `json:"uuid"`
	ReadIOPS   uint64 `json:"readIops,omitempty"`
	WriteIOPS  uint64 `json:"writeIops,omitempty"`
	ReadBytes  uint64 `json:"readBytes,omitempty"`
	WriteBytes uint64 `json:"writeBytes,omitempty"`
	BurstNanos uint64 `json:"burstNanoseconds,omitempty"`
}

var limitsHeader = stateHeader{Format: "hyper-nixos limits", Version: 1}

type limitsFile struct {
	stateHeader
	Limits []limitsRecord `json:"limits"`
}

func (c *Control) limitsPath() string { return filepath.Join(c.stateDir(), "limits.json") }

// saveLimits writes the limits that are in force. Those of volumes that are gone fall out.
func (c *Control) saveLimits() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	file := limitsFile{stateHeader: limitsHeader, Limits: []limitsRecord{}}
	for _, v := range c.engine.Volumes() {
		if l := v.Limits; !l.Unlimited() {
			file.Limits = append(file.Limits, limitsRecord{v.Name, v.UUID.String(), l.ReadIOPS, l.WriteIOPS, l.ReadBytes, l.WriteBytes, uint64(l.Burst)})
		}
	}
	return writeState(c.limitsPath(), file)
}

// restoreLimits puts the limits of limits.json in force, before any client comes.
func (c *Control) restoreLimits() error {
	file := limitsFile{}
	if err := readState(c.limitsPath(), limitsHeader, &file); err != nil {
		return err
	}
	names := make(map[string]string)
	for _, v := range c.engine.Volumes() {
		names[v.UUID.String()] = v.Name
	}
	for _, r := range file.Limits {
		name, ok := names[r.UUID]
		if !ok {
			continue // the volume was deleted since
		}
		limits := blockstore.VolumeLimits{
			ReadIOPS: r.ReadIOPS, WriteIOPS: r.WriteIOPS, ReadBytes: r.ReadBytes, WriteBytes: r.WriteBytes,
			Burst: time.Duration(min(r.BurstNanos, uint64(blockstore.MaxBurst)+1)),
		}
		if err := c.engine.SetVolumeLimits(name, limits); err != nil {
			return fmt.Errorf("%s: %w", c.limitsPath(), err)
		}
	}
	return nil
}
