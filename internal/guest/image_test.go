package guest

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestBuildFolderIsAllOrNothing interrupts a build in both ways: by an error, and by a death that leaves its folder.
func TestBuildFolderIsAllOrNothing(t *testing.T) {
	parent := t.TempDir()
	half := errors.New("half way")
	write := func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644) }
	_, err := buildFolder(parent, "x", func(dir string) error { return errors.Join(write(dir), half) })
	if !errors.Is(err, half) {
		t.Errorf("got %v", err)
	}
	if err := os.Mkdir(filepath.Join(parent, buildingPrefix+"dead"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := removeUnfinished(parent); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(parent); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	dir, err := buildFolder(parent, "x", write)
	if err != nil || readFile(t, filepath.Join(dir, "file")) != "x" {
		t.Errorf("build: %v", err)
	}
	if _, err := buildFolder(parent, "x", func(string) error { return half }); err != nil {
		t.Errorf("a finished build was made again: %v", err)
	}
}

// TestCacheKeyCoversWhatDecides wants another key for another spec, and the same for the same.
func TestCacheKeyCoversWhatDecides(t *testing.T) {
	if cacheKey("a", Spec{Variant: 1}) == cacheKey("a", Spec{Variant: 2}) {
		t.Error("variants share a key")
	}
	if first, again := cacheKey("a", Spec{}), cacheKey("a", Spec{}); first != again {
		t.Error("the key is not stable")
	}
}
