package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/hyper-nixos/hyper-nixos/block"
)

// onEach runs a test on the disk and in memory.
func onEach(t *testing.T, test func(t *testing.T, fsys FS, dir string)) {
	t.Run("disk", func(t *testing.T) { test(t, Default, t.TempDir()) })
	t.Run("mem", func(t *testing.T) { test(t, NewCrashableMem(), "") })
}

func mustCreate(t *testing.T, fsys FS, name string) File {
	t.Helper()
	f, err := Create(fsys, name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestWriteVecReadsBack(t *testing.T) {
	for _, n := range []int{0, 1, 2, 7, maxVec, maxVec + 1, 3*maxVec + 5} {
		onEach(t, func(t *testing.T, fsys FS, dir string) {
			f := mustCreate(t, fsys, filepath.Join(dir, "f"))
			var bufs [][]byte
			var want []byte
			for i := range n {
				b := fmt.Appendf(nil, "buffer %d;", i)
				bufs = append(bufs, b, nil)
				want = append(want, b...)
			}
			if err := WriteVec(f, bufs, 100); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, len(want))
			if err := ReadFull(f, got, 100); err != nil && n > 0 {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("%d buffers: read back other bytes", n)
			}
			if err := TryRead(f, got, 100); err != nil && !errors.Is(err, block.ErrWouldBlock) {
				t.Fatal(err)
			}
			if err := ReadFull(f, make([]byte, len(want)+1), 100); err != io.ErrUnexpectedEOF {
				t.Fatalf("read past the end: %v", err)
			}
		})
	}
}

func TestSkipResumesShortWrites(t *testing.T) {
	f := mustCreate(t, Default, filepath.Join(t.TempDir(), "f"))
	bufs := [][]byte{[]byte("abc"), []byte("defg"), []byte("h")}
	for n := range 9 {
		g := new(gather)
		if err := g.pwritev(f.Fd(), bufs, 0); err != nil {
			t.Fatal(err)
		}
		// Rebuild the vector and drop n bytes, as after a short write of n.
		var iov []byte
		rest := skip(vectorOf(bufs), n)
		for _, v := range rest {
			iov = append(iov, bytesOf(v)...)
		}
		if want := "abcdefgh"[n:]; string(iov) != want {
			t.Fatalf("after %d bytes: %q, want %q", n, iov, want)
		}
	}
}

func TestWriteVecAllocatesNothing(t *testing.T) {
	f := mustCreate(t, Default, filepath.Join(t.TempDir(), "f"))
	bufs := make([][]byte, 20)
	for i := range bufs {
		bufs[i] = make([]byte, 64)
	}
	if n := testing.AllocsPerRun(100, func() {
		if err := WriteVec(f, bufs, 0); err != nil {
			t.Fatal(err)
		}
	}); n > 0.5 && !raceEnabled {
		t.Fatalf("%v allocations per write", n)
	}
}

func TestErrorfsReachesWriteVec(t *testing.T) {
	boom := errors.New("boom")
	fsys := errorfs.Wrap(NewCrashableMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpFileWriteAt {
			return boom
		}
		return nil
	}))
	f := mustCreate(t, fsys, "f")
	if err := WriteVec(f, [][]byte{{1}}, 0); !errors.Is(err, boom) {
		t.Fatal(err)
	}
}

func TestOpenUpdate(t *testing.T) {
	onEach(t, func(t *testing.T, fsys FS, dir string) {
		name := filepath.Join(dir, "f")
		if _, err := OpenUpdate(fsys, name); !IsNotExist(err) {
			t.Fatalf("missing file: %v", err)
		}
		f := mustCreate(t, fsys, name)
		if _, err := f.WriteAt([]byte("hello"), 0); err != nil {
			t.Fatal(err)
		}
		g, err := OpenUpdate(fsys, name)
		if err != nil {
			t.Fatal(err)
		}
		defer g.Close()
		if _, err := g.WriteAt([]byte("J"), 0); err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 5)
		if err := ReadFull(g, p, 0); err != nil || string(p) != "Jello" {
			t.Fatalf("%q, %v", p, err)
		}
		if err := SyncDir(fsys, dir); err != nil && dir != "" {
			t.Fatal(err)
		}
	})
}

func TestPreallocateAndPunch(t *testing.T) {
	onEach(t, func(t *testing.T, fsys FS, dir string) {
		f := mustCreate(t, fsys, filepath.Join(dir, "f"))
		if err := Preallocate(f, 64<<10); err != nil {
			t.Fatal(err)
		}
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if f.Fd() != ^uintptr(0) && st.Size() != 64<<10 {
			t.Fatalf("length %d", st.Size())
		}
		if _, err := f.WriteAt(bytes.Repeat([]byte{7}, 64<<10), 0); err != nil {
			t.Fatal(err)
		}
		if err := PunchHole(f, 4096, 8192); errors.Is(err, errors.ErrUnsupported) {
			t.Skip("file system of the temporary directory has no holes")
		} else if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 64<<10)
		if err := ReadFull(f, p, 0); err != nil {
			t.Fatal(err)
		}
		for i, b := range p {
			if want := i < 4096 || i >= 12288; (b == 7) != want {
				t.Fatalf("byte %d is %d", i, b)
			}
		}
		if err := DataSync(f); err != nil {
			t.Fatal(err)
		}
	})
}

func TestFreeSpace(t *testing.T) {
	n, err := FreeSpace(Default, t.TempDir())
	if err != nil || n <= 0 {
		t.Fatalf("%d, %v", n, err)
	}
	if _, err := FreeSpace(NewCrashableMem(), "/"); !errors.Is(err, errors.ErrUnsupported) {
		t.Fatal(err)
	}
}

func TestFullDiskIsErrNoSpace(t *testing.T) {
	f, err := OpenUpdate(Default, "/dev/full")
	if err != nil {
		t.Skipf("this machine has no /dev/full: %v", err)
	}
	defer f.Close()
	if err := WriteVec(f, [][]byte{{1}}, 0); !errors.Is(err, block.ErrNoSpace) {
		t.Fatal(err)
	}
}
