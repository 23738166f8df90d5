package repository

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/backup/access"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
)

// Manifest is one backup: what of, from when, and the root of its content. Its object is the last that a backup stores. The names of its fields are part of the repository
// format.
type Manifest struct {
	Name        string    `json:"-"` // of its object, without the prefix
	Version     int       `json:"version"`
	Time        time.Time `json:"time"` // that the content is of
	Source      Source    `json:"source"`
	Tags        []string  `json:"tags,omitempty"`
	Consistency string    `json:"consistency"` // how the content came to rest: "offline" nobody wrote, "loose" each file as it was when it was read, "frozen" the guest's agent held its file systems, "crash" as after a power loss
	SizeBytes   uint64    `json:"sizeBytes"`
	NonZero     uint64    `json:"nonZeroBytes"`
	NewBytes    uint64    `json:"newBytes"`    // of chunks that were not there before
	StoredBytes uint64    `json:"storedBytes"` // that this backup added
	Root        Hashes    `json:"root"`        // the directories of the content's pages; zeroes: all zero
	Origin      *Origin   `json:"origin,omitempty"`
	Frozen      *Frozen   `json:"frozen,omitempty"`    // the state of a volume that it is of
	Parent      string    `json:"parent,omitempty"`    // the backup from which unchanged content was taken over; for people: this one needs it no more
	ReadBytes   uint64    `json:"readBytes,omitempty"` // of the content that were read of the source, of a backup with a parent

	LockedUntil      time.Time `json:"lockedUntil,omitzero"`      // the place lets nobody delete the backup, nor what it needs, before that; in whole seconds
	PacksLockedUntil time.Time `json:"packsLockedUntil,omitzero"` // the first lock of what it needs ends then; not of a writer's backup
	LockProof        []byte    `json:"lockProof,omitempty"`       // seal.Keys.Vouch of that and of the content; Writer.Commit makes it
}

// Hashes are ids, in JSON one after the other in base64.
type Hashes []block.Hash

// MarshalJSON implements json.Marshaler.
func (h Hashes) MarshalJSON() ([]byte, error) {
	b := make([]byte, 0, len(block.Hash{})*len(h))
	for i := range h {
		b = append(b, h[i][:]...)
	}
	return json.Marshal(b)
}

// UnmarshalJSON implements json.Unmarshaler.
func (h *Hashes) UnmarshalJSON(text []byte) error {
	var b []byte
	if err := json.Unmarshal(text, &b); err != nil {
		return err
	}
	const size = len(block.Hash{})
	if len(b)%size != 0 {
		return fmt.Errorf("ids of %d B: %w", len(b), block.ErrCorrupt)
	}
	*h = make(Hashes, len(b)/size)
	for i := range *h {
		(*h)[i] = block.Hash(b[size*i : size*i+size])
	}
	return nil
}

// Source says what a backup is of.
type Source struct {
	Kind string `json:"kind"` // "file", "volume", "files", an archive (package files), or "machine" (package machine)
	Name string `json:"name"` // of the volume, the path of the file, or what the files were called
	Host string `json:"host,omitempty"`
}

// These constants are part of the repository format and should not be changed.
const (
	manifestHeader  = 64
	manifestVersion = 1
	maxManifest     = 8 << 20
	maxName         = 1024
	maxTags         = 64
)

var manifestMagic = [8]byte{'H', 'V', 'M', 'A', 'N', 'I', '1', 0}

// validate bounds what a manifest says.
func (m *Manifest) validate() error {
	bad := func(what string) error { return fmt.Errorf("manifest with %s: %w", what, block.ErrInvalid) }
	switch {
	case m.Source.Name == "" || len(m.Source.Name) > maxName || len(m.Source.Host) > maxName:
		return bad("a source that has no name, or a long one")
	case len(m.Parent) > maxName:
		return bad("a parent with a long name")
	case len(m.Tags) > maxTags || slices.ContainsFunc(m.Tags, func(tag string) bool { return tag == "" || len(tag) > maxName }):
		return bad("more than 64 tags, or a long or empty one")
	case m.Time.IsZero():
		return bad("no time")
	case !m.PacksLockedUntil.IsZero() && len(m.LockProof) != sha256.Size:
		return bad("locks that nobody vouches for")
	}
	if m.Frozen != nil {
		if err := m.Frozen.validate(); err != nil {
			return err
		}
	}
	if m.Origin != nil {
		return m.Origin.validate()
	}
	return nil
}

// commit stores a manifest and gives it its name. Everything that it refers to must be durable: the backup exists when this returns.
func (r *Repository) commit(ctx context.Context, m *Manifest) error {
	if err := errors.Join(r.vouchFrozen(m), r.vouchLock(m)); err != nil {
		return err
	}
	return r.store(ctx, m)
}

