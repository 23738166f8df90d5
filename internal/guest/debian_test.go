package guest

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestDebianGuest boots a whole Debian with systemd and runs the same task in it. Building it needs root, the network and a
// minute, so it runs only where HV_TEST_DEBIAN is set.
func TestDebianGuest(t *testing.T) {
	if os.Getenv("HV_TEST_DEBIAN") == "" {
		t.Skip("set HV_TEST_DEBIAN=1 to build and boot a whole Debian")
	}
	requirePrograms(t, "qemu-system-x86_64", "nbdkit", "mke2fs", "e2fsck", "debugfs", "apt-get", "dpkg-deb", "debootstrap")
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	image, err := Prepare(t.Context(), filepath.Join(cache, "hyper-nixos"), Debian)
	if err != nil {
		t.Fatal(err)
	}
	disk := copyDisk(t, image)
	socket := filepath.Join(shortTempDir(t), "nbd.sock")
	server := startNBD(t, socket, disk)

	const files = 20
	start := time.Now()
	machine := bootTest(t, BootOptions{Image: image, NBDURI: UnixURI(socket, ""), CPUs: 2, Task: TaskFsyncWriter, Count: files})
	waitMarker(t, machine, "GUEST-READY")
	t.Logf("boot to multi-user and task: %v", time.Since(start))
	waitMarker(t, machine, "SYNCED 10")
	server.kill()
	startNBD(t, socket, disk)
	waitMarker(t, machine, "GUEST-DONE")
	if err := machine.Wait(); err != nil {
		t.Fatal(err)
	}
	t.Logf("power off: %v", time.Since(start))
	if errs := machine.Errors(); len(errs) > 0 {
		t.Errorf("the guest met errors: %q", errs)
	}
	if err := CheckFiles(t.Context(), disk, files); err != nil {
		t.Error(err)
	}
}
