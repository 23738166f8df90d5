package repository

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/zeebo/blake3"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// These names are part of the repository format and should not be changed.
const (
	configKey      = "config"
	slotPrefix     = "keys/"
	packPrefix     = "packs/"
	indexPrefix    = "index/"
	manifestPrefix = "manifests/"
	markPrefix     = "marks/"
	probePrefix    = "probes/"

	formatName    = "hyper-nixos repository"
	formatVersion = 1
	maxConfig     = 64 << 10
)

// Config is the object that says what a repository is. It is plain text, and nothing in it is secret.
type Config struct {
	Format   string     `json:"format"`
	Version  int        `json:"version"`
	Incompat []string   `json:"incompat,omitempty"` // features that a reader must know
	ID       string     `json:"id"`
	Created  time.Time  `json:"created"`
	Cut      cdc.Params `json:"cut"`
}

// Slices is the feature of repositories whose pages may have slices of chunks.
const Slices = "slices"

// features are those that this program knows. A new repository has them all.
var features = []string{Slices}

// Has reports whether a repository has a feature.
func (c Config) Has(feature string) bool { return slices.Contains(c.Incompat, feature) }

// Repository is an open repository.
type Repository struct {
	backend backend.Backend
	keys    *seal.Keys
	config  Config
	index   *Index
}

// Init makes a repository in an empty place and returns it open, with an owner's keys. slot seals the keys for whoever will open it.
func Init(ctx context.Context, b backend.Backend, cut cdc.Params, slot func(*seal.Keys) (*seal.Slot, error)) (*Repository, error) {
	if err := cut.Validate(); err != nil {
		return nil, err
	}
	if _, err := b.Stat(ctx, configKey); err == nil {
		return nil, fmt.Errorf("a repository in %s: %w", b.Location(), block.ErrExists)
	} else if !errors.Is(err, block.ErrNotFound) {
		return nil, err
	}
	var id block.UUID
	rand.Read(id[:])
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	keys, err := seal.NewKeys(id, dedup.DomainKey{})
	if err != nil {
		return nil, err
	}
	r := &Repository{backend: b, keys: keys, config: Config{Format: formatName, Version: formatVersion, Incompat: features, ID: id.String(), Created: time.Now().UTC(), Cut: cut}, index: newIndex()}
	if err := r.AddSlot(ctx, slot); err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(&r.config, "", "  ")
	if err != nil {
		return nil, err
	}
	if err := b.Create(ctx, configKey, text); err != nil { // the last one: without it there is no repository
		return nil, err
	}
	return r, nil
}

// AddSlot stores one more key slot. It returns what slot returns.
func (r *Repository) AddSlot(ctx context.Context, slot func(*seal.Keys) (*seal.Slot, error)) error {
	s, err := slot(r.keys)
	if err != nil {
		return err
	}
	text, err := s.Encode()
	if err != nil {
		return err
	}
	return r.backend.Create(ctx, slotPrefix+nameOf(text)[:32], text)
}

// Open opens a repository. Its keys come from the first slot that what the user has opens; seal.ErrWrongKey if there is none. The index is not read yet.
func Open(ctx context.Context, b backend.Backend, c seal.Credentials) (*Repository, error) {
	r := &Repository{backend: b, index: newIndex()}
	id, err := r.readConfig(ctx)
	if err != nil {
		return nil, err
	}
	slots, err := ListSlots(ctx, b)
	if err != nil {
		return nil, err
	}
	err = fmt.Errorf("no key slot in %s: %w", b.Location(), block.ErrNotFound)
	for i := range slots {
		var k *seal.Keys
		if k, err = slots[i].Open(c, id); err != nil {
			if errors.Is(err, seal.ErrWrongKey) {
				continue
			}
			err = fmt.Errorf("key slot %s: %w", slots[i].Name, err)
			continue
		}
		if r.keys == nil || k.CanRead() {
			r.keys = k
		}
		if k.CanRead() {
			break
		}
	}
	if r.keys == nil {
		return nil, err
	}
	return r, nil
}

