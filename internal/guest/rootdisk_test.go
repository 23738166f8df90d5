package guest

import (
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// TestVariantsAreSimilarDisks builds two small siblings: each a clean file system, not equal, and mostly of the same blocks.
func TestVariantsAreSimilarDisks(t *testing.T) {
	image := testImage(t)
	kernel := &kernelBuild{dir: filepath.Dir(image.Kernel), Release: image.KernelRelease}
	blocks := make([]map[[32]byte]bool, 2)
	for variant := range blocks {
		spec, err := Spec{DiskSizeBytes: 160 << 20, Variant: variant}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		disk, err := prepareDisk(t.Context(), t.TempDir(), spec, kernel)
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckFiles(t.Context(), disk, 0); err != nil {
			t.Error(err)
		}
		blocks[variant] = blockHashes(t, disk)
	}
	shared := 0
	for hash := range blocks[0] {
		if blocks[1][hash] {
			shared++
		}
	}
	t.Logf("%d and %d different blocks of 4 KiB, %d in both", len(blocks[0]), len(blocks[1]), shared)
	if shared*10 < len(blocks[0])*8 {
		t.Errorf("only %d of %d blocks are shared", shared, len(blocks[0]))
	}
	if own := len(blocks[1]) - shared; own < 160<<20/64/4096 {
		t.Errorf("the variant has only %d blocks of its own", own)
	}
	if dataBytes := int64(len(blocks[0])) * 4096; dataBytes < 60<<20 {
		t.Errorf("only %d bytes of data", dataBytes)
	}
}

// blockHashes returns the set of the hashes of a file's 4 KiB blocks.
func blockHashes(t *testing.T, path string) map[[32]byte]bool {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	hashes := map[[32]byte]bool{}
	block := make([]byte, 4096)
	for {
		if _, err := io.ReadFull(file, block); errors.Is(err, io.EOF) {
			return hashes
		} else if err != nil {
			t.Fatal(err)
		}
		hashes[sha256.Sum256(block)] = true
	}
}

func TestSpecIsChecked(t *testing.T) {
	for name, spec := range map[string]Spec{
		"unknown kind": {Kind: "windows"},
		"tiny disk":    {DiskSizeBytes: 1 << 20},
		"odd disk":     {DiskSizeBytes: 512<<20 + 1},
	} {
		if _, err := PrepareSpec(t.Context(), t.TempDir(), spec); err == nil {
			t.Errorf("%s: was built", name)
		}
	}
}