// store stores a manifest as it is.
func (r *Repository) store(ctx context.Context, m *Manifest) error {
	m.Version = manifestVersion
	if err := m.validate(); err != nil {
		return err
	}
	plain, err := json.Marshal(m)
	if err != nil {
		return err
	}
	session, err := r.keys.NewSession()
	if err != nil {
		return err
	}
	salt := seal.NewSalt()
	b := make([]byte, manifestHeader, manifestHeader+len(session.Wrapped)+len(plain)+seal.Overhead)
	copy(b, manifestMagic[:])
	binary.LittleEndian.PutUint16(b[8:], manifestVersion)
	binary.LittleEndian.PutUint16(b[10:], uint16(len(session.Wrapped)))
	copy(b[12:28], r.keys.Repository[:])
	copy(b[28:60], salt[:])
	b = append(b, session.Wrapped...)
	binary.LittleEndian.PutUint32(b[60:], manifestSum(b))
	b = session.Secret.Box(seal.PurposeManifest, salt, r.keys.Repository).Seal(b, plain, 0)
	if len(b) > maxManifest {
		return fmt.Errorf("manifest of %d B, at most %d B: %w", len(b), maxManifest, block.ErrInvalid)
	}
	m.Name = FormatTime(m.Time) + "-" + nameOf(b)[:8]
	return r.backend.Create(ctx, manifestPrefix+m.Name, b)
}

func manifestSum(b []byte) uint32 {
	return crc32.Update(crc32.Checksum(b[:60], castagnoli), castagnoli, b[manifestHeader:])
}

// Manifest reads a manifest by its name. It needs an owner's keys.
func (r *Repository) Manifest(ctx context.Context, name string) (*Manifest, error) {
	b, err := r.read(ctx, manifestPrefix+name, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := r.decodeManifest(b)
	if err != nil {
		err = fmt.Errorf("manifest %s: %w", name, err)
		if errors.Is(err, block.ErrCorrupt) && r.asNamed(name, b) {
			err = fmt.Errorf("%w: %w", ErrNeverBackup, err)
		}
		return nil, err
	}
	m.Name = name
	return m, nil
}

// ErrNeverBackup means that a manifest cannot be read, and could not when it was stored: it has the bytes that it was named by. So nothing that anybody could ever restore needs what is in the repository for it.
var ErrNeverBackup = errors.New("it was stored like this, and was never a backup of this repository")

// asNamed reports whether an object is a manifest of this version and repository, by its header, and has the bytes that it was named by.
func (r *Repository) asNamed(name string, b []byte) bool {
	sum := blake3.Sum256(b)
	return access.Manifest{Key: manifestPrefix + name, Head: b[:min(len(b), access.ManifestHead)], Sum: sum[:]}.Check(r.keys.Repository) == nil
}

func (r *Repository) decodeManifest(b []byte) (*Manifest, error) {
	corrupt := func(at int, want, got string) error {
		return &block.CorruptError{Source: "manifest", Offset: int64(at), Want: want, Got: got}
	}
	if len(b) < manifestHeader || [8]byte(b[:8]) != manifestMagic {
		return nil, corrupt(0, "the magic of a manifest", "other bytes")
	}
	if v := binary.LittleEndian.Uint16(b[8:]); v != manifestVersion {
		return nil, fmt.Errorf("version %d: %w", v, block.ErrVersion)
	}
	end := manifestHeader + int(binary.LittleEndian.Uint16(b[10:]))
	if end > len(b) || end-manifestHeader > seal.MaxWrapped {
		return nil, corrupt(10, "the length of a wrapped key", fmt.Sprint(end-manifestHeader))
	}
	if sum := manifestSum(b[:end]); sum != binary.LittleEndian.Uint32(b[60:]) {
		return nil, corrupt(60, "the sum of the header", fmt.Sprintf("%08x", sum))
	}
	if repository := block.UUID(b[12:28]); repository != r.keys.Repository {
		return nil, corrupt(12, "repository "+r.keys.Repository.String(), repository.String())
	}
	secret, err := r.keys.OpenSession(b[manifestHeader:end])
	if err != nil {
		return nil, err
	}
	plain, err := secret.Box(seal.PurposeManifest, seal.Salt(b[28:60]), r.keys.Repository).Open(nil, b[end:], 0)
	if err != nil {
		return nil, err
	}
	m := new(Manifest)
	d := json.NewDecoder(bytes.NewReader(plain))
	if err := d.Decode(m); err != nil {
		return nil, corrupt(end, "JSON", err.Error())
	}
	if m.Version != manifestVersion {
		return nil, fmt.Errorf("content of version %d: %w", m.Version, block.ErrVersion)
	}
	return m, m.validate()
}

// Manifests returns all backups, the oldest first. One that cannot be read is told to bad, which may be nil: then it is the error.
func (r *Repository) Manifests(ctx context.Context, bad func(name string, err error)) (all []*Manifest, err error) {
	err = r.backend.List(ctx, manifestPrefix, func(o backend.Object) error {
		name := strings.TrimPrefix(o.Key, manifestPrefix)
		m, err := r.Manifest(ctx, name)
		switch {
		case err == nil:
			all = append(all, m)
		case errors.Is(err, block.ErrNotFound): // forgotten meanwhile
		case errors.Is(err, seal.ErrReadKey), bad == nil, ctx.Err() != nil:
			return err
		default:
			bad(name, err)
		}
		return nil
	})
	slices.SortFunc(all, func(a, b *Manifest) int {
		if c := a.Time.Compare(b.Time); c != 0 {
			return c
		}
		return strings.Compare(a.Name, b.Name)
	})
	// A listing that names one twice must not count as two backups, one to keep and one to forget.
	return slices.CompactFunc(all, func(a, b *Manifest) bool { return a.Name == b.Name }), err
}

// Forget removes a backup: its manifest only. What nothing refers to any more is for a prune.
func (r *Repository) Forget(ctx context.Context, name string) error {
	return r.backend.Delete(ctx, manifestPrefix+name)
}
