package vfs

import (
	"bytes"
	"errors"
	"io"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestView(t *testing.T) {
	f, err := Create(Default, filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 64 << 10
	if err := Preallocate(f, size); err != nil {
		t.Fatal(err)
	}
	v, err := Map(f, size)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte("view"), 1000)
	if _, err := f.WriteAt(want, 5000); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if err := v.ReadFull(got, 5000); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what was written after the file was mapped: %v", err)
	}
	for _, off := range []int64{-1, size - 3999, size + 1, 1 << 62} {
		if err := v.ReadFull(got, off); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read at %d beyond the view: %v", off, err)
		}
	}
	if Cached(f, size) {
		t.Error("what is beyond the end is in memory")
	}
	// What a device that fails does, too: the page cannot be had.
	if err := unix.Ftruncate(int(f.Fd()), 4096); err != nil {
		t.Fatal(err)
	}
	if err := v.ReadFull(got[:10], 40000); !errors.Is(err, unix.EIO) {
		t.Errorf("read of a page that is gone: %v", err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	mem, err := Create(NewCrashableMem(), "f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := mem.Write(want); err != nil || !Cached(mem, 0) || Cached(mem, int64(len(want))) {
		t.Errorf("a file in memory: %v, or what it has is not in memory, or what it has not", err)
	}
	if _, err := Map(mem, 10); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("map a file in memory: %v", err)
	}
}
