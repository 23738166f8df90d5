package segment_test

import (
	"errors"
	"math/rand/v2"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/blockstore/segment"
	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
)

// A power loss leaves of an open segment all frames that were synced, and anything of what came later. It must be sealable at the synced
// length, also when a second power loss interrupts that.
func TestResealAfterPowerLoss(t *testing.T) {
	for seed := range uint64(20) {
		fs := vfs.NewCrashableMem()
		key := tiers.SegmentKey(testMeta.ID, testMeta.Generation)
		committed, frames := writeUntilPowerLoss(t, fs, key)
		rng := rand.New(rand.NewPCG(seed, 1))
		lose := func() {
			fs = fs.CrashClone(pebblevfs.CrashCloneCfg{UnsyncedDataPercent: int(seed * 5), RNG: rng})
		}
		lose()
		reseal(t, fs, key, committed, errors.New("no power for the sync"))
		lose()
		size := reseal(t, fs, key, committed, nil)
		r, err := openDir(t, fs).Open(key)
		if err != nil {
			t.Fatal(err)
		}
		footer, err := segment.Check(r, size)
		if err != nil || footer.DirOff != committed || int(footer.Frames) != frames {
			t.Errorf("seed %d: %+v, %v; want %d frames to %d", seed, footer, err, frames, committed)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
}

func openDir(t *testing.T, fs vfs.FS) *dir.Backend {
	t.Helper()
	b, err := dir.Open(fs, "segments")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// writeUntilPowerLoss syncs some frames, and appends others that it does not sync.
func writeUntilPowerLoss(t *testing.T, fs vfs.FS, key string) (committed uint32, frames int) {
	t.Helper()
	file, err := openDir(t, fs).Create(key)
	if err != nil {
		t.Fatal(err)
	}
	w, err := segment.NewWriter(file, testMeta)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 30 {
		if _, err := w.Append(encode(t, segment.S2, chunk(i+1, textBytes(i, 20000)), chunk(i+100, randomBytes(byte(i), 5000)))); err != nil {
			t.Fatal(err)
		}
		if i == 19 {
			if err := w.Sync(); err != nil {
				t.Fatal(err)
			}
			committed, frames = w.Size(), i+1
		}
	}
	if err := errors.Join(w.Flush(), file.Close()); err != nil {
		t.Fatal(err)
	}
	return committed, frames
}

// reseal seals the segment and returns its length. With failSync the sync fails, and so must Reseal.
func reseal(t *testing.T, fs vfs.FS, key string, committed uint32, failSync error) int64 {
	t.Helper()
	u, err := openDir(t, fs).Update(key)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	size, err := u.Size()
	if err != nil {
		t.Fatal(err)
	}
	footer, err := segment.Reseal(&unreliable{u, failSync}, size, testMeta, committed, 1)
	if (err != nil) != (failSync != nil) {
		t.Fatalf("reseal: %v", err)
	}
	return int64(footer.FileSize())
}

// unreliable is a file whose sync may fail.
type unreliable struct {
	tiers.Updater
	failSync error
}

func (u *unreliable) Sync() error {
	if u.failSync != nil {
		return u.failSync
	}
	return u.Updater.Sync()
}