func (r *Repository) readConfig(ctx context.Context) (id block.UUID, err error) {
	text, err := r.read(ctx, configKey, maxConfig)
	if err != nil {
		if errors.Is(err, block.ErrNotFound) {
			err = fmt.Errorf("no repository in %s: %w", r.backend.Location(), block.ErrNotFound)
		}
		return id, err
	}
	corrupt := func(want, got string) error {
		return &block.CorruptError{Source: "config of the repository in " + r.backend.Location(), Want: want, Got: got}
	}
	if err := json.Unmarshal(text, &r.config); err != nil {
		return id, corrupt("JSON", err.Error())
	}
	c := &r.config
	if c.Format != formatName || c.Version < 1 {
		return id, corrupt(formatName, fmt.Sprintf("%q", c.Format))
	}
	unknown := slices.DeleteFunc(slices.Clone(c.Incompat), func(f string) bool { return slices.Contains(features, f) })
	if c.Version > formatVersion || len(unknown) > 0 {
		return id, fmt.Errorf("repository in %s of version %d with features %q, which this program does not know; use a newer one: %w", r.backend.Location(), c.Version, unknown, block.ErrVersion)
	}
	if err := c.Cut.Validate(); err != nil {
		return id, fmt.Errorf("config of the repository in %s: %w", r.backend.Location(), err)
	}
	raw, err := hex.DecodeString(string(bytes.ReplaceAll([]byte(c.ID), []byte("-"), nil)))
	if err != nil || len(raw) != len(id) {
		return id, corrupt("an id", c.ID)
	}
	return block.UUID(raw), nil
}

// NamedSlot is a key slot and the name of its object.
type NamedSlot struct {
	Name string
	*seal.Slot
}

// maxSlots bounds what is tried.
const maxSlots = 64

// ListSlots returns the key slots of a repository, the 64 oldest by the place's time: who can store there could store any number of others, which nobody may be able to delete. One that cannot be read is left out, as another may do; if
// none can, that is the error. It needs no key.
func ListSlots(ctx context.Context, b backend.Backend) (slots []NamedSlot, err error) {
	var oldest []backend.Object
	keep := func() {
		slices.SortFunc(oldest, func(a, b backend.Object) int {
			return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.Key, b.Key))
		})
		oldest = oldest[:min(len(oldest), maxSlots)]
	}
	err = b.List(ctx, slotPrefix, func(o backend.Object) error {
		if oldest = append(oldest, o); len(oldest) >= 4*maxSlots {
			keep()
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	keep()
	var bad error
	for _, o := range oldest {
		text, err := read(ctx, b, o.Key, seal.MaxSlot)
		if err == nil {
			var s *seal.Slot
			if s, err = seal.DecodeSlot(text); err == nil {
				slots = append(slots, NamedSlot{o.Key[len(slotPrefix):], s})
				continue
			}
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		bad = fmt.Errorf("%s: %w", o.Key, err)
	}
	if len(slots) == 0 {
		return nil, bad
	}
	return slots, nil
}

func (r *Repository) read(ctx context.Context, key string, max int64) ([]byte, error) {
	return read(ctx, r.backend, key, max)
}

// read returns a whole object of at most max bytes.
func read(ctx context.Context, from backend.Backend, key string, max int64) ([]byte, error) {
	o, err := from.Stat(ctx, key)
	if err != nil {
		return nil, err
	}
	if o.SizeBytes < 0 || o.SizeBytes > max {
		return nil, &block.CorruptError{Source: "object " + key, Want: fmt.Sprintf("at most %d B", max), Got: fmt.Sprint(o.SizeBytes)}
	}
	b := make([]byte, o.SizeBytes)
	return b, from.ReadAt(ctx, key, b, 0)
}

// nameOf is the name of an object with those bytes.
func nameOf(b []byte) string {
	sum := blake3.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// ID returns what the repository is called in its own objects.
func (r *Repository) ID() string { return r.config.ID }

// Config returns what the repository says of itself.
func (r *Repository) Config() Config { return r.config }

// Keys returns the keys that it was opened with.
func (r *Repository) Keys() *seal.Keys { return r.keys }

// Location says where it is.
func (r *Repository) Location() string { return r.backend.Location() }

// Quota returns how much the place keeps, and may; nothing where the place bounds nothing.
func (r *Repository) Quota(ctx context.Context) (backend.Quota, error) {
	if q, ok := r.backend.(backend.Quoter); ok {
		return q.Quota(ctx)
	}
	return backend.Quota{}, nil
}

// Close closes the backend.
func (r *Repository) Close() error { return r.backend.Close() }
