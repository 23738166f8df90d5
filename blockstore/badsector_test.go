package blockstore

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// Sectors that go bad in the log before they are destaged cost their own blocks only: all else goes down, the log is released, reads of these blocks are EIO before and after,
// and writing over them heals them. One bad sector used to stop destage for good, until the log was full and all volumes stood still.
func TestBadSectorsOfTheLog(t *testing.T) {
	skipEncrypted(t)
	opts := testOptions(t, vfs.Default, t.TempDir())
	opts.DestageAfter = time.Hour
	corruptions := 0
	opts.Events.Corruption = func(error) { corruptions++ }
	opts.Events.BackgroundError = nil
	s := openTest(t, opts)
	const size = 4 << 20
	d := createTest(t, s, "v", size)
	ctx := context.Background()
	rng := rand.New(rand.NewPCG(11, 12))
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	writeTest(t, d, 0, want[:size/2]) // one long record
	for _, b := range rng.Perm(size / 2 / block.Size) {
		at := size/2 + b*block.Size
		writeTest(t, d, uint64(at), want[at:at+block.Size])
	}
	bad := map[int]bool{0: true, 7: true, 8: true, 300: true, size/2/block.Size + 5: true, size/block.Size - 1: true}
	for b := range bad {
		spoilInLog(t, opts.Dir, want[b*block.Size:(b+1)*block.Size])
	}
	check := func(when string) {
		t.Helper()
		got := make([]byte, block.Size)
		for b := range size / block.Size {
			_, err := d.ReadAt(ctx, got, uint64(b)*block.Size, nil)
			switch {
			case bad[b] && !errors.Is(err, block.ErrCorrupt):
				t.Errorf("%s: block %d, which went bad: %v", when, b, err)
			case !bad[b] && (err != nil || !bytes.Equal(got, want[b*block.Size:(b+1)*block.Size])):
				t.Errorf("%s: block %d: %v, or not what was written", when, b, err)
			}
		}
	}
	check("in the log")
	settle, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	if err := s.Settle(settle, nil); err != nil {
		t.Fatalf("settle: %v", err)
	}
	if left := s.undestaged(); left != 0 {
		t.Errorf("%d B stay in the log", left)
	}
	if corruptions == 0 {
		t.Error("nobody was told")
	}
	check("destaged")
	for b := range bad {
		writeTest(t, d, uint64(b)*block.Size, want[b*block.Size:(b+1)*block.Size])
	}
	clear(bad)
	check("written anew")
	settleTest(t, s)
	check("written anew and destaged")
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// spoilInLog changes a byte of a sector with that content, wherever it lies in the log.
func spoilInLog(t *testing.T, dir string, sector []byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "log", "*.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		content, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		at := bytes.Index(content, sector)
		if at < 0 {
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte{^sector[1000]}, int64(at)+1000); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("the sector is nowhere in the log")
}
