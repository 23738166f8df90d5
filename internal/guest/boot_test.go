package guest

import (
	"context"
	"errors"
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

// startNBD serves disk on socket. Plugin options go before the plugin's name, such as --filter=cow to leave the file as it is.
func startNBD(t *testing.T, socket, disk string, options ...string) *nbdServerProcess {
	t.Helper()
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	cmd := exec.Command("nbdkit", append(append([]string{"-f", "-U", socket}, options...), "file", disk)...)
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
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
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

// TestPowerCut kills the guest itself, in the middle of its writes: what was reported as fsynced must be on the disk once the
// journal is replayed. This also shows that the guest's "SYNCED" is the truth and not its page cache.
func TestPowerCut(t *testing.T) {
	image := testImage(t)
	disk := copyDisk(t, image)
	socket := filepath.Join(shortTempDir(t), "nbd.sock")
	startNBD(t, socket, disk)
	machine := bootTest(t, BootOptions{Image: image, NBDURI: UnixURI(socket, ""), Task: TaskFsyncWriter})
	waitMarker(t, machine, "SYNCED 25")
	if err := machine.Kill(); err != nil {
		t.Fatal(err)
	}
	synced := machine.Synced()
	if err := CheckFiles(t.Context(), disk, synced); err == nil || !strings.Contains(err.Error(), "journal is not replayed") {
		t.Errorf("want CheckFiles to refuse a disk that was cut off while mounted, got %v", err)
	}
	if err := RecoverJournal(t.Context(), disk); err != nil {
		t.Fatal(err)
	}
	if err := CheckFiles(t.Context(), disk, synced); err != nil {
		t.Errorf("after %d files: %v", synced, err)
	}
}

// TestIdleGuestAnswersQMPAndStops covers the machine's controls.
func TestIdleGuestAnswersQMPAndStops(t *testing.T) {
	image := testImage(t)
	socket := filepath.Join(shortTempDir(t), "nbd.sock")
	startNBD(t, socket, image.Disk, "--filter=cow")
	machine := bootTest(t, BootOptions{Image: image, NBDURI: UnixURI(socket, ""), Task: TaskIdle})
	waitMarker(t, machine, "GUEST-READY")

	reply, err := machine.QMP(t.Context(), "query-status", nil)
	if err != nil || !strings.Contains(string(reply), `"running"`) {
		t.Errorf("query-status: %s, %v", reply, err)
	}
	if _, err := machine.QMP(t.Context(), "no-such-command", nil); err == nil || !strings.Contains(err.Error(), "CommandNotFound") {
		t.Errorf("an unknown command: got %v", err)
	}
	for _, argument := range []string{"stop", "cont"} {
		if _, err := machine.QMP(t.Context(), argument, map[string]any{}); err != nil {
			t.Error(err)
		}
	}
	if err := machine.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := machine.Wait(); err != nil {
		t.Error(err)
	}
	waitMarker(t, machine, "GUEST-CLEAN")
	if _, err := machine.WaitMarker(t.Context(), "never printed"); err == nil || !strings.Contains(err.Error(), "GUEST-CLEAN") {
		t.Errorf("waiting for a guest that has ended: want an error with its last lines, got %v", err)
	}
	if _, err := os.Stat(machine.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the machine left its folder: %v", err)
	}
}

// TestScript runs a script of the caller, which sees a Linux with the image's data, and whose failure is an error line.
func TestScript(t *testing.T) {
	image := testImage(t)
	socket := filepath.Join(shortTempDir(t), "nbd.sock")
	startNBD(t, socket, image.Disk, "--filter=cow")
	machine := bootTest(t, BootOptions{Image: image, NBDURI: UnixURI(socket, ""), Append: "hv.word=given",
		Script: "echo KERNEL-$(uname -s)\ngrep -o hv.word=given /proc/cmdline\nexit 7\n"})
	if err := machine.Wait(); err != nil {
		t.Error(err)
	}
	waitMarker(t, machine, "KERNEL-Linux")
	waitMarker(t, machine, "hv.word=given")
	if errs := machine.Errors(); len(errs) != 1 || !strings.Contains(errs[0], "script ended with 7") {
		t.Errorf("want one error of the script, got %q", errs)
	}
}

// TestEndOfContextEndsQEMU proves that no qemu outlives the context of Boot.
func TestEndOfContextEndsQEMU(t *testing.T) {
	image := testImage(t)
	socket := filepath.Join(shortTempDir(t), "nbd.sock")
	startNBD(t, socket, image.Disk, "--filter=cow")
	ctx, cancel := context.WithCancel(t.Context())
	machine, err := Boot(ctx, BootOptions{Image: image, NBDURI: UnixURI(socket, "")})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := machine.Wait(); !errors.Is(err, context.Canceled) {
		t.Errorf("want context.Canceled, got %v", err)
	}
}

// TestBadDisk wants the reason that qemu gives, not silence.
func TestBadDisk(t *testing.T) {
	image := testImage(t)
	machine := bootTest(t, BootOptions{Image: image, NBDURI: UnixURI(filepath.Join(shortTempDir(t), "none.sock"), "x")})
	err := machine.Wait()
	if err == nil || !strings.Contains(err.Error(), "none.sock") {
		t.Errorf("want qemu's message about the socket, got %v", err)
	}
}

func TestBootOptionsAreChecked(t *testing.T) {
	image := &Image{Kind: Busybox}
	for name, options := range map[string]BootOptions{
		"no image":         {NBDURI: UnixURI("/s", "")},
		"no disk":          {Image: image},
		"two disks":        {Image: image, NBDURI: UnixURI("/s", ""), Disk: []string{"-blockdev", "driver=null-co,node-name=d"}},
		"script and task":  {Image: image, NBDURI: UnixURI("/s", ""), Task: TaskIdle, Script: "true"},
		"task, no script":  {Image: image, NBDURI: UnixURI("/s", ""), Task: TaskScript},
		"negative count":   {Image: image, NBDURI: UnixURI("/s", ""), Count: -1},
		"short reconnect":  {Image: image, NBDURI: UnixURI("/s", ""), ReconnectDelay: time.Millisecond},
		"foreign NBD URI":  {Image: image, NBDURI: "http://host/x"},
		"URI with no path": {Image: image, NBDURI: "nbd+unix:///x"},
	} {
		if machine, err := Boot(t.Context(), options); err == nil {
			t.Errorf("%s: was booted", name)
			_ = machine.Kill()
		}
	}
}
