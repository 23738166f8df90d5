package repository

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Origin says which backup, of which repository, a backup is a copy of. A writer could claim anything, so it counts only with the proof of an owner. The names of its fields are part
// of the repository format.
type Origin struct {
	Repository string `json:"repository"` // id
	Backup     string `json:"backup"`     // name
	Root       []byte `json:"root"`       // SHA-256 of the ids of the root there, one after the other
	Proof      []byte `json:"proof"`      // seal.Keys.Vouch of all this and of what the copy has
}

// Identity tells backups apart whichever repository has them: a copy has that of its origin.
type Identity struct {
	repository, backup string
	root               [sha256.Size]byte
}

// Identity returns what a backup of this repository is, or is a copy of. It needs an owner's keys.
func (r *Repository) Identity(m *Manifest) Identity {
	if r.genuine(m) {
		return Identity{m.Origin.Repository, m.Origin.Backup, [sha256.Size]byte(m.Origin.Root)}
	}
	return Identity{r.ID(), m.Name, rootSum(m.Root)}
}

// Backup returns the name of the backup in a repository that this is, or is a copy of; false if that is another repository's.
func (i Identity) Backup(repository string) (name string, ok bool) {
	return i.backup, i.repository == repository
}

// SetOrigin makes a manifest, that is complete but for its name, one of a copy in this repository. It needs an owner's keys.
func (r *Repository) SetOrigin(m *Manifest, id Identity) (err error) {
	m.Origin = &Origin{Repository: id.repository, Backup: id.backup, Root: id.root[:]}
	m.Origin.Proof, err = r.vouch(m)
	return err
}

// genuine reports whether an owner has said that a backup is a copy of its origin.
func (r *Repository) genuine(m *Manifest) bool {
	if m.Origin == nil || len(m.Origin.Root) != sha256.Size {
		return false
	}
	proof, err := r.vouch(m)
	return err == nil && hmac.Equal(proof, m.Origin.Proof)
}

func (r *Repository) vouch(m *Manifest) ([]byte, error) {
	o := m.Origin
	root := rootSum(m.Root)
	var parts [][]byte
	for _, part := range [][]byte{[]byte(o.Repository), []byte(o.Backup), o.Root, root[:]} {
		parts = append(parts, binary.LittleEndian.AppendUint64(nil, uint64(len(part))), part)
	}
	return r.keys.Vouch(seal.PurposeOrigin, append(parts, binary.LittleEndian.AppendUint64(nil, m.SizeBytes))...)
}

func rootSum(root Hashes) (sum [sha256.Size]byte) {
	h := sha256.New()
	for i := range root {
		h.Write(root[i][:])
	}
	h.Sum(sum[:0])
	return sum
}

// validate bounds what an origin says.
func (o *Origin) validate() error {
	if len(o.Repository) > maxName || len(o.Backup) > maxName || len(o.Root) != sha256.Size || len(o.Proof) != sha256.Size {
		return fmt.Errorf("manifest with an origin that is none: %w", block.ErrInvalid)
	}
	return nil
}
