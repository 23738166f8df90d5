package control

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/blockstore"
)

// QuotaChange says what the quota of a volume shall become; nil leaves a part as it is, 0 takes it away.
type QuotaChange struct {
	ReferencedBytes, ReservedBytes, UniqueBytes *uint64
}

// apply returns a quota with the change made.
func (q QuotaChange) apply(to blockstore.VolumeQuota) (blockstore.VolumeQuota, error) {
	if q.ReferencedBytes != nil {
		to.ReferencedBytes = *q.ReferencedBytes
	}
	if q.ReservedBytes != nil {
		to.ReservedBytes = *q.ReservedBytes
	}
	if q.UniqueBytes != nil {
		to.UniqueBytes = *q.UniqueBytes
	}
	return to, to.Validate()
}

// SetQuota changes how much data a volume may refer to, what it alone may hold and how much room is kept for it, at once and for good.
func (c *Control) SetQuota(ctx context.Context, name string, change QuotaChange) (Volume, error) {
	return c.bound(ctx, name, change.apply)
}

// ClearQuota takes bounds and reservation of a volume away.
func (c *Control) ClearQuota(ctx context.Context, name string) (Volume, error) {
	return c.bound(ctx, name, func(blockstore.VolumeQuota) (none blockstore.VolumeQuota, _ error) { return none, nil })
}

func (c *Control) bound(ctx context.Context, name string, change func(blockstore.VolumeQuota) (blockstore.VolumeQuota, error)) (Volume, error) {
	err := c.change(ctx, "set the quota of", name, nil, func() error {
		info, err := c.visible(name)
		if err != nil {
			return err
		}
		quota, err := change(info.Quota)
		if err != nil {
			return fmt.Errorf("set the quota of volume %q: %w", name, err)
		}
		if err := c.engine.SetVolumeQuota(name, quota, false); err != nil {
			return err
		}
		if err := c.saveQuotas(); err != nil {
			return errors.Join(err, c.engine.SetVolumeQuota(name, info.Quota, true))
		}
		return nil
	})
	if err != nil {
		return Volume{}, err
	}
	return c.Volume(name)
}

// quotaRecord is the quota of one volume in quotas.json (docs/format/control.md). The volume is the one with that id, whatever it is called by now.
type quotaRecord struct {
	Volume          string `json:"volume"`
	UUID            string `json:"uuid"`
	ReferencedBytes uint64 `json:"referencedBytes,omitempty"`
	ReservedBytes   uint64 `json:"reservedBytes,omitempty"`
	UniqueBytes     uint64 `json:"uniqueBytes,omitempty"` // since version 2
}

// quotasHeader is of the oldest version that can say what the file has to: version 2 knows bounds on unique data, and is written only where there is one, so that an older program says that it is too old and not that the file is damaged.
func quotasHeader(quotas []quotaRecord) stateHeader {
	h := stateHeader{Format: "hyper-nixos quotas", Version: 1}
	if slices.ContainsFunc(quotas, func(r quotaRecord) bool { return r.UniqueBytes > 0 }) {
		h.Version = 2
	}
	return h
}

// readQuotas reads a file of either version. One that is not there has none.
func readQuotas(path string) (quotasFile, error) {
	var file quotasFile
	header := quotasHeader(nil)
	err := readState(path, header, &file)
	if errors.Is(err, block.ErrVersion) {
		header.Version = 2
		err = readState(path, header, &file)
	}
	return file, err
}

type quotasFile struct {
	stateHeader
	Quotas []quotaRecord `json:"quotas"`
}

func (c *Control) quotasPath() string { return filepath.Join(c.stateDir(), "quotas.json") }

// saveQuotas writes the quotas that are in force. Those of volumes that are gone fall out.
func (c *Control) saveQuotas() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	file := quotasFile{Quotas: []quotaRecord{}}
	for _, v := range c.engine.Volumes() {
		if q := v.Quota; !q.None() {
			file.Quotas = append(file.Quotas, quotaRecord{v.Name, v.UUID.String(), q.ReferencedBytes, q.ReservedBytes, q.UniqueBytes})
		}
	}
	file.stateHeader = quotasHeader(file.Quotas)
	return writeState(c.quotasPath(), file)
}

// restoreQuotas puts the quotas of quotas.json in force, before any client comes. A reservation that does not fit any more is kept as far as there is room.
func (c *Control) restoreQuotas() error {
	file, err := readQuotas(c.quotasPath())
	if err != nil {
		return err
	}
	names := make(map[string]string)
	for _, v := range c.engine.Volumes() {
		names[v.UUID.String()] = v.Name
	}
	for _, r := range file.Quotas {
		name, ok := names[r.UUID]
		if !ok {
			continue // the volume was deleted since
		}
		if err := c.engine.SetVolumeQuota(name, blockstore.VolumeQuota{ReferencedBytes: r.ReferencedBytes, ReservedBytes: r.ReservedBytes, UniqueBytes: r.UniqueBytes}, true); err != nil {
			return fmt.Errorf("%s: %w", c.quotasPath(), err)
		}
	}
	return nil
}
