package repository

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Frozen says which state of which volume a backup is of, so that a later one can begin from it. A writer could claim anything, so it counts only with the proof of an owner. The names of
// its fields are part of the repository format.
type Frozen struct {
	Volume   string `json:"volume"`   // UUID of the volume
	Sequence uint64 `json:"sequence"` // of its snapshot, in the order of all changes of its store
	Proof    []byte `json:"proof"`    // seal.Keys.Vouch of both and of the content; Writer.Commit makes it
}

// timeFormat is how the name of a backup begins, which a name of its snapshot may end with.
const timeFormat = "20060102t150405z"

// FormatTime returns a time as names of backups have it: in UTC, to the second.
func FormatTime(t time.Time) string { return t.UTC().Format(timeFormat) }

// FindFrozen returns the backup, named by a time of FormatTime, of one state of a volume, or block.ErrNotFound if there is none that an owner vouches for. One that cannot be read is none. It needs an owner's keys.
func (r *Repository) FindFrozen(ctx context.Context, named, volume string, sequence uint64) (found *Manifest, err error) {
	if _, err := time.Parse(timeFormat, named); err != nil {
		return nil, fmt.Errorf("time %q of a backup: %w", named, block.ErrInvalid)
	}
	err = r.backend.List(ctx, manifestPrefix+named+"-", func(o backend.Object) error {
		m, err := r.Manifest(ctx, strings.TrimPrefix(o.Key, manifestPrefix))
		switch {
		case errors.Is(err, seal.ErrReadKey), ctx.Err() != nil:
			return err
		case err == nil && m.Frozen != nil && m.Frozen.Volume == volume && m.Frozen.Sequence == sequence && r.vouchedFrozen(m):
			found = m
		}
		return nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("backup of %s of volume %s: %w", named, volume, block.ErrNotFound)
	}
	return found, err
}

// vouchFrozen adds the proof, or takes away what a writer without an owner's keys cannot prove.
func (r *Repository) vouchFrozen(m *Manifest) (err error) {
	if m.Frozen == nil {
		return nil
	}
	frozen := *m.Frozen
	if frozen.Proof, err = r.frozenProof(m); errors.Is(err, seal.ErrReadKey) {
		m.Frozen = nil
		return nil
	}
	m.Frozen = &frozen
	return err
}

func (r *Repository) vouchedFrozen(m *Manifest) bool {
	proof, err := r.frozenProof(m)
	return err == nil && hmac.Equal(proof, m.Frozen.Proof)
}

func (r *Repository) frozenProof(m *Manifest) ([]byte, error) {
	root := rootSum(m.Root)
	le := binary.LittleEndian
	volume := []byte(m.Frozen.Volume)
	return r.keys.Vouch(seal.PurposeFrozen, le.AppendUint64(nil, uint64(len(volume))), volume, root[:], le.AppendUint64(nil, m.Frozen.Sequence), le.AppendUint64(nil, m.SizeBytes))
}

// validate bounds what it says.
func (f *Frozen) validate() error {
	if f.Volume == "" || len(f.Volume) > maxName || len(f.Proof) != sha256.Size {
		return fmt.Errorf("manifest with a state of a volume that is none: %w", block.ErrInvalid)
	}
	return nil
}
