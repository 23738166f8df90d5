package wire

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/hyper-nixos/hyper-nixos/internal/nbdtest"
)

// TestWire talks to a server that is not ours.
func TestWire(t *testing.T) {
	socket, ctx := nbdtest.Nbdkit(t, "memory", "1M"), t.Context()
	w, err := Open(ctx, socket, "any")
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	want := bytes.Repeat([]byte("wire"), 1024)
	got := make([]byte, len(want))
	read := func() {
		t.Helper()
		if err := w.Do(Read, 8192, uint32(len(got)), got); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Do(Write, 8192, uint32(len(want)), want); err != nil {
		t.Fatal(err)
	}
	if read(); !bytes.Equal(got, want) {
		t.Error("what was written is not what is read")
	}
	if err := w.Do(Trim, 0, 1<<20, nil); err != nil {
		t.Fatal(err)
	}
	if read(); !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("a trimmed block is not zero")
	}
	if err := w.Do(Read, 1<<20, 4096, got); err == nil {
		t.Error("a read beyond the end has no error")
	}
	if _, err := Open(ctx, filepath.Join(t.TempDir(), "none"), "any"); err == nil {
		t.Error("a socket that is not there has no error")
	}
}
