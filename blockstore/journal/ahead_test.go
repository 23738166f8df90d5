package journal

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hyper-nixos/hyper-nixos/internal/vfs"
)

// TestWriteAhead: where each small append is synced, new files are written ahead, in a log that streams they are not. Either way a new file is all zeroes, which is what recovery
// takes an unused one for.
func TestWriteAhead(t *testing.T) {
	for name, every := range map[string]int{"sync each": 1, "stream": 1 << 30} {
		t.Run(name, func(t *testing.T) {
			opts := testOptions(vfs.Default, t.TempDir(), 1)
			opts.FileSize, opts.CapBytes = 1<<20, 1<<30
			l, _ := openAll(t, opts)
			defer l.Close()
			recs := oneWrite(1)
			for i := 1; l.NextPos().File() < 3; i++ {
				if err := l.Append(recs); err != nil {
					t.Fatal(err)
				}
				if i%every == 0 {
					if err := l.Sync(context.Background()); err != nil {
						t.Fatal(err)
					}
				}
			}
			waitPrepared(l)
			l.st.Lock()
			next := l.st.next
			l.st.Unlock()
			if written := isWritten(t, next.f); written != (every == 1) && tellsWritten(t) {
				t.Errorf("a new file was written ahead: %v", written)
			} // before it is read, since what is in the page cache counts as data
			b := make([]byte, opts.FileSize)
			if n, err := next.f.ReadAt(b, 0); err != nil && err != io.EOF || n != len(b) || !bytes.Equal(b, make([]byte, n)) {
				t.Fatalf("a new file is not %d zeroes: read %d, %v", len(b), n, err)
			}
		})
	}
}

// isWritten reports whether the file system takes the beginning of f for data, not for blocks that were only allocated.
func isWritten(t *testing.T, f vfs.File) bool {
	t.Helper()
	at, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	if err != nil && err != unix.ENXIO {
		t.Fatal(err)
	}
	return err == nil && at == 0
}

// tellsWritten reports whether the file system of temporary folders tells these apart.
func tellsWritten(t *testing.T) bool {
	t.Helper()
	f, err := vfs.Create(vfs.Default, filepath.Join(t.TempDir(), "allocated"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := vfs.Preallocate(f, 1<<20); err != nil {
		t.Fatal(err)
	}
	return !isWritten(t, f)
}

// TestSyncPace is the arithmetic of what pays.
func TestSyncPace(t *testing.T) {
	const file = 64 << 20
	p := syncPace{window: file / 4}
	for i, c := range []struct {
		appended int64
		syncs    uint64
		dense    bool
	}{{0, 0, false}, {file, 0, false}, {2 * file, 1, false}, {2*file + 1, 2, false}, {3 * file, 2 + file/denseSyncs, true}, {3*file + 1, 2 + file/denseSyncs, true}, {4 * file, 3 + file/denseSyncs, false}} {
		if p.look(c.appended, c.syncs); p.dense != c.dense {
			t.Errorf("%d: %v", i, p.dense)
		}
	}
}
