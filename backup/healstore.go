package backup

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/repository"
)

// ChunkPlace is where the bytes of a lost chunk of a store lay: in a volume, or in a snapshot of it.
type ChunkPlace struct {
	Volume string
	UUID   string    // of the volume, "" if it is not known
	Time   time.Time // of the snapshot; zero: the volume as it is
	Offset uint64    // bytes
}

// maxVersions bounds the backups of a volume that are read for one place of a lost chunk, and maxOthers those of other volumes.
const (
	maxVersions = 64
	maxOthers   = 8
)

// ChunkVersions reads what backups have at the places of lost chunks of a store. Whether that is what the store has lost, only the store can say. It belongs to one goroutine.
type ChunkVersions struct {
	all     []*repository.Manifest
	devices map[*repository.Manifest]*Device
	open    func(*repository.Manifest) (*Device, error)
	Warn    func(what string, err error) // told what cannot be read; may be nil
}

// versionsCache is the memory for frames of one backup, bytes, and versionsOpen how many are open at once.
const (
	versionsCache = 16 << 20
	versionsOpen  = 8
)

// NewChunkVersions takes the backups of volumes, by their manifests. The index of the repository must be loaded, and the keys be an owner's. Close ends it.
func NewChunkVersions(r *repository.Repository, all []*repository.Manifest) *ChunkVersions {
	v := &ChunkVersions{devices: make(map[*repository.Manifest]*Device), open: func(m *repository.Manifest) (*Device, error) { return NewDevice(r, m, versionsCache) }}
	for _, m := range all {
		if m.Source.Kind == "volume" {
			v.all = append(v.all, m)
		}
	}
	return v
}

// Close lets go of the backups.
func (v *ChunkVersions) Close() error {
	for m, d := range v.devices {
		delete(v.devices, m)
		if err := d.Close(); err != nil {
			return err
		}
	}
	return nil
}

// Each calls try with what backups of the volume have at a place, length bytes each and never the same twice in a row, those first that are nearest in time, until it reports that this is it. The bytes are valid until it returns.
func (v *ChunkVersions) Each(ctx context.Context, p ChunkPlace, length uint32, try func(raw []byte) (done bool, err error)) error {
	buffer, last := make([]byte, length), []byte(nil)
	for _, m := range v.of(p) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if p.Offset > m.SizeBytes || uint64(length) > m.SizeBytes-p.Offset {
			continue
		}
		d, err := v.device(m)
		if err == nil {
			err = d.ReadOnce(ctx, buffer, p.Offset)
		}
		if err != nil {
			if !isDamage(ctx, err) {
				return fmt.Errorf("backup %s: %w", m.Name, err)
			}
			if v.Warn != nil {
				v.Warn("backup "+m.Name, err)
			}
			continue
		}
		if last != nil && slices.Equal(last, buffer) {
			continue
		}
		last = append(last[:0], buffer...)
		if done, err := try(last); done || err != nil {
			return err
		}
	}
	return nil
}

// of returns the backups of a volume, those of the nearest time first, and then some of others: the volume may be a clone of one of these, or have had its name.
func (v *ChunkVersions) of(p ChunkPlace) []*repository.Manifest {
	at := p.Time
	if at.IsZero() {
		at = time.Now()
	}
	var own, others []*repository.Manifest
	for _, m := range v.all {
		if m.Source.Name == p.Volume || p.UUID != "" && m.Frozen != nil && m.Frozen.Volume == p.UUID {
			own = append(own, m)
		} else {
			others = append(others, m)
		}
	}
	for _, some := range [][]*repository.Manifest{own, others} {
		slices.SortStableFunc(some, func(a, b *repository.Manifest) int {
			return int(min(1, max(-1, a.Time.Sub(at).Abs()-b.Time.Sub(at).Abs())))
		})
	}
	return append(own[:min(len(own), maxVersions)], others[:min(len(others), maxOthers)]...)
}

func (v *ChunkVersions) device(m *repository.Manifest) (*Device, error) {
	if d := v.devices[m]; d != nil {
		return d, nil
	}
	if len(v.devices) >= versionsOpen {
		if err := v.Close(); err != nil {
			return nil, err
		}
	}
	d, err := v.open(m)
	if err == nil {
		v.devices[m] = d
	}
	return d, err
}
