package nbdtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Nbdkit serves a plugin of nbdkit with its parameters at the unix socket that it returns, under every name, until the test ends. Without nbdkit the test is skipped, or fails where all
// tools must be there.
func Nbdkit(t testing.TB, plugin string, parameters ...string) (socket string) {
	t.Helper()
	if _, err := exec.LookPath("nbdkit"); err != nil {
		if os.Getenv("HV_REQUIRE_TOOLS") != "" {
			t.Fatal("nbdkit is not installed; make setup installs it")
		}
		t.Skip("nbdkit is not installed")
	}
	socket = filepath.Join(t.TempDir(), "s")
	server := exec.Command("nbdkit", append([]string{"--foreground", "--unix", socket, plugin}, parameters...)...)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	})
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			_ = conn.Close()
			return socket
		} else if time.Since(began) > time.Minute {
			t.Fatalf("nbdkit does not listen: %v", err)
		}
	}
}
