package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWire talks to a server that is not ours.
func TestWire(t *testing.T) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		if os.Getenv("HV_REQUIRE_TOOLS") != "" {
			t.Fatal("nbdkit is not installed; make setup installs it")
		}
		t.Skip("nbdkit is not installed")
	}
	ctx, dir := t.Context(), t.TempDir()
	socket := filepath.Join(dir, "s")
	p, err := startProcess("test", filepath.Join(dir, "log"), []string{"nbdkit", "--foreground", "--unix", socket, "memory", "1M"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := p.stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := p.listening(ctx, socket); err != nil {
		t.Fatal(err)
	}
	w, err := openWire(ctx, socket, "any")
	if err != nil {
		t.Fatal(err)
	}
	defer w.close()
	want := bytes.Repeat([]byte("wire"), 1024)
	got := make([]byte, len(want))
	read := func() {
		t.Helper()
		if err := w.do(commandRead, 8192, uint32(len(got)), got); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.do(commandWrite, 8192, uint32(len(want)), want); err != nil {
		t.Fatal(err)
	}
	if read(); !bytes.Equal(got, want) {
		t.Error("what was written is not what is read")
	}
	if err := w.do(commandTrim, 0, 1<<20, nil); err != nil {
		t.Fatal(err)
	}
	if read(); !bytes.Equal(got, make([]byte, len(got))) {
		t.Error("a trimmed block is not zero")
	}
	if err := w.do(commandRead, 1<<20, 4096, got); err == nil {
		t.Error("a read beyond the end has no error")
	}
	if _, err := openWire(ctx, filepath.Join(dir, "none"), "any"); err == nil {
		t.Error("a socket that is not there has no error")
	}
}
