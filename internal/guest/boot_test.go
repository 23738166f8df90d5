package guest

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testImage returns the default busybox image from the user's cache. Only its first build needs the network.
func testImage(t *testing.T) *Image {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a real guest: not in -short")
	}
	requirePrograms(t, "qemu-system-x86_64", "nbdkit", "mke2fs", "e2fsck", "debugfs", "apt-get", "dpkg-deb")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := Prepare(t.Context(), filepath.Join(cache, "hyper-nixos"), Busybox)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// requirePrograms skips a test on a machine that lacks a program, and fails it where CI is set, since CI can install them.
func requirePrograms(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		if _, err := findProgram(name); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
}

// copyDisk makes a writable, sparse copy of an image's disk.
func copyDisk(t *testing.T, image *Image) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.raw")
	if out, err := exec.Command("cp", "--sparse=always", image.Disk, path).CombinedOutput(); err != nil {
		t.Fatalf("copy disk: %v: %s", err, out)
	}
	return path
}

// nbdServerProcess is an nbdkit that serves one raw file.
type nbdServerProcess struct {
	cmd    *exec.Cmd
	socket string
}

func startNBD(t *testing.T, socket, disk string) *nbdServerProcess {
	t.Helper()
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdkit", "-f", "-U", socket, "file", disk)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	server := &nbdServerProcess{cmd: cmd, socket: socket}
	t.Cleanup(server.kill)
	for {
		if _, err := os.Stat(socket); err == nil {
			return server
		}
		select {
		case <-t.Context().Done():
			t.Fatal("nbdkit does not listen")
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// kill ends the server with SIGKILL; more than once does no harm.
func (s *nbdServerProcess) kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// shortTempDir returns a folder whose paths fit a unix socket's 107 bytes; t.TempDir holds the test's name.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hvt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// bootTest boots a guest that is ended with the test, and shows its console if the test fails.
func bootTest(t *testing.T, options BootOptions) *Machine {
	t.Helper()
	machine, err := Boot(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = machine.Kill()
		if t.Failed() {
			t.Logf("serial console:\n%s", machine.Serial())
		}
	})
	return machine
}

func waitMarker(t *testing.T, machine *Machine, marker string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	line, err := machine.WaitMarker(ctx, marker)
	if err != nil {
		t.Fatal(err)
	}
	return line
}

// TestFsyncWriterSurvivesServerKill is the shape of the product's demo: the NBD server dies under a writing guest and comes
// back, the guest notices nothing, and every file that it reported as fsynced is on the disk.
func TestFsyncWriterSurvivesServerKill(t *testing.T) {
	image := testImage(t)
	disk := copyDisk(t, image)
	socket := filepath.Join(shortTempDir(t), "nbd.sock")
	server := startNBD(t, socket, disk)

	const files = 60
	start := time.Now()
	machine := bootTest(t, BootOptions{Image: image, NBDURI: UnixURI(socket, ""), Task: TaskFsyncWriter, Count: files})
	waitMarker(t, machine, "GUEST-READY")
	t.Logf("boot to task: %v", time.Since(start))
	for _, at := range []string{"SYNCED 10", "SYNCED 30"} {
		waitMarker(t, machine, at)
		server.kill()
		t.Logf("killed the server after file %d at %v", machine.Synced(), time.Since(start))
		server = startNBD(t, socket, disk)
	}
	waitMarker(t, machine, "GUEST-VERIFIED")
	if err := machine.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("power off at %v", time.Since(start))
	waitMarker(t, machine, "GUEST-CLEAN")
	if errs := machine.Errors(); len(errs) > 0 {
		t.Errorf("the guest met errors: %q", errs)
	}
	if machine.Synced() != files {
		t.Errorf("the guest reported %d files, want %d", machine.Synced(), files)
	}
	if err := CheckFiles(t.Context(), disk, files); err != nil {
		t.Error(err)
	}
	if err := CheckFiles(t.Context(), disk, files+1); err == nil {
		t.Error("CheckFiles did not miss a file that was never written")
	}
	t.Logf("all done at %v", time.Since(start))
}

var _ = io.Discard
var _ = strings.ToUpper
