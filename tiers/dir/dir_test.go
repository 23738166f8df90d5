package dir_test

import (
	"os"
	"path/filepath"
	"testing"

	pebblevfs "github.com/cockroachdb/pebble/v2/vfs"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
	"github.com/hyper-nixos/hyper-nixos/tiers"
	"github.com/hyper-nixos/hyper-nixos/tiers/dir"
	"github.com/hyper-nixos/hyper-nixos/tiers/tierstest"
)

func open(t *testing.T, fs vfs.FS, root string) *dir.Backend {
	t.Helper()
	b, err := dir.Open(fs, root)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOnDisk(t *testing.T) {
	tierstest.Suite{New: func(t *testing.T) tiers.Backend {
		return open(t, vfs.Default, filepath.Join(t.TempDir(), "segments"))
	}}.Run(t)
}

func TestInMemory(t *testing.T) {
	systems := map[tiers.Backend]*vfs.MemFS{}
	tierstest.Suite{
		New: func(t *testing.T) tiers.Backend {
			fs := vfs.NewCrashableMem()
			b := open(t, fs, "segments")
			systems[b] = fs
			return b
		},
		Crash: func(t *testing.T, b tiers.Backend) tiers.Backend {
			return open(t, systems[b].CrashClone(pebblevfs.CrashCloneCfg{}), "segments")
		},
	}.Run(t)
}

func TestCapacityOfTheFileSystem(t *testing.T) {
	c, err := open(t, vfs.Default, filepath.Join(t.TempDir(), "segments")).Capacity()
	if err != nil || c.TotalBytes < 1<<20 {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestLayoutAndStrangers(t *testing.T) {
	root := filepath.Join(t.TempDir(), "segments")
	b := open(t, vfs.Default, root)
	w, err := b.Create(tiers.SegmentKey(0x1234abcd, 5))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(root, "cd", "000000001234abcd.00000005.seg")
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm()&0o022 != 0 {
		t.Errorf("others may write: %v", st.Mode())
	}
	for _, stranger := range []string{"cd/notes.txt", "cd/000000001234abcd.00000006.seg.tmp", "cd/000000001234abce.00000000.seg", "lost+found"} {
		if err := os.WriteFile(filepath.Join(root, stranger), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var keys []string
	if err := b.List(func(k string, _ int64) error { keys = append(keys, k); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(keys) != 1 || keys[0] != "000000001234abcd.00000005.seg" {
		t.Errorf("lists %v", keys)
	}
	again := open(t, vfs.Default, root)
	if _, err := again.Open(keys[0]); err != nil {
		t.Errorf("opened again: %v", err)
	}
}

func TestOpenNeedsItsParent(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := dir.Open(vfs.Default, filepath.Join(file, "segments")); err == nil {
		t.Error("opened below a file")
	}
}
