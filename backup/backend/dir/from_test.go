package dir

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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
		if err := d.CreateFrom(ctx, key, int64(size), "", from); err != nil || from.Len() != len(data)-size {
			t.Fatalf("%s: %v, %d B are left", key, err, from.Len())
		}
		got := make([]byte, size)
		if err := d.ReadAt(ctx, key, got, 0); err != nil || !bytes.Equal(got, data[:size]) {
			t.Errorf("%s differs, %v", key, err)
		}
	}
	if err := d.CreateFrom(ctx, "packs/aa/1", 1, "", strings.NewReader("x")); !errors.Is(err, block.ErrExists) {
		t.Errorf("a second object: got %v, want %v", err, block.ErrExists)
	}
	if err := d.CreateFrom(ctx, "packs/aa/4", 3, "", strings.NewReader("xx")); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("too few bytes: got %v, want %v", err, io.ErrUnexpectedEOF)
	}
	broken := errors.New("broken")
	if err := d.CreateFrom(ctx, "packs/aa/4", 3, "", io.MultiReader(strings.NewReader("xx"), failing{broken})); !errors.Is(err, broken) {
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
	for _, c := range []struct {
		prefix, after string
		want          []string
	}{
		{"packs/a", "packs/aa/2", all[6:7]},
		{"packs/aa/", "packs/aa/1", all[5:6]},
		{"packs/aa/", "packs/ab", nil},
		{"packs/aa/", "packs/aa", all[4:6]},
		{"packs/aa/", "index/z", all[4:6]},
		{"packs/aa/", "config", all[4:6]},
		{"config/", "", nil},
		{"none/", "", nil},
		{"index", "index/b", all[3:4]},
	} {
		if got := list(c.prefix, c.after); !slices.Equal(got, c.want) {
			t.Errorf("of %s after %s: %q, want %q", c.prefix, c.after, got, c.want)
		}
	}
}

// A folder with many more objects than are in memory at once is listed in order, each once.
func TestListOfAFullFolder(t *testing.T) {
	d, err := Create(filepath.Join(t.TempDir(), "r"))
	if err != nil {
		t.Fatal(err)
	}
	const objects = 6*batch + 5
	if err := os.Mkdir(filepath.Join(d.root, "index"), 0o700); err != nil {
		t.Fatal(err)
	}
	for n := range objects {
		if err := os.WriteFile(filepath.Join(d.root, "index", fmt.Sprintf("%08x", uint32(n)*2654435761)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	last, count := "", 0
	err = d.List(context.Background(), "index/", func(o backend.Object) error {
		if o.Key <= last {
			t.Errorf("%s after %s", o.Key, last)
		}
		last, count = o.Key, count+1
		return nil
	})
	if err != nil || count != objects {
		t.Errorf("%d of %d objects are listed, %v", count, objects, err)
	}
}
