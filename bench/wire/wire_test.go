package wire

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
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
	server := exec.Command("nbdkit", "--foreground", "--unix", socket, "memory", "1M")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			break
		} else if time.Since(began) > time.Minute {
			t.Fatalf("nbdkit does not listen: %v", err)
		}
	}
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
	if _, err := Open(ctx, filepath.Join(dir, "none"), "any"); err == nil {
		t.Error("a socket that is not there has no error")
	}
}
