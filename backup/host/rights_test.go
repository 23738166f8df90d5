package host

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/hyper-nixos/hyper-nixos/backup"
	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/pack"
	"github.com/hyper-nixos/hyper-nixos/backup/repository"
	"github.com/hyper-nixos/hyper-nixos/backup/seal"
	"github.com/hyper-nixos/hyper-nixos/block"
	"github.com/hyper-nixos/hyper-nixos/dedup/cdc"
)

// content is a disk in memory.
type content []byte

// Size implements backup.Source.
func (c content) Size() uint64 { return uint64(len(c)) }

// Region implements backup.Source.
func (c content) Region(_ context.Context, p []byte, off uint64) (bool, error) {
	copy(p, c[off:])
	return false, nil
}

// WriteAt implements io.WriterAt.
func (c content) WriteAt(p []byte, off int64) (int, error) { return copy(c[off:], p), nil }

func noise(seed uint64, n int) content {
	rng := rand.New(rand.NewPCG(seed, 29))
	c := make(content, n)
	for i := range c {
		c[i] = byte(rng.Uint32())
	}
	return c
}

// identity opens a key slot.
func identity(t *testing.T) *age.X25519Identity {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func openRepository(t *testing.T, b backend.Backend, id age.Identity) *repository.Repository {
	t.Helper()
	r, err := repository.Open(t.Context(), b, seal.Credentials{Identities: []age.Identity{id}})
	if err == nil {
		err = r.LoadIndex(t.Context(), nil)
	}
	if err == nil {
		_, err = r.Adopt(t.Context(), nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func run(t *testing.T, r *repository.Repository, c content) *repository.Manifest {
	t.Helper()
	m := &repository.Manifest{Source: repository.Source{Kind: "file", Name: "disk"}}
	if err := backup.Run(t.Context(), r, c, m, nil); err != nil {
		t.Fatal(err)
	}
	return m
}

// A writer that may only append makes backups, deduplicated against what others stored, a pack without a run included. Who steals its certificate and keys can neither read nor delete, nor keep owners out.
func TestAppend(t *testing.T) {
	s := newSite(t, "admin=all,web1=append,reader=read", nil)
	ctx := t.Context()
	owner, writer := identity(t), identity(t)
	slot := func(id *age.X25519Identity) func(*seal.Keys) (*seal.Slot, error) {
		return func(k *seal.Keys) (*seal.Slot, error) {
			if id == writer {
				k = k.Writer()
			}
			return k.RecipientSlot([]age.Recipient{id.Recipient()}, "")
		}
	}
	admin := s.made("admin", "vms")
	r, err := repository.Init(ctx, admin, cdc.Default(), slot(owner))
	if err == nil {
		err = r.AddSlot(ctx, slot(writer))
	}
	if err != nil {
		t.Fatal(err)
	}
	first, second := noise(1, 24<<20), noise(2, 5<<20)
	run(t, openRepository(t, admin, owner), first)
	var runs []string
	if err := admin.List(ctx, "index/", func(o backend.Object) error { runs = append(runs, o.Key); return nil }); err != nil || len(runs) != 1 {
		t.Fatalf("%q, %v", runs, err)
	}
	if err := admin.Delete(ctx, runs[0]); err != nil { // as if that writer had died before it stored one
		t.Fatal(err)
	}
	thief := s.client("web1", "vms")
	made := run(t, openRepository(t, thief, writer), append(bytes.Clone(first), second...))
	if made.NewBytes > uint64(len(second))+1<<20 {
		t.Errorf("%d new bytes: what is there was not found", made.NewBytes)
	}
	reading := openRepository(t, s.client("reader", "vms"), owner) // Adopt finds nothing to store
	m, err := reading.Manifest(ctx, made.Name)
	if err != nil {
		t.Fatal(err)
	}
	got := make(content, m.SizeBytes)
	if err := backup.Restore(ctx, reading, m, got, nil); err != nil || !bytes.Equal(got, append(bytes.Clone(first), second...)) {
		t.Errorf("what was restored differs, %v", err)
	}

	var aPack backend.Object
	if err := thief.List(ctx, "packs/", func(o backend.Object) error { aPack = o; return nil }); err != nil {
		t.Fatal(err)
	}
	list := func(b backend.Backend, prefix string) error {
		return b.List(ctx, prefix, func(backend.Object) error { return nil })
	}
	read := func(b backend.Backend, key string, off, n int64) error {
		return b.ReadAt(ctx, key, make([]byte, n), off)
	}
	manifest := "manifests/" + made.Name
	for what, err := range map[string]error{
		"reads a manifest":         read(thief, manifest, 0, 1),
		"lists manifests":          list(thief, "manifests/"),
		"lists everything":         list(thief, ""),
		"reads a frame":            read(thief, aPack.Key, pack.HeaderSize, 1000),
		"reads a header and more":  read(thief, aPack.Key, 0, pack.HeaderSize+1),
		"reads a pack":             read(thief, aPack.Key, 0, aPack.SizeBytes),
		"deletes a backup":         thief.Delete(ctx, manifest),
		"deletes a pack":           thief.Delete(ctx, aPack.Key),
		"deletes a run":            thief.Delete(ctx, runs[0]),
		"adds a key slot":          thief.Create(ctx, "keys/00", []byte("x")),
		"marks packs":              thief.Create(ctx, "marks/x", []byte("x")),
		"probes":                   thief.Create(ctx, "probes/x", nil),
		"measures":                 thief.Create(ctx, "bench/x", nil),
		"stores what nobody knows": thief.Create(ctx, "x/y", nil),
		"(a reader) stores a pack": s.client("reader", "vms").Create(ctx, "packs/aa/aa", nil),
		"(a reader) deletes":       s.client("reader", "vms").Delete(ctx, manifest),
		"(a reader) makes a place": create(ctx, s.options("reader", "new")),
	} {
		if !errors.Is(err, fs.ErrPermission) || errors.Is(err, backend.ErrUnreachable) || !strings.Contains(err.Error(), "vms") && !strings.Contains(err.Error(), "new") {
			t.Errorf("who may append %s: got %v, want %v", what, err, fs.ErrPermission)
		}
	}
	for what, err := range map[string]error{
		"the trailer of a pack":   read(thief, aPack.Key, aPack.SizeBytes-pack.TrailerSize, pack.TrailerSize),
		"the header of a pack":    read(thief, aPack.Key, 0, pack.HeaderSize),
		"the config":              read(thief, "config", 0, 10),
		"(a reader) a manifest":   read(s.client("reader", "vms"), manifest, 0, 10),
		"(a reader) a whole pack": read(s.client("reader", "vms"), aPack.Key, 0, aPack.SizeBytes),
	} {
		if err != nil {
			t.Errorf("read %s: %v", what, err)
		}
	}
	if err := thief.Create(ctx, "config", []byte("x")); !errors.Is(err, block.ErrExists) {
		t.Errorf("another config: got %v, want %v", err, block.ErrExists)
	}
	own := s.made("web1", "own") // a place that it makes itself
	if _, err := repository.Init(ctx, own, cdc.Default(), slot(owner)); err != nil {
		t.Fatal(err)
	}
	run(t, openRepository(t, own, owner), second)
}
