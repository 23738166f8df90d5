package dir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/backup/backend/backendtest"
	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestDir(t *testing.T) {
	root := t.TempDir()
	backendtest.Run(t, func(t *testing.T) backend.Backend {
		d, err := Open(root)
		if err != nil {
			t.Fatal(err)
		}
		return d
	})
}

func TestCreate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "new", "repository")
	d, err := Create(root)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Create(context.Background(), "config", []byte("x")); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]os.FileMode{root: 0o700, filepath.Join(root, "config"): 0o600} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v, error %v", path, info.Mode(), want, err)
		}
	}
	if _, err := Create(root); !errors.Is(err, block.ErrExists) {
		t.Errorf("a directory with something in it: got %v, want %v", err, block.ErrExists)
	}
	if _, err := Open(filepath.Join(root, "none")); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("no directory: got %v, want %v", err, block.ErrNotFound)
	}
	if _, err := Open(filepath.Join(root, "config")); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("a file: got %v, want %v", err, block.ErrInvalid)
	}
}

// What a crash left of an object goes when it is old, and is never listed.
func TestAbandonedFiles(t *testing.T) {
	d, err := Create(filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Create(context.Background(), "index/a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	young, old := filepath.Join(d.root, "tmp", "object-young"), filepath.Join(d.root, "tmp", "object-old")
	for _, path := range []string{young, old} {
		if err := os.WriteFile(path, []byte("part"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(old, time.Time{}, time.Now().Add(-2*abandoned)); err != nil {
		t.Fatal(err)
	}
	if d, err = Open(d.root); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an old part is still there: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("a young part may belong to a writer: %v", err)
	}
	err = d.List(context.Background(), "", func(o backend.Object) error {
		if o.Key != "index/a" {
			t.Errorf("%s is listed", o.Key)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
