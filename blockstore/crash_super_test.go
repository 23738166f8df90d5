package blockstore

import (
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestDeathBeforeTheSuperblock: the process dies when a checkpoint is noted in the metadata and not yet in the superblock. A life in which nothing changes, closed in order,
// leaves a superblock that says what the metadata does. Naive: the superblock is written with the next checkpoint alone, and store check takes the store for damaged.
func TestDeathBeforeTheSuperblock(t *testing.T) {
	dir, left := t.TempDir(), filepath.Join(t.TempDir(), "left")
	var armed atomic.Bool
	fs := errorfs.Wrap(vfs.Default, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && strings.Contains(op.Path, "/super.") && armed.CompareAndSwap(true, false) {
			if text, err := exec.Command("cp", "-a", dir, left).CombinedOutput(); err != nil {
				t.Errorf("copy: %v: %s", err, text)
			}
		}
		return nil
	}))
	s := openTest(t, testOptions(t, fs, dir))
	d := createTest(t, s, "a", 16<<20)
	data := guestData(rand.New(rand.NewPCG(4, 4)), 4<<20)
	for range 2 {
		writeTest(t, d, 0, data)
		settleTest(t, s)
		data[0]++
	}
	writeTest(t, d, 0, data)
	armed.Store(true)
	settleTest(t, s)
	if armed.Load() {
		t.Fatal("no superblock was written: the test does not meet what it is for")
	}
	again := openTest(t, testOptions(t, vfs.Default, left))
	want := *again.checkpoints.journaled.Load()
	if got := again.super.Checkpoints; got[1] == want.Last {
		t.Fatalf("the superblock has %v already", got)
	}
	expect(t, deviceTest(t, again, "a", ""), 0, data)
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
	checkStore(t, left)
}
