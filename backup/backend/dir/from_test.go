package dir

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/backup/backend"
	"github.com/hyper-nixos/hyper-nixos/block"
)

func TestCreateFrom(t *testing.T) {
	d, err := Create(filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	data := bytes.Repeat([]byte("0123456789"), 100_000)
	for key, size := range map[string]int{"packs/aa/1": len(data), "packs/aa/2": 0, "packs/aa/3": 1} {
		from := bytes.NewReader(data)
		if err := d.CreateFrom(ctx, key, int64(size), from); err != nil || from.Len() != len(data)-size {
			t.Fatalf("%s: %v, %d B are left", key, err, from.Len())
		}
		got := make([]byte, size)
		if err := d.ReadAt(ctx, key, got, 0); err != nil || !bytes.Equal(got, data[:size]) {
			t.Errorf("%s differs, %v", key, err)
		}
	}
	if err := d.CreateFrom(ctx, "packs/aa/1", 1, strings.NewReader("x")); !errors.Is(err, block.ErrExists) {
		t.Errorf("a second object: got %v, want %v", err, block.ErrExists)
	}
	if err := d.CreateFrom(ctx, "packs/aa/4", 3, strings.NewReader("xx")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too few bytes: got %v, want %v", err, io.ErrUnexpectedEOF)
	}
	broken := errors.New("broken")
	if err := d.CreateFrom(ctx, "packs/aa/4", 3, io.MultiReader(strings.NewReader("xx"), failing{broken})); !errors.Is(err, broken) {
		t.Errorf("a reader that fails: got %v, want %v", err, broken)
	}
	if _, err := d.Stat(ctx, "packs/aa/4"); !errors.Is(err, block.ErrNotFound) {
		t.Errorf("half an object: got %v, want %v", err, block.ErrNotFound)
	}
	if left, err := os.ReadDir(filepath.Join(d.root, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("%v is left, %v", left, err)
	}
}

type failing struct{ err error }

// Read implements io.Reader.
func (f failing) Read([]byte) (int, error) { return 0, f.err }

// A list that goes on after each of its keys, or between two, has exactly those that come later.
func TestListAfter(t *testing.T) {
	d, err := Create(filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	all := []string{"config", "index/a", "index/b", "index.x/a", "packs/aa/1", "packs/aa/2", "packs/ab/1", "packs/b"} // in the order of their parts
	for _, key := range all {
		if err := d.Create(ctx, key, nil); err != nil {
			t.Fatal(err)
		}
	}
	list := func(prefix, after string) (keys []string) {
		if err := d.ListAfter(ctx, prefix, after, func(o backend.Object) error { keys = append(keys, o.Key); return nil }); err != nil {
			t.Error(err)
		}
		return keys
	}
	if got := list("", ""); !slices.Equal(got, all) {
		t.Errorf("from the beginning: %q", got)
	}
	for i, key := range all {
		if got := list("", key); !slices.Equal(got, all[i+1:]) {
			t.Errorf("after %s: %q", key, got)
		}
	}
	for after, want := range map[string][]string{"packs/aa/1x": all[5:], "packs/aa": all[4:], "packs/ab/0": all[6:], "z": nil, "a": all} {
		if got := list("", after); !slices.Equal(got, want) {
			t.Errorf("after %s: %q, want %q", after, got, want)
		}
	}
	if got := list("packs/a", "packs/aa/2"); !slices.Equal(got, all[6:7]) {
		t.Errorf("of packs/a after packs/aa/2: %q", got)
	}
}
