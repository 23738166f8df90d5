package transfer

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Two writers of one file do not mix: the second one is refused, and the first one's is whole. What a killed one has left is begun anew.
func TestNewFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path+".partial", []byte("left by one that was killed, and longer"), 0o600); err != nil {
		t.Fatal(err)
	}
	write := func(text string) func(*os.File) error {
		return func(f *os.File) error {
			_, err := f.WriteAt([]byte(text), 0)
			return err
		}
	}
	err := NewFile(path, 8, func(f *os.File) error {
		if err := NewFile(path, 8, write("second")); !errors.Is(err, block.ErrInUse) {
			t.Errorf("a second writer at the same time: %v", err)
		}
		return write("first")(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "first\x00\x00\x00" {
		t.Errorf("%q, %v", got, err)
	}
	failed := errors.New("it fails")
	if err := NewFile(path, 8, func(*os.File) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("%v, want that it failed", err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "first\x00\x00\x00" {
		t.Errorf("after one that failed: %q, %v", got, err)
	}
	if _, err := os.Stat(path + ".partial"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a part is left: %v", err)
	}
	if err := NewFile(path, 4, write("new")); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "new\x00" {
		t.Errorf("in the place of the old one: %q, %v", got, err)
	}
}
